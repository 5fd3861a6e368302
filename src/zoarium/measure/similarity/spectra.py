"""Distance of the spectra of two models: needs no names, no equal widths, no order of the units.

With the singular values sigma_1 >= ... >= sigma_k of a matrix over their root mean square, read as a distribution, and
Q its quantile function, two layers are as far apart as 2-Wasserstein distance says:

    d(A, B)^2 = int_0^1 (Q_A(t) - Q_B(t))^2 dt

Layers are paired so that the sum of d^2 over all pairs is least (one to one; the model with fewer matrices decides how
many pairs there are), and the distance of two models is the root of the mean of d^2 over the pairs. It is zero for
copies that were permuted, rotated or rescaled layer by layer. Independent models of one architecture and recipe are
close too, so this tells recipes and shapes apart, not descent.

Peyré & Cuturi, "Computational optimal transport", 2019 (section 2.6: Wasserstein distance on the line).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from torch import Tensor

from zoarium.measure.similarity.sources import Source
from zoarium.measure.spectra import singular_values
from zoarium.measure.weight_matrices import why_left_out

POINTS = 128  # of a quantile function


def spectral_quantiles(tensor: Tensor) -> np.ndarray:
    """Quantile function of the singular values over their root mean square, at `POINTS` midpoints.

    Parameters
    ----------
    tensor : Tensor
        Two axes or more, finite, not all zero.

    Returns
    -------
    array of shape (128,), ascending; the mean of its squares is about 1

    Examples
    --------
    >>> import torch
    >>> float(spectral_quantiles(3 * torch.eye(4)).max())
    1.0
    """
    sigma = singular_values(tensor)[::-1]
    at = (np.arange(POINTS) + 0.5) / POINTS
    middles = (np.arange(len(sigma)) + 0.5) / len(sigma)
    return np.interp(at, middles, sigma / np.sqrt(np.mean(sigma**2)))


def spectral_distances(sources: Sequence[Source]) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every pair of models, and how many matrices it rests on.

    Parameters
    ----------
    sources : sequence of Source
        n models; each tensor is read once.

    Returns
    -------
    distances : array of shape (n, n), NaN where a model has no matrix
    matched : array of shape (n, n)
    """
    from scipy.optimize import linear_sum_assignment

    spectra: list[np.ndarray] = []
    for source in sources:
        found = []
        for name in source.shapes:
            tensor = source.tensor(name)
            if not why_left_out(name, tensor):
                found.append(spectral_quantiles(tensor))
            del tensor  # or it would be held while the next one is read
        spectra.append(np.array(found).reshape(-1, POINTS))
    n = len(sources)
    distances, matched = np.full((n, n), np.nan), np.zeros((n, n), dtype=int)
    for a, b in combinations(range(n), 2):
        one, other = spectra[a], spectra[b]
        if not len(one) or not len(other):
            continue
        squares = np.stack([np.square(one - q).mean(1) for q in other], axis=1)  # (layers of a, layers of b)
        chosen = linear_sum_assignment(squares)
        distances[a, b] = distances[b, a] = np.sqrt(squares[chosen].mean())
        matched[a, b] = matched[b, a] = len(chosen[0])
    return distances, matched
