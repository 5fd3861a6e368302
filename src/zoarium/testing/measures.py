"""Laws of a measure, each a sentence that can be false; run them on your own with :func:`check_measure`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates
from zoarium._core.registry import Method
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.registry import MEASURES
from zoarium.testing.cohorts import small_cohort, small_dataset
from zoarium.zoo.cohort import Cohort

GIVEN = {"model": ("cohort", "data"), "pair": ("cohort", "pairs", "data"), "cell": ("cohort", "cells", "data")}
NOT_SETTINGS = ("earlier",)  # keywords the driver fills in
Unit = tuple[int, ...]  # rows of one model, one pair or one cell


class LawViolationError(AssertionError):
    """A method breaks a law of its family."""


@dataclass(frozen=True)
class Subject:
    """A measure with everything the laws need to try it.

    Parameters
    ----------
    method : Method
        The measure.
    cohort : Cohort
        At least four models of one architecture, finite.
    data : Dataset
        What they were trained on.
    settings : mapping
        Settings that make it fast; what is not given stays at its default.
    rtol, atol : float
        How near two values must be that may differ by rounding.
    """

    method: Method
    cohort: Cohort
    data: Dataset
    settings: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 1e-4
    atol: float = 1e-6

    @property
    def units(self) -> list[Unit]:
        """One model, pair or cell each; the last unit shares no model with the first."""
        scope = self.method.facts["scope"]
        if scope == "model":
            return [(i,) for i in range(len(self.cohort))]
        return [(0, 1), (1, 2), (2, 3)] if scope == "pair" else [(0, 1), (2, 3)]

    def values(self, units: Sequence[Unit] | None = None, cohort: Cohort | None = None) -> dict[str, Estimates]:
        """Estimates by quantity of the units, rows of `cohort`; for a model measure units are every row."""
        cohort = self.cohort if cohort is None else cohort
        units = self.units if units is None else units
        scope, facts = self.method.facts["scope"], self.method.facts
        data = self.data if facts.get("needs_data", True) else None
        settings = dict(self.settings)
        if facts.get("needs_checkpoints"):
            settings["earlier"] = _checkpoints_before(cohort)
        if scope == "model":
            out = self.method(cohort, data, **settings)
        elif scope == "pair":
            rows = torch.tensor(units, dtype=torch.long).reshape(-1, 2)
            out = self.method([cohort] if facts.get("across") else cohort, rows, data, **settings)
        else:
            out = self.method(cohort, [list(unit) for unit in units], data, **settings)
        return {facts["quantities"][0]: out} if isinstance(out, Estimates) else out


def gives_one_value_a_unit_under_the_registered_names(subject: Subject) -> None:
    """As many values as models, pairs or cells, for exactly the quantities it registered."""
    got = subject.values()
    names = subject.method.facts["quantities"]
    if set(got) != set(names):
        raise LawViolationError(f"registered the quantities {sorted(names)} but returned {sorted(got)}")
    for quantity, estimates in got.items():
        if len(estimates) != len(subject.units):
            raise LawViolationError(f"{quantity}: {len(estimates)} values for {len(subject.units)} units")


def gives_finite_values_or_reasons(subject: Subject) -> None:
    """On healthy models every value is finite, or NaN with a reason; never infinite."""
    for quantity, estimates in subject.values().items():
        for value, reason in zip(estimates.value, estimates.reason, strict=True):
            if np.isinf(value) or (np.isnan(value) and not reason):
                raise LawViolationError(f"{quantity} is {value} without a reason")
            if np.isfinite(value) and reason:
                raise LawViolationError(f"{quantity} is {value} and yet has a reason to be missing: {reason!r}")


def says_how_sure_it_is(subject: Subject) -> None:
    """A finite value has a standard error that is finite and not negative, or NaN where none can be given."""
    for quantity, estimates in subject.values().items():
        wrong = np.isfinite(estimates.value) & (np.isinf(estimates.stderr) | (estimates.stderr < 0))
        if wrong.any():
            raise LawViolationError(f"{quantity} has the standard errors {estimates.stderr[wrong]}")


def records_its_samples(subject: Subject) -> None:
    """A finite value that comes from data says how many samples it rests on, and no count is negative."""
    for quantity, estimates in subject.values().items():
        counted = estimates.samples[np.isfinite(estimates.value)]
        if (estimates.samples < 0).any() or (estimates.products < 0).any():
            raise LawViolationError(f"{quantity} has a negative count of samples or products")
        if subject.method.facts.get("needs_data", True) and (counted < 1).any():
            raise LawViolationError(f"{quantity} uses data but records no samples")


def gives_the_same_bits_again(subject: Subject) -> None:
    """Called twice, whatever the global random state, it returns the same bits, and leaves that state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = subject.values()
        if not torch.equal(before, torch.get_rng_state()):
            raise LawViolationError("draws from the global random state; derive a generator from a `seed` setting")
        torch.manual_seed(2)
        second = subject.values()
    for quantity in first:
        for part in ("value", "stderr", "samples", "products"):
            if not np.array_equal(getattr(first[quantity], part), getattr(second[quantity], part), equal_nan=True):
                raise LawViolationError(f"{quantity}: the {part} differs from call to call")


