"""The laws themselves: each catches the fault it is there for, and lets a lawful measure pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates
from zoarium._core.registry import Method
from zoarium.testing import LawViolationError, check_measure, small_cohort, small_dataset

ORDER = torch.ones(1)


def reason_of(values: np.ndarray) -> list[str]:
    return ["weights are not finite" if np.isnan(v) else "" for v in values]


def lawful(cohort, data, *, order: float = 2.0):
    """Norm of the weights."""
    value = cohort.flat.norm(order, dim=1).numpy()
    return Estimates(value, samples=len(data.train), reason=reason_of(value))


def without_reason(cohort, data):
    return Estimates(cohort.flat.norm(dim=1).numpy(), samples=1)


def blind_to_nan(cohort, data):
    return Estimates(cohort.flat.nan_to_num().norm(dim=1).numpy(), samples=1)


def one_too_few(cohort, data):
    return Estimates(cohort.flat.norm(dim=1).numpy()[1:], samples=1)


def relative_to_the_company(cohort, data):
    value = cohort.flat.norm(dim=1)
    value = (value / value.nanmean()).numpy()
    return Estimates(value, samples=1, reason=reason_of(value))


def by_position(cohort, data):
    value = cohort.flat.norm(dim=1).numpy() + np.arange(len(cohort))
    return Estimates(value, samples=1, reason=reason_of(value))


def random(cohort, data):
    value = (cohort.flat.norm(dim=1) * torch.rand(1).item()).numpy()
    return Estimates(value, samples=1, reason=reason_of(value))


def destructive(cohort, data):
    for tensor in cohort.params.values():
        tensor.mul_(2)
    return lawful(cohort, data)


def without_samples(cohort, data):
    value = cohort.flat.norm(dim=1).numpy()
    return Estimates(value, reason=reason_of(value))


def too_sure(cohort, data):
    value = cohort.flat.norm(dim=1).numpy()
    return Estimates(value, -1.0, samples=1, reason=reason_of(value))


def infinite(cohort, data):
    return Estimates(cohort.flat.norm(dim=1).numpy() / np.zeros(len(cohort)), samples=1)


def positional_setting(cohort, data, order=2.0):
    return lawful(cohort, data)


def setting_without_default(cohort, data, *, order):
    return lawful(cohort, data)


def setting_beyond_json(cohort, data, *, order=ORDER):
    return lawful(cohort, data)


def differently_named(cohort, data):
    return {"other": lawful(cohort, data)}


def method(function, scope: str = "model") -> Method:
    return Method(function.__name__, function, "", {"scope": scope, "quantities": (function.__name__,)})


def check(function, scope: str = "model") -> None:
    with np.errstate(divide="ignore"):
        check_measure(method(function, scope), cohort=small_cohort(steps=0))


def test_a_lawful_measure_passes():
    check(lawful)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        (without_reason, "confines a broken model"),
        (blind_to_nan, "confines a broken model"),
        (one_too_few, "gives one value a unit"),
        (differently_named, "gives one value a unit"),
        (relative_to_the_company, "does not depend on the company"),
        (by_position, "follows its models"),
        (random, "gives the same bits again"),
        (destructive, "leaves its inputs alone"),
        (without_samples, "records its samples"),
        (too_sure, "says how sure it is"),
        (infinite, "gives finite values or reasons"),
        (positional_setting, "takes settings by keyword"),
        (setting_without_default, "takes settings by keyword"),
        (setting_beyond_json, "takes settings by keyword"),
    ],
)  # fmt: skip
def test_each_fault_breaks_the_law_against_it(fault, law):
    with pytest.raises(LawViolationError, match=rf"measure '{fault.__name__}' breaks[\s\S]*- {law}"):
        check(fault)


def test_a_pair_measure_that_mixes_up_its_pairs_is_caught():
    def mixed(cohort, pairs, data):
        value = (cohort.flat[pairs[:, 0]] - cohort.flat[pairs[:, 1]]).norm(dim=1).sort().values.numpy()
        return Estimates(value, samples=1, reason=reason_of(value))

    def honest(cohort, pairs, data):
        value = (cohort.flat[pairs[:, 0]] - cohort.flat[pairs[:, 1]]).norm(dim=1).numpy()
        return Estimates(value, samples=1, reason=reason_of(value))

    check(honest, "pair")
    with pytest.raises(LawViolationError, match="reordering"):
        check(mixed, "pair")


def test_a_crash_under_a_law_is_reported_with_its_cause():
    def fragile(cohort, data):
        if cohort.flat.isnan().any():
            raise ZeroDivisionError("no")
        return lawful(cohort, data)

    with pytest.raises(
        LawViolationError, match="breaks 1 law of 10:\n- confines a broken model: ZeroDivisionError: no"
    ):
        check(fragile)


def test_laws_need_four_models():
    with pytest.raises(MeasureError, match="at least 4"):
        check_measure(method(lawful), cohort=small_cohort(2, steps=0))


def test_the_small_cohort_is_the_same_every_time_and_better_than_chance():
    cohort, again = small_cohort(), small_cohort(2)
    torch.testing.assert_close(cohort.flat[:2], again.flat, rtol=1e-9, atol=1e-12)
    assert torch.equal(cohort.flat, small_cohort().flat)
    test = small_dataset().test
    assert ((cohort(test.x).argmax(-1) == test.y).double().mean(1) > 0.7).all()
