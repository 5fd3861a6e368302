"""Mode connectivity: whether a curve of low loss joins two models.

With l_t the training error along a trained curve (:mod:`zoarium.measure.paths.curves`),

    mc = (l_0 + l_1)/2 - l_{t*},    t* = argmax_t |(l_0 + l_1)/2 - l_t|

mc < 0: a barrier remains on the curve; mc near 0: connected; mc > 0: the curve is better than its ends, which are
undertrained. Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes", 2021, with
the curves of Garipov et al. 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates, concatenate
from zoarium.data.dataset import Dataset
from zoarium.measure.paths.curves import CurvePoints, Kind, Schedule, fit_curve
from zoarium.measure.paths.samples import not_finite, pair_chunks, paired_mean
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

QUANTITIES = ("mode_connectivity", "mode_connectivity_loss", "mode_connectivity_test")


@measure(
    "mode_connectivity", scope="pair",
    quantities=QUANTITIES,
    reference="Garipov et al. 2018; Yang et al. 2021, 'Taxonomizing local versus global structure'",
    cost="training one model a pair for `epochs` epochs",
)  # fmt: skip
def mode_connectivity(
    cohort: Cohort,
    pairs: Tensor,
    data: Dataset,
    *,
    curve: Kind = "bezier",
    bends: int = 3,
    epochs: int = 40,
    points: int = 9,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "flat_linear",
    clip_norm: float | None = None,
    seed: int = 0,
) -> dict[str, Estimates]:
    """Largest departure from the ends' mean error along a trained curve, negative for a barrier.

    Parameters
    ----------
    points : int, default 9
        Equidistant points of the curve that are evaluated, ends included.
    curve, bends, epochs, batch_size, lr, momentum, weight_decay, schedule, clip_norm, seed
        How the curve is trained: see :func:`zoarium.measure.paths.curves.fit_curve`. Published uses differ in the
        budget (10 epochs for the phase zoos, 50 in the taxonomy) and the value depends on it.

    Returns
    -------
    dict of str to Estimates
        ``mode_connectivity`` from the training error in percentage points (regression: from 100 (1 - R²)),
        ``mode_connectivity_test`` from the test error, ``mode_connectivity_loss`` from the training loss. The standard
        error is that of the paired differences over samples, the curve and t* taken as given. NaN with a reason where
        an end has diverged or the curve did.

    See Also
    --------
    zoarium.measure.barrier.linear_barrier : the straight line, with nothing trained.
    """
    if points < 3:
        raise MeasureError(f"mode connectivity looks between the ends, so it needs points >= 3, found {points}.")
    pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    if not len(pairs):
        return {name: Estimates([]) for name in QUANTITIES}
    parts: dict[str, list[Estimates]] = {}
    for rows in pair_chunks(cohort, pairs, data, points, bends):
        curves = fit_curve(
            cohort, rows, data, curve=curve, bends=bends, epochs=epochs, batch_size=batch_size, lr=lr,
            momentum=momentum, weight_decay=weight_decay, schedule=schedule, clip_norm=clip_norm, seed=seed,
        )  # fmt: skip
        lost = (~curves.control.isfinite().flatten(1).all(1)).tolist()
        reasons = [
            end or ("training of the curve diverged; lower lr or set clip_norm" if gone else "")
            for end, gone in zip(not_finite(cohort, rows), lost, strict=True)
        ]
        train = curves.points(data, points, split="train")
        values = {
            "mode_connectivity": departure(train, "error", reasons),
            "mode_connectivity_loss": departure(train, "loss", reasons),
            "mode_connectivity_test": departure(curves.points(data, points, split="test"), "error", reasons),
        }
        for quantity, estimates in values.items():
            parts.setdefault(quantity, []).append(estimates)
    return {quantity: concatenate(chunks) for quantity, chunks in parts.items()}


def departure(curve: CurvePoints, quantity: Literal["loss", "error"], reasons: Sequence[str]) -> Estimates:
    """(l_0 + l_1)/2 - l_t at the t where it is largest in size, for each of m curves."""
    values = curve[quantity]  # (m, T, N)
    means = values.mean(2, dtype=torch.float64)  # (m, T)
    gap = ((means[:, :1] + means[:, -1:]) / 2 - means).nan_to_num(0.0)
    size = gap.abs()
    largest = size >= size.amax(1, keepdim=True) * (1 - 1e-9)
    worst = gap.where(largest, torch.inf).argmin(1)  # (m,); of equal gaps the barrier, whatever the rounding
    at_worst = values[torch.arange(len(values)), worst].double()
    return paired_mean((values[:, 0].double() + values[:, -1].double()) / 2 - at_worst, reasons)
