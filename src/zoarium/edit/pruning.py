"""One-shot magnitude pruning: the smallest weights become zero.

    θ_j ← 0  for the k = round(fraction · m) entries with the smallest |θ_j|

Han et al., "Learning both weights and connections for efficient neural networks", 2015; global against layer-wise
scope as in Blalock et al., "What is the state of neural network pruning?", 2020. No training follows.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import ZoariumError
from zoarium.zoo.cohort import Cohort


class EditError(ZoariumError):
    """An edit of a model that cannot be made as asked."""


def prunable(cohort: Cohort) -> list[str]:
    """Names of the parameters that pruning may touch: matrices and kernels, not biases or normalisation vectors."""
    return [name for name, shape in cohort.layout.shapes if len(shape) >= 2]


def magnitude_prune(cohort: Cohort, fraction: float, *, scope: Literal["global", "layer"] = "global") -> Cohort:
    """Set the smallest weights of every model to zero.

    Parameters
    ----------
    cohort : Cohort
        Models of one architecture. Biases and normalisation parameters (vectors) are kept.
    fraction : float in [0, 1]
        Share of the prunable weights to remove.
    scope : {"global", "layer"}, default "global"
        Compare weights over the whole model, or within each tensor.

    Returns
    -------
    Cohort
        Same ids and shapes. In every model (every tensor, for "layer") exactly ``round(fraction * m)`` of m weights
        are chosen; among equal magnitudes the one that comes first in the layout goes first.

    Raises
    ------
    EditError
        For a fraction outside [0, 1] or an unknown scope.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from zoarium.zoo.cohort import Cohort
    >>> cohort = Cohort.from_modules([nn.Linear(10, 10)])
    >>> pruned = magnitude_prune(cohort, 0.9)
    >>> int((pruned.params["weight"] == 0).sum()), int((pruned.params["bias"] == 0).sum())
    (90, 0)
    """
    if not 0.0 <= fraction <= 1.0:
        raise EditError(f"fraction must lie between 0 and 1, found {fraction}; 0.9 removes nine weights in ten.")
    if scope not in ("global", "layer"):
        raise EditError(f"unknown scope {scope!r}. Known: global, layer.")
    names = prunable(cohort)
    pools = [names] if scope == "global" else [[name] for name in names]
    params = dict(cohort.params)
    for pool in pools:
        if not pool:
            continue
        flat = torch.cat([cohort.params[name].flatten(1) for name in pool], dim=1)  # (n, m)
        pruned = zero_smallest(flat, round(fraction * flat.shape[1]))
        sizes = [math.prod(cohort.params[name].shape[1:]) for name in pool]
        for name, piece in zip(pool, pruned.split(sizes, dim=1), strict=True):
            params[name] = piece.reshape(cohort.params[name].shape)
    return cohort.with_params(params)


def zero_smallest(rows: Tensor, count: int) -> Tensor:
    """A copy of ``rows`` (n, m) in which the `count` entries of smallest magnitude of each row are zero."""
    if count <= 0:
        return rows.clone()
    # a broken weight is never mistaken for a small one
    size = rows.abs().nan_to_num(nan=torch.inf)
    # NumPy selects in linear time, many times faster than torch sorts; ties are then settled by position
    largest = torch.from_numpy(np.partition(size.cpu().numpy(), count - 1, axis=1)[:, count - 1]).to(size)
    gone, tied = size < largest[:, None], size == largest[:, None]
    gone |= tied & (tied.cumsum(1) <= (count - gone.sum(1))[:, None])
    return rows.masked_fill(gone, 0.0)