def follows_its_models_when_they_are_reordered(subject: Subject) -> None:
    """Reordering the rows of the cohort reorders the values and does nothing else."""
    n = len(subject.cohort)
    order = [*range(1, n), 0]  # new row r holds old row order[r]
    place = {old: new for new, old in enumerate(order)}
    moved = subject.cohort.select(order)
    units = subject.units
    if subject.method.facts["scope"] == "model":
        got, expected = subject.values(cohort=moved), subject.values()
        back = {q: e[[place[i] for (i,) in units]] for q, e in got.items()}
        _must_agree(subject, expected, back, "after reordering the models")
        return
    got = subject.values([tuple(place[i] for i in unit) for unit in units], moved)
    _must_agree(subject, subject.values(), got, "after reordering the models")
    _must_agree(
        subject, {q: e[::-1] for q, e in subject.values().items()}, subject.values(units[::-1]),
        "after reordering what is asked for",
    )  # fmt: skip


def does_not_depend_on_the_company(subject: Subject) -> None:
    """A unit measured alone has the value it has among others."""
    together = subject.values()
    for index in (0, len(subject.units) - 1):
        rows = subject.units[index]
        alone = subject.values([tuple(range(len(rows)))], subject.cohort.select(rows))
        _must_agree(
            subject, {q: e[[index]] for q, e in together.items()}, alone, f"when unit {index} is measured alone"
        )


def leaves_its_inputs_alone(subject: Subject) -> None:
    """Parameters, buffers, data and the module's mode are what they were."""
    watched = {
        **{f"parameter {k!r}": v for k, v in subject.cohort.params.items()},
        **{f"buffer {k!r}": v for k, v in subject.cohort.buffers.items()},
        "training inputs": subject.data.train.x, "training targets": subject.data.train.y,
        "test inputs": subject.data.test.x, "test targets": subject.data.test.y,
        **{f"the module's own {k!r}": v for k, v in subject.cohort.module.state_dict().items()},
    }  # fmt: skip
    before = {name: tensor.clone() for name, tensor in watched.items()}
    grads = torch.is_grad_enabled()
    modes = [m.training for m in subject.cohort.net.module.modules()]
    subject.values()
    for name, tensor in watched.items():
        if not torch.equal(tensor, before[name]):
            raise LawViolationError(f"changes {name}")
        if tensor.requires_grad or tensor.grad is not None:
            raise LawViolationError(f"leaves gradients on {name}")
    if torch.is_grad_enabled() != grads or [m.training for m in subject.cohort.net.module.modules()] != modes:
        raise LawViolationError("leaves torch or the module in another mode")


def confines_a_broken_model(subject: Subject) -> None:
    """A model of NaN weights gives NaN with a reason, and every unit without it keeps its value."""
    broken = {k: v.clone() for k, v in subject.cohort.params.items()}
    for tensor in broken.values():
        tensor[0] = float("nan")
    got, healthy = subject.values(cohort=subject.cohort.with_params(broken)), subject.values()
    touched = [n for n, unit in enumerate(subject.units) if 0 in unit]
    spared = [n for n, unit in enumerate(subject.units) if 0 not in unit]
    for quantity, estimates in got.items():
        for n in touched:
            if not np.isnan(estimates.value[n]):
                raise LawViolationError(f"{quantity} of a model of NaN weights is {estimates.value[n]}, not NaN")
            if not estimates.reason[n]:
                raise LawViolationError(f"{quantity} of a model of NaN weights is NaN without a reason")
    _must_agree(
        subject, {q: e[spared] for q, e in healthy.items()}, {q: e[spared] for q, e in got.items()},
        "beside a model of NaN weights",
    )  # fmt: skip


def takes_settings_by_keyword_with_plain_defaults(subject: Subject) -> None:
    """Settings are keyword-only and have defaults that survive JSON."""
    scope = subject.method.facts["scope"]
    parameters = list(inspect.signature(subject.method.function).parameters.values())
    given, settings = parameters[: len(GIVEN[scope])], parameters[len(GIVEN[scope]) :]
    if len(given) < len(GIVEN[scope]) or any(p.kind is p.KEYWORD_ONLY for p in given):
        raise LawViolationError(f"a {scope} measure takes {', '.join(GIVEN[scope])} by position")
    for p in settings:
        if p.kind is not p.KEYWORD_ONLY or p.default is p.empty:
            raise LawViolationError(f"setting {p.name!r} is not keyword-only with a default")
        if p.name in NOT_SETTINGS:
            continue
        try:
            plain = json.loads(json.dumps(p.default))
        except TypeError:
            plain = None if p.default is not None else p.default
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        if plain != default:
            raise LawViolationError(f"the default of {p.name!r}, {p.default!r}, does not survive JSON")


