"""Both ends of the spectrum of n symmetric matrices, by n Lanczos iterations run as one, with bounds on their errors.

    A Q_j = Q_j T_j + β_j q_{j+1} e_jᵀ,      θ_1 >= ... >= θ_j the eigenvalues of T_j,      θ_1 <= λ_1

All earlier vectors are orthogonalised against, so no eigenvalue appears twice (Lanczos, "An iteration method for the
solution of the eigenvalue problem", 1950; Parlett, "The Symmetric Eigenvalue Problem", 1998, section 13).

When to stop. A small residual shows that *an* eigenvalue is near θ_1, not that none is larger: the top stays hidden for
a while where the random start is nearly orthogonal to its eigenvector u. On trained perceptrons a residual of 1 %
stopped at the second eigenvalue, up to 30 % too low, in one model of 200. So the bound here is on the top itself (van
Dorsselaer, Hochstenbach & van der Vorst, "Computing probabilistic bounds for extreme eigenvalues of symmetric matrices
with the Lanczos method", 2000). As q_{j+1} = P_j(A) q_1 with P_j(λ) = Π (λ - θ_i) / Π β_i has length one,

    1 >= |uᵀ q_{j+1}| = P_j(λ_1) |uᵀ q_1|,      and |uᵀ q_1| >= δ = η √(π / 2p) with probability at least 1 - η,

so that, but for a chance of η, λ_1 is at most the λ beyond θ_1 at which P_j(λ) = 1/δ. The other end is the same for -A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoarium.measure.curvature.products import Products

CHANCE = 1e-3  # η, with which the start hides an end of the spectrum
DEAD_WEIGHT = 0.25  # share of matrices that are done at which the stack is worth copying without them
FIRST_CHECK = 5  # steps before a first look
ROUNDING = 16.0  # a bound below this many units of rounding of the largest eigenvalue is as small as it gets


@dataclass(frozen=True)
class Extremes:
    """Ends of n spectra, each within its bound but for a chance of 1 in 1,000; all are (n,).

    Parameters
    ----------
    top, bottom : ndarray
        Largest and smallest Ritz value, which lie inside the spectrum: ``top <= λ_1 <= top + top_bound``.
    top_bound, bottom_bound : ndarray
        Bounds on their errors.
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


def lanczos_extremes(products: Products, start: Tensor, *, tol: float = 0.03, max_steps: int = 200) -> Extremes:
    """Largest and smallest eigenvalue of each of n matrices.

    Parameters
    ----------
    products : Products
        n symmetric (p, p) matrices.
    start : Tensor
        Normal random vectors (n, p).
    tol : float, default 0.03
        A matrix is done when the bounds on the error of its top, and of whichever end is largest by magnitude, are
        below `tol` times the eigenvalue. Typical errors are a hundred times smaller than the bounds.
    max_steps : int, default 200
        Most products a matrix; never more than p.

    Notes
    -----
    Cost: one product a step and O(n p j) for step j; memory (n, steps, p). Matrices that are done leave the stack.
    """
    n, p = start.shape
    steps = max(1, min(max_steps, p))
    eps = torch.finfo(start.dtype).eps
    enough = -math.log(CHANCE * math.sqrt(math.pi / (2 * p)))  # log 1/δ
    ritz = np.full((n, steps), np.nan)  # ascending, the first `spent` of each row
    log_beta, spent, done = np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    rows = np.arange(n)
    basis = start.new_empty(n, min(steps, 12) + 1, p)
    basis[:, 0] = start / start.norm(dim=1, keepdim=True)
    t = np.zeros((n, steps + 1, steps + 1))
    for j in range(steps):
        if j + 1 >= basis.shape[1]:
            basis = torch.cat([basis, basis.new_empty(len(rows), min(12, steps - j), p)], 1)
        w = products(basis[:, j])
        size, inner = w.norm(dim=1), _orthogonalise(w, basis[:, : j + 1])
        rest = w.norm(dim=1)
        if bool((rest < 0.5 * size).any()):  # much cancelled: what is left needs a second pass (Daniel et al. 1976)
            _orthogonalise(w, basis[:, : j + 1])
            rest = w.norm(dim=1)
        basis[:, j + 1] = w / rest.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(1)
        beta = rest.double().numpy()
        t[rows, j, j] = inner[:, j].double().numpy()
        t[rows, j, j + 1] = t[rows, j + 1, j] = beta
        open_rows = rows[~done[rows]]
        log_beta[open_rows] += np.log(np.maximum(beta[~done[rows]], np.finfo(float).tiny))
        if j + 1 < min(FIRST_CHECK, steps):
            continue
        theta = np.linalg.eigvalsh(t[open_rows, : j + 1, : j + 1])
        ritz[open_rows, : j + 1], spent[open_rows] = theta, j + 1
        done[open_rows] = _converged(theta, log_beta[open_rows] + enough, tol, eps)
        if done[rows].all():
            break
        if done[rows].mean() > DEAD_WEIGHT and j + 1 < steps:
            left = np.flatnonzero(~done[rows])
            products = products.select(left.tolist())
            basis, rows = basis[:, : j + 2].index_select(0, torch.from_numpy(left)), rows[left]
    top, bottom = ritz[np.arange(n), spent - 1], ritz[:, 0]
    floor = eps * np.maximum(np.abs(top), np.abs(bottom))
    top_bound = np.where(floor == 0, 0.0, _reach(top[:, None] - ritz, log_beta + enough) + floor)
    bottom_bound = np.where(floor == 0, 0.0, _reach(ritz - bottom[:, None], log_beta + enough) + floor)
    return Extremes(top, top_bound, bottom, bottom_bound, spent, done)


