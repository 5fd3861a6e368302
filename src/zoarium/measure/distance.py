"""Distances between the weights of two models.

    l2 = ‖θ_a - θ_b‖,    cosine = 1 - <θ_a, θ_b> / (‖θ_a‖ ‖θ_b‖)

L2 as in Yang et al., "Taxonomizing local versus global structure in neural network loss landscapes", 2021. Networks
from different initial weights are far apart in part because their units come in another order;
``aligned_l2_distance`` removes that part by weight matching (:mod:`zoarium.measure.alignment`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import NetError
from zoarium._core.estimates import Estimates
from zoarium.data.dataset import Dataset
from zoarium.measure.alignment import match, permutation_spec
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

CHUNK = 1 << 25  # numbers of each side of a chunk of pairs held at once


@measure(
    "weight_distance", scope="pair", quantities=("l2_distance", "cosine_distance", "aligned_l2_distance"),
    reference="Yang et al. 2021, 'Taxonomizing local versus global structure in neural network loss landscapes'",
    needs_data=False, cost="one weight matching a pair",
)  # fmt: skip
def weight_distance(
    cohort: Cohort, pairs: Tensor, data: Dataset | None = None, *, seed: int = 0
) -> dict[str, Estimates]:
    """L2 and cosine distance of the parameters, and L2 after the hidden units are matched.

    Parameters
    ----------
    seed : int, default 0
        Draws the order of the layers in weight matching.

    Returns
    -------
    dict of str to Estimates
        ``l2_distance``, ``cosine_distance`` (0 to 2; NaN for a model of zero weights), ``aligned_l2_distance`` (never
        more than the plain one up to rounding; NaN with the reason where symmetries cannot be derived). All exact.
    """
    pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    try:
        spec, underivable = permutation_spec(cohort.module), ""
    except NetError as error:
        spec, underivable = None, str(error)
    x = data.train.x[:64] if data is not None else None
    l2, cosine, aligned = (np.full(len(pairs), np.nan) for _ in range(3))
    size = max(1, CHUNK // max(1, cohort.layout.size))
    for start in range(0, len(pairs), size):
        rows = pairs[start : start + size]
        here = slice(start, start + len(rows))
        a, b = (cohort.layout.flatten({k: v[rows[:, i]] for k, v in cohort.params.items()}).double() for i in (0, 1))
        l2[here] = (a - b).norm(dim=1).numpy()
        cosine[here] = _cosine(a, b).numpy()
        if spec is not None:
            aligned[here] = (a - match(cohort, rows, x=x, seed=seed).flat.double()).norm(dim=1).numpy()
    bad = ["" if np.isfinite(v) else _blame(cohort, pair) for v, pair in zip(l2, pairs.tolist(), strict=True)]
    l2[~np.isfinite(l2)] = np.nan
    aligned[~np.isfinite(aligned)] = np.nan
    zero = [r or ("a model has zero weights" if np.isnan(c) else "") for r, c in zip(bad, cosine, strict=True)]
    return {
        "l2_distance": Estimates(l2, np.where(np.isnan(l2), np.nan, 0.0), reason=bad),
        "cosine_distance": Estimates(cosine, np.where(np.isnan(cosine), np.nan, 0.0), reason=zero),
        "aligned_l2_distance": Estimates(
            aligned, np.where(np.isnan(aligned), np.nan, 0.0), reason=[r or underivable for r in bad]
        ),
    }


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos between rows, by the chord of the unit vectors: exact to rounding for equal rows, unlike 1 - <a, b>."""
    return (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().sum(1) / 2


def _blame(cohort: Cohort, pair: list[int]) -> str:
    for row in pair:
        if not all(bool(v[row].isfinite().all()) for v in cohort.params.values()):
            return f"weights of {cohort.ids[row]} are not finite"
    return "the distance is too large for its number type"