Law = Callable[[Subject], None]

MEASURE_LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        gives_one_value_a_unit_under_the_registered_names,
        gives_finite_values_or_reasons,
        says_how_sure_it_is,
        records_its_samples,
        gives_the_same_bits_again,
        follows_its_models_when_they_are_reordered,
        does_not_depend_on_the_company,
        leaves_its_inputs_alone,
        confines_a_broken_model,
        takes_settings_by_keyword_with_plain_defaults,
    )
}


def subject_of(
    measure: str | Method,
    *,
    cohort: Cohort | None = None,
    data: Dataset | None = None,
    settings: Mapping[str, Any] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> Subject:
    """A measure made ready for its laws; the parameters are those of :func:`check_measure`."""
    method = MEASURES[measure] if isinstance(measure, str) else measure
    cohort = small_cohort() if cohort is None else cohort
    if len(cohort) < 4:
        raise MeasureError(f"the laws of a measure need a cohort of at least 4 models, found {len(cohort)}.")
    return Subject(method, cohort, data or small_dataset(), dict(settings or {}), rtol, atol)


def check_measure(
    measure: str | Method,
    *,
    cohort: Cohort | None = None,
    data: Dataset | None = None,
    settings: Mapping[str, Any] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Run every law on a measure and say all that it breaks.

    Parameters
    ----------
    measure : str or Method
        A registered name, or the method itself.
    cohort : Cohort, optional
        At least four models; default :func:`small_cohort`.
    data : Dataset, optional
        Default :func:`small_dataset`.
    settings : mapping, optional
        Settings that make the measure fast.
    rtol, atol : float
        How near two values must be that may differ by rounding alone.

    Raises
    ------
    LawViolationError
        Names each broken law and how it was broken.

    Examples
    --------
    >>> from zoarium._core.estimates import Estimates
    >>> from zoarium._core.registry import Method
    >>> def norm(cohort, data):
    ...     return Estimates(cohort.flat.norm(dim=1).numpy())
    >>> facts = {"scope": "model", "quantities": ("norm",), "needs_data": False}
    >>> check_measure(Method("norm", norm, "", facts))
    Traceback (most recent call last):
    ...
    zoarium.testing.measures.LawViolationError: measure 'norm' breaks 1 law of 10:
    - confines a broken model: norm of a model of NaN weights is NaN without a reason
    """
    subject = subject_of(measure, cohort=cohort, data=data, settings=settings, rtol=rtol, atol=atol)
    broken = []
    for name, law in MEASURE_LAWS.items():
        try:
            law(subject)
        except LawViolationError as error:
            broken.append(f"{name.replace('_', ' ')}: {error}")
        except Exception as error:  # a crash under a law breaks it too; say which and why
            broken.append(f"{name.replace('_', ' ')}: {type(error).__name__}: {error}")
    if broken:
        count = f"{len(broken)} law{'s' if len(broken) > 1 else ''} of {len(MEASURE_LAWS)}"
        raise LawViolationError(f"measure {subject.method.name!r} breaks {count}:\n- " + "\n- ".join(broken))


def _must_agree(subject: Subject, one: dict[str, Estimates], other: dict[str, Estimates], when: str) -> None:
    for quantity, a in one.items():
        b = other[quantity]
        for part in ("value", "stderr"):
            x, y = getattr(a, part), getattr(b, part)
            if not np.allclose(x, y, rtol=subject.rtol, atol=subject.atol, equal_nan=True):
                raise LawViolationError(f"{quantity}: {part} {x} becomes {y} {when}")


def _checkpoints_before(cohort: Cohort, count: int = 6) -> list[Cohort]:
    """Stand-ins for earlier checkpoints: the same models with weights scaled a little."""
    return [
        cohort.with_params({k: v * (1 + 0.01 * (count - i)) for k, v in cohort.params.items()}) for i in range(count)
    ]


def as_regression(data: Dataset) -> Dataset:
    """The same inputs with a one-hot target to regress on."""

    def split(part: Split) -> Split:
        return Split(part.x, torch.nn.functional.one_hot(part.y, data.n_outputs).to(part.x.dtype))

    return replace(data, train=split(data.train), test=split(data.test), task="regression", name=f"{data.name}-onehot")