def _orthogonalise(w: Tensor, basis: Tensor) -> Tensor:
    """Take from `w` (n, p) its parts along `basis` (n, j, p), in place; returns them, (n, j)."""
    inner = torch.bmm(w.unsqueeze(1), basis.mT)  # (n, 1, j)
    w.unsqueeze(1).baddbmm_(inner, basis, alpha=-1)
    return inner.squeeze(1)


def _log_polynomial(gaps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Σ_i log(x + gap_i): log |P_j| without its β, a distance `x` (n,) outside the spectrum of T."""
    with np.errstate(divide="ignore"):
        return np.log(x[:, None] + gaps).sum(1)


def _converged(theta: np.ndarray, wanted: np.ndarray, tol: float, eps: float) -> np.ndarray:
    """Which of n matrices are done: the bounds need not be known for it, only that P_j is large enough at `tol`."""
    top, bottom = theta[:, -1], theta[:, 0]
    floor = ROUNDING * eps * np.maximum(np.abs(top), np.abs(bottom))
    down = theta - bottom[:, None]

    top_done = _log_polynomial(top[:, None] - theta, np.maximum(tol * np.abs(top), floor)) >= wanted
    bottom_done = _log_polynomial(down, np.maximum(tol * np.abs(bottom), floor)) >= wanted
    top_larger = _log_polynomial(down, np.maximum(top + bottom, 0.0)) >= wanted  # the bottom cannot be below -top
    return (top_done & (bottom_done | top_larger)) | (floor == 0)


def _reach(gaps: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Solve Σ_i log(x + gap_i) = wanted for x (n,), where one of the gaps (n, j) is 0, by Newton's method in log x.

    The left side is convex and increasing in log x with slope at least 1, so steps come down on the root from above.
    """
    there = ~np.isnan(gaps)
    gaps = np.where(there, gaps, 0.0)
    log_x = np.log(np.maximum(gaps.max(1), np.finfo(float).tiny))
    for _ in range(60):
        x = np.exp(log_x)[:, None]
        value, slope = np.log(x + gaps).sum(1, where=there), (x / (x + gaps)).sum(1, where=there)
        step = (value - wanted) / slope
        log_x = log_x - step
        if np.abs(step).max(initial=0.0) < 1e-3:
            break
    return np.exp(log_x)
