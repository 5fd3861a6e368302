"""Both ends of the spectrum of n symmetric matrices, by n Lanczos iterations run as one.

    A Q_j = Q_j T_j + β_j q_{j+1} e_jᵀ,      T_j s = θ s      =>      ‖A (Q_j s) - θ (Q_j s)‖ = β_j |s_j|

so that an eigenvalue of A lies within β_j |s_j| of the Ritz value θ. All earlier vectors are orthogonalised against, so
no eigenvalue appears twice. Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950; Parlett,
"The Symmetric Eigenvalue Problem", 1998, section 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoarium.measure.products import Products

FIRST_CHECK = 8  # steps before a first look at convergence, so that an unlucky start has time to show the top
ROUNDING = 16.0  # a residual below this many units of rounding of the largest eigenvalue is as small as it gets


@dataclass(frozen=True)
class Extremes:
    """Ends of n spectra; a bound is on the distance from the value to the nearest eigenvalue. All are (n,).

    Parameters
    ----------
    top, bottom : ndarray
        Largest and smallest Ritz value.
    top_bound, bottom_bound : ndarray
        Residual norms.
    products : ndarray of int
        Products spent on each matrix until it converged.
    converged : ndarray of bool
        Whether the top, and the end that is largest by magnitude, reached the tolerance.
    """

    top: np.ndarray
    top_bound: np.ndarray
    bottom: np.ndarray
    bottom_bound: np.ndarray
    products: np.ndarray
    converged: np.ndarray


def lanczos_extremes(products: Products, start: Tensor, *, tol: float = 1e-3, max_steps: int = 200) -> Extremes:
    """Largest and smallest eigenvalue of each of n matrices.

    Parameters
    ----------
    products : Products
        n symmetric (p, p) matrices.
    start : Tensor
        Random vectors (n, p).
    tol : float, default 1e-3
        A matrix is done when the residual of its top, and of whichever end is largest by magnitude, is below `tol`
        times the eigenvalue. Eigenvalues are then usually right to about `tol` squared.
    max_steps : int, default 200
        Most products a matrix; never more than p.

    Notes
    -----
    Cost: one product a step and O(n p j) for step j; memory (n, steps, p). Matrices that are done leave the stack.
    A residual shows that *an* eigenvalue is near, not that none is larger: only a start vector all but orthogonal to
    the top could hide it, which for a random one is improbable.
    """
    n, p = start.shape
    steps = max(1, min(max_steps, p))
    top, top_bound, bottom, bottom_bound = np.zeros((4, n))
    result = Extremes(top, top_bound, bottom, bottom_bound, np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool))
    rows = np.arange(n)
    basis = start.new_empty(n, min(steps, 32) + 1, p)
    basis[:, 0] = start / start.norm(dim=1, keepdim=True)
    alpha, beta = np.zeros((n, steps)), np.zeros((n, steps))
    look = min(FIRST_CHECK, steps)
    for j in range(steps):
        if j + 1 >= basis.shape[1]:
            basis = torch.cat([basis, basis.new_empty(len(rows), min(32, steps - j), p)], 1)
        w = products(basis[:, j])
        size, inner = w.norm(dim=1), _orthogonalise(w, basis[:, : j + 1])
        alpha[rows, j] = inner[:, j].double().numpy()
        rest = w.norm(dim=1)
        if bool((rest < 0.5 * size).any()):  # much cancelled: what is left needs a second pass (Daniel et al. 1976)
            _orthogonalise(w, basis[:, : j + 1])
            rest = w.norm(dim=1)
        beta[rows, j] = rest.double().numpy()
        basis[:, j + 1] = w / rest.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(1)
        if j + 1 < look:
            continue
        look = min(steps, look + max(1, look // 8))
        done = _read(result, rows, alpha[rows, : j + 1], beta[rows, : j + 1], tol, torch.finfo(w.dtype).eps)
        rows = rows[~done]
        if len(rows) == 0:
            break
        if done.any() and j + 1 < steps:
            left = np.flatnonzero(~done)
            products = products.select(left.tolist())
            basis = basis[torch.from_numpy(left)]
    return result


def _orthogonalise(w: Tensor, basis: Tensor) -> Tensor:
    """Take from `w` (n, p) its parts along `basis` (n, j, p), in place; returns them, (n, j)."""
    inner = torch.bmm(w.unsqueeze(1), basis.mT)  # (n, 1, j)
    w.unsqueeze(1).baddbmm_(inner, basis, alpha=-1)
    return inner.squeeze(1)


def _read(
    result: Extremes, rows: np.ndarray, alpha: np.ndarray, beta: np.ndarray, tol: float, eps: float
) -> np.ndarray:
    """Write what is known of `rows` after j steps into `result`; returns which of them are done, (len(rows),)."""
    j = alpha.shape[1]
    t = np.zeros((len(rows), j, j))
    diagonal = np.arange(j)
    t[:, diagonal, diagonal] = alpha
    t[:, diagonal[1:], diagonal[:-1]] = t[:, diagonal[:-1], diagonal[1:]] = beta[:, :-1]
    theta, s = np.linalg.eigh(t)  # ascending
    residual = beta[:, -1:] * np.abs(s[:, -1, :])
    radius = np.abs(theta[:, [0, -1]]).max(1)
    floor = eps * radius
    top, bottom = theta[:, -1], theta[:, 0]
    top_bound, bottom_bound = residual[:, -1] + floor, residual[:, 0] + floor
    top_done = top_bound <= np.maximum(tol * np.abs(top), ROUNDING * floor)
    bottom_done = bottom_bound <= np.maximum(tol * np.abs(bottom), ROUNDING * floor)
    top_larger = top - top_bound > np.abs(bottom) + bottom_bound
    done = top_done & (bottom_done | top_larger)
    result.top[rows], result.top_bound[rows] = top, top_bound
    result.bottom[rows], result.bottom_bound[rows] = bottom, bottom_bound
    result.products[rows], result.converged[rows] = j, done
    return done
