"""Average the weights of models, over seeds or over epochs.

    θ̄ = Σ_i w_i θ_i,    Σ_i w_i = 1

Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018 (over epochs, and batch
norm re-estimated afterwards); Wortsman et al., "Model soups", 2022 (over runs). Averages of runs from different
initial weights make sense only after their units are matched: see :mod:`zoarium.measure.alignment`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoarium._core.digest import settings_hash
from zoarium._core.errors import ZoariumError
from zoarium.zoo.cohort import Cohort


class CombineError(ZoariumError):
    """Models that cannot be combined as asked."""


def average(cohort: Cohort, weights: Sequence[float] | Tensor | None = None) -> dict[str, Tensor]:
    """State dict of the average of all models of a cohort.

    Parameters
    ----------
    cohort : Cohort
        Models of one architecture, at least one.
    weights : sequence of float of shape (n,), optional
        Share of each model; normalised to sum to one. Default: equal shares.

    Returns
    -------
    dict of str to Tensor
        Parameters and buffers. Counters (integer buffers) are those of the first model. Batch-norm statistics are
        averaged too, which is rarely what they would be for the averaged weights: see
        :func:`zoarium.zoo.batchnorm.reestimate_batchnorm`.

    Raises
    ------
    CombineError
        For weights of the wrong length, negative or all zero.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from zoarium.zoo.cohort import Cohort
    >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> mean = average(Cohort.from_modules([a, b]))
    >>> torch.allclose(mean["weight"], (a.weight + b.weight) / 2)
    True
    """
    return average_groups(cohort, [list(range(len(cohort)))], weights).state(0)


def average_groups(
    cohort: Cohort, groups: Sequence[Sequence[int]], weights: Sequence[float] | Tensor | None = None
) -> Cohort:
    """One averaged model a group of rows.

    Parameters
    ----------
    cohort : Cohort
        Models of one architecture.
    groups : sequence of sequences of int
        Rows of the cohort; groups may overlap and differ in size.
    weights : sequence of float of shape (n,), optional
        Share of each model of the *cohort*, normalised within each group.

    Returns
    -------
    Cohort
        A model a group, in order. A group with a model that is not finite gives a model that is not finite; the
        other groups do not notice.
    """
    shares = [_shares(cohort, group, weights) for group in groups]
    ids = tuple(f"average-{settings_hash([cohort.ids[i] for i in group], 10)}" for group in groups)

    def mean(stacked: Tensor) -> Tensor:  # (n, *shape) -> (groups, *shape)
        if not stacked.is_floating_point():
            return stacked[[group[0] for group in groups]]
        # One product a group: a single (groups, n) @ (n, p) would carry a NaN into every group. In double precision,
        # so that the average of copies is the copy, bit by bit.
        rows = [torch.tensordot(w, stacked[list(g)].double(), 1) for g, w in zip(groups, shares, strict=True)]
        return torch.stack(rows).to(stacked) if rows else stacked[:0]

    return Cohort(
        ids, {k: mean(v) for k, v in cohort.params.items()}, cohort.module,
        {k: mean(v) for k, v in cohort.buffers.items()},
    )  # fmt: skip


def average_epochs(checkpoints: Sequence[Cohort], last: int = 5) -> Cohort:
    """Uniform mean of the last checkpoints of every model of a cohort.

    Parameters
    ----------
    checkpoints : sequence of Cohort
        The same models, in the same rows, at successive epochs, oldest first.
    last : int, default 5
        How many of them to average, from the end.

    Returns
    -------
    Cohort
        One averaged model for each model, under its own id.

    Raises
    ------
    CombineError
        When there is no checkpoint, or their models differ.
    """
    chosen = list(checkpoints)[-last:] if last > 0 else []
    if not chosen:
        raise CombineError(f"cannot average the last {last} of {len(checkpoints)} checkpoints; keep at least one.")
    newest = chosen[-1]
    for cohort in chosen:
        if cohort.ids != newest.ids:
            raise CombineError(
                f"cannot average over epochs: one checkpoint starts with {cohort.ids[:2]}, another with "
                f"{newest.ids[:2]}; give every checkpoint the same models in the same order, e.g. with cohort.select."
            )
    params = {k: torch.stack([c.params[k] for c in chosen]).double().mean(0).to(v) for k, v in newest.params.items()}
    buffers = {
        k: torch.stack([c.buffers[k] for c in chosen]).double().mean(0).to(v) if v.is_floating_point() else v
        for k, v in newest.buffers.items()
    }
    return Cohort(newest.ids, params, newest.module, buffers)


def _shares(cohort: Cohort, group: Sequence[int], weights: Sequence[float] | Tensor | None) -> Tensor:
    """Normalised weights of a group's rows, (len(group),) in double precision."""
    if not len(group):
        raise CombineError("cannot average a group of no models; give each group at least one row of the cohort.")
    if weights is None:
        return torch.full((len(group),), 1.0 / len(group), dtype=torch.float64)
    given = torch.as_tensor(weights, dtype=torch.float64)
    if given.shape != (len(cohort),):
        raise CombineError(f"{len(cohort)} models but weights of shape {tuple(given.shape)}; give one weight a model.")
    chosen = given[list(group)]
    if not bool((chosen >= 0).all()) or not float(chosen.sum()) > 0:
        raise CombineError(f"weights must be non-negative and not all zero, found {chosen.tolist()}.")
    return chosen / chosen.sum()
