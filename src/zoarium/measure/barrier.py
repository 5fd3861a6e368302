"""The barrier on the straight line between two models.

    max_t [ L((1-t) w_a + t w_b) - ((1-t) L(w_a) + t L(w_b)) ]

Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 2020; Entezari et al., "The role of
permutation invariance in linear mode connectivity", 2022, for the chord and for the barrier after matching the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError, NetError
from zoarium._core.estimates import Estimates, concatenate
from zoarium.data.dataset import Dataset
from zoarium.measure.alignment import Method, match
from zoarium.measure.paths.curves import CurvePoints, straight
from zoarium.measure.paths.samples import not_finite, pair_chunks, paired_mean
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

CHECKED = 256  # training inputs on which a permuted model is compared with the original

QUANTITIES = ("linear_barrier", "aligned_barrier", "linear_error_barrier", "aligned_error_barrier")


@measure(
    "linear_barrier", scope="pair",
    quantities=QUANTITIES,
    reference="Frankle et al. 2020; Entezari et al. 2022; Ainsworth et al. 2023, 'Git Re-Basin'",
    cost="two forward passes a pair and point",
)  # fmt: skip
def linear_barrier(
    cohort: Cohort,
    pairs: Tensor,
    data: Dataset,
    *,
    points: int = 25,
    split: Literal["train", "test"] = "test",
    matching: Method = "weight",
    seed: int = 0,
) -> dict[str, Estimates]:
    """Rise of loss and error over the chord, on the line between two models, as they are and after alignment.

    Parameters
    ----------
    points : int, default 25
        Equidistant points of the line, ends included.
    split : {"train", "test"}, default "test"
    matching : {"weight", "activation"}, default "weight"
        How units are matched, see :mod:`zoarium.measure.alignment`.
    seed : int, default 0
        Draws the order of the layers in weight matching.

    Returns
    -------
    dict of str to Estimates
        ``linear_barrier`` and ``aligned_barrier`` in nats (or squared error), the two error barriers in percentage
        points. The largest of the points, hence at least 0. The standard error is that of the paired differences over
        samples at the worst point, its choice taken as given.

    Notes
    -----
    Batch-norm statistics are computed anew at every point. Without alignment a barrier says little: two copies of one
    function can lie apart.
    """
    if points < 2:
        raise MeasureError(f"a barrier needs at least the 2 ends, found points={points}.")
    pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    if not len(pairs):
        return {name: Estimates([]) for name in QUANTITIES}
    parts: dict[str, list[Estimates]] = {}
    for rows in pair_chunks(cohort, pairs, data, points):
        reasons = not_finite(cohort, rows)
        a = cohort.select(rows[:, 0])
        lines: dict[str, Cohort | str] = {"linear": cohort.select(rows[:, 1])}
        try:
            lines["aligned"] = match(cohort, rows, method=matching, x=data.train.x[:CHECKED], seed=seed)
        except NetError as error:
            lines["aligned"] = str(error)
        for name, b in lines.items():
            if isinstance(b, str):
                loss = error = Estimates(np.full(len(rows), np.nan), np.nan, reason=[r or b for r in reasons])
            else:
                line = straight(a, b).points(data, points, split=split)
                loss, error = barrier(line, "loss", reasons), barrier(line, "error", reasons)
            parts.setdefault(f"{name}_barrier", []).append(loss)
            parts.setdefault(f"{name}_error_barrier", []).append(error)
    return {quantity: concatenate(chunks) for quantity, chunks in parts.items()}


def barrier(line: CurvePoints, quantity: Literal["loss", "error"], reasons: Sequence[str]) -> Estimates:
    """Largest height over the chord between the ends, for each of m lines; NaN where `reasons` names one."""
    values = line[quantity]  # (m, T, N)
    t = torch.from_numpy(line.t)
    means = values.mean(2, dtype=torch.float64)  # (m, T)
    worst = (means - (1 - t) * means[:, :1] - t * means[:, -1:]).nan_to_num(-torch.inf).argmax(1)  # (m,)
    at = t[worst].unsqueeze(1)
    chord = (1 - at) * values[:, 0].double() + at * values[:, -1].double()
    return paired_mean(values[torch.arange(len(values)), worst].double() - chord, reasons)
