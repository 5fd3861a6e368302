"""Stochastic traces with an honest standard error: Hutch++ and Hutchinson's estimator, for n matrices at a time.

    tr(A) = tr(Qᵀ A Q) + tr((I - QQᵀ) A (I - QQᵀ)),      Q = orth(A S)

with the first part exact and the second by Rademacher probes g: gᵀ(I - QQᵀ) A (I - QQᵀ) g. With no sketch S it is
Hutchinson's estimator. Meyer, Musco, Musco & Woodruff, "Hutch++: optimal stochastic trace estimation", 2021, alg. 1.

When to stop. Stopping as soon as a running mean looks settled favours lucky draws and understates the error. Here a
pilot of probes fixes how many are needed (Stein, "A two-sample test for a linear hypothesis whose power is independent
of the variance", 1945); all of them are then run and none is looked at before. The spread of the pilot's draws would
itself be a lucky or unlucky draw, and low where their mean is low, so the number comes from the norm of the residual R,

    Var(gᵀ R g) = 2 (‖R‖_F² - Σ_i R_ii²) <= 2 ‖R‖_F² = 2 E‖R g‖²,

which the same products estimate twice as well. The standard error reported is that of all draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoarium.measure.curvature.products import Products

PILOT = 16  # probes that decide how many more are needed
MARGIN = 1.15  # for the chance in the pilot's estimate of the norm
NEARLY_DIAGONAL = 5.0  # a spread this far below the norm is no luck: the diagonal, which Rademacher probes see exactly


@dataclass(frozen=True)
class Traces:
    """Traces of n matrices with standard errors and products spent; each (n,)."""

    value: np.ndarray
    stderr: np.ndarray
    products: np.ndarray


def hutchpp(
    products: Products,
    generators: Sequence[torch.Generator],
    *,
    sketch: int = 10,
    rel_stderr: float = 0.02,
    max_products: int = 300,
) -> Traces:
    """Trace of each of n matrices to a requested relative standard error.

    Parameters
    ----------
    products : Products
        n symmetric (p, p) matrices.
    generators : sequence of torch.Generator
        One for each matrix, so that no value depends on its neighbours.
    sketch : int, default 10
        Columns of S, each costing two products; 0 for Hutchinson's estimator.
    rel_stderr : float, default 0.02
        Wanted standard error over the absolute value of the trace.
    max_products : int, default 300
        Most products a matrix. A matrix that would need more gets what this affords, and the larger error it has.

    Notes
    -----
    Where fewer than that many products are left to do, the p unit vectors give the trace exactly and are used instead.
    """
    n, p = products.n, products.size
    if p <= 2 * sketch + PILOT:
        return Traces(_all_columns(products), np.zeros(n), np.full(n, p))
    sketch = max(0, min(sketch, (max_products - PILOT) // 2))
    basis, exact = _sketched(products, generators, sketch)
    most = max(2, max_products - 2 * sketch)
    draws, norms = _probe(products, basis, generators, min(PILOT, most))
    wanted = [min(most, _needed(exact[i], draws[i], norms[i], rel_stderr)) for i in range(n)]
    known = np.full(n, np.nan)
    columns = [i for i in range(n) if wanted[i] - len(draws[i]) >= p]  # the whole matrix costs less than its probes
    if columns:
        known[columns] = _all_columns(products.select(columns))
    rows = [i for i in range(n) if wanted[i] > len(draws[i]) and i not in columns]
    while rows:  # each round runs the probes that all the rows left still need
        count = min(wanted[i] - len(draws[i]) for i in rows)
        some = None if basis is None else basis[torch.as_tensor(rows)]
        more, _ = _probe(products.select(rows), some, [generators[i] for i in rows], count)
        for i, values in zip(rows, more, strict=True):
            draws[i] = np.concatenate([draws[i], values])
        rows = [i for i in rows if wanted[i] > len(draws[i])]
    spent = 2 * sketch + np.array([len(d) for d in draws])
    value = exact + np.array([d.mean() for d in draws])
    stderr = np.array([d.std(ddof=1) / len(d) ** 0.5 for d in draws])
    whole = ~np.isnan(known)
    return Traces(np.where(whole, known, value), np.where(whole, 0.0, stderr), np.where(whole, spent + p, spent))


def _needed(exact: float, pilot: np.ndarray, norms: np.ndarray, rel_stderr: float) -> int:
    """Probes for the wanted standard error, from draws gᵀ R g and norms ‖R g‖² of a pilot."""
    variance = min(MARGIN * 2 * norms.mean(), NEARLY_DIAGONAL * pilot.var(ddof=1))
    target = rel_stderr * abs(exact + pilot.mean())
    return len(pilot) if variance == 0 else math.ceil(min(variance / max(target, 1e-300) ** 2, 1e9))


def _signs(generators: Sequence[torch.Generator], p: int, dtype: torch.dtype) -> Tensor:
    """One Rademacher vector a model, (n, p)."""
    return torch.stack([torch.randint(0, 2, (p,), generator=g) for g in generators]).to(dtype).mul_(2).sub_(1)


def _sketched(
    products: Products, generators: Sequence[torch.Generator], sketch: int
) -> tuple[Tensor | None, np.ndarray]:
    """Q (n, p, k) and tr(Qᵀ A Q)."""
    if sketch == 0:
        return None, np.zeros(products.n)
    image = torch.stack([products(_signs(generators, products.size, products.dtype)) for _ in range(sketch)], 2)
    basis = torch.linalg.qr(image).Q
    inner = [(basis[:, :, k] * products(basis[:, :, k])).sum(1, dtype=torch.float64) for k in range(sketch)]
    return basis, torch.stack(inner).sum(0).numpy()


def _probe(
    products: Products, basis: Tensor | None, generators: Sequence[torch.Generator], count: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`count` draws of gᵀ R g, and ‖R g‖² of each, for R = (I - QQᵀ) A (I - QQᵀ) of each matrix."""

    def project(v: Tensor) -> Tensor:
        return v if basis is None else v - torch.bmm(basis, torch.bmm(basis.mT, v.unsqueeze(2))).squeeze(2)

    draws, norms = [], []
    for _ in range(count):
        g = project(_signs(generators, products.size, products.dtype))
        image = project(products(g))
        draws.append((g * image).sum(1, dtype=torch.float64))
        norms.append(image.square().sum(1, dtype=torch.float64))
    return list(torch.stack(draws, 1).numpy()), list(torch.stack(norms, 1).numpy())


def _all_columns(products: Products) -> np.ndarray:
    """Traces from the products with every unit vector."""
    total = torch.zeros(products.n, dtype=torch.float64)
    for i in range(products.size):
        unit = torch.zeros(products.n, products.size, dtype=products.dtype)
        unit[:, i] = 1
        total += products(unit)[:, i]
    return total.numpy()
