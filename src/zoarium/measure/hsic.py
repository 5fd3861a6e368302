"""The arithmetic of debiased CKA, block by block of samples: see :mod:`zoarium.measure.cka` for the equations.

    HSIC(K, L) m(m-3) = Σ_{i≠j} A_ij B_ij,    A = P Qᵀ off its diagonal,    P = [X, u, 1],  Q = [X, 1, u]

Models are rows, and three routes give the same sums:

* ``all``: one Gram product of the n rows vec(A), cheapest for most of the pairs;
* ``gram``: A of each model, then Σ_j A_ij B_ij for a list of pairs;
* ``narrow``: Σ_j A_ij B_ij = p_iᵀ (Q_XᵀQ_Y) p'_i, which never forms A, for a list of pairs of narrow features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError

Route = Literal["all", "gram", "narrow"]

GROUP = 16  # samples pooled in the jackknife
LEAST = 8  # samples a block needs
AT_ONCE = 2**18  # numbers a temporary may hold: a few fit in a processor's cache
IN_MEMORY = 2**26  # numbers of matrices A worth keeping for all models; above it they are formed row by row
CONSTANT = "features are constant"
NOT_FINITE = "features are not finite"


def blocks_of(samples: int, block: int | None) -> list[slice]:
    """Cut `samples` rows into blocks of at most `block`, as equal as they can be."""
    if samples < LEAST:
        raise MeasureError(f"CKA needs at least {LEAST} samples, found {samples}; give it more data.")
    if block is not None and block < 2 * LEAST:
        raise MeasureError(f"CKA needs a block of at least {2 * LEAST} samples, found block={block}.")
    edges = np.linspace(0, samples, -(-samples // (block or samples)) + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def cheapest_route(n: int, pairs: int, width: float, block: int) -> Route:
    """Which route takes least time for `pairs` of `n` models with features `width` wide.

    Counts operations a sample; those that wait for memory instead of computing count tenfold.
    """
    operations: dict[Route, float] = {
        "all": 2 * n**2 * block + 2 * n * block * width,
        "gram": 2 * n * block * width + 20 * (pairs + n) * block,
        "narrow": (pairs + n) * width * (8 * width + 200),
    }
    return min(operations, key=lambda route: operations[route])


@dataclass(frozen=True)
class Prepared:
    """One block of m samples of the models `at`, as factors of their matrices A or as the matrices themselves."""

    at: slice
    p: Tensor  # (k, m, d + 2)
    q: Tensor  # (k, m, d + 2)
    gram: Tensor | None  # (k, m, m), diagonal zero

    def panel(self, rows: slice) -> Tensor:
        """Some rows of every A, (k, r, m)."""
        if self.gram is not None:
            return self.gram[:, rows]
        panel = torch.bmm(self.p[:, rows], self.q.mT)
        panel[:, torch.arange(panel.shape[1]), torch.arange(panel.shape[2])[rows]] = 0
        return panel


class HsicSums:
    """HSIC of pairs of n models, summed over blocks of samples.

    Parameters
    ----------
    n : int
        Models.
    pairs : Tensor of shape (P, 2)
        Rows of models.
    samples : int
        Samples in all blocks together.
    route : {"all", "gram", "narrow"}
    """

    def __init__(self, n: int, pairs: Tensor, samples: int, route: Route) -> None:
        self.n, self.pairs, self.samples, self.route = n, pairs, samples, route
        itself = torch.arange(n).repeat(2, 1).T
        self._extended = torch.cat([pairs, itself])  # the last n are the models with themselves
        self._listed: list[Tensor] = []  # (P + n, groups) of each block
        if route == "all":
            self._product, self._square, self._with_own = torch.zeros(3, n, n, dtype=torch.float64)
            self._own: list[Tensor] = []  # (n,) of each group
        self._scale = torch.zeros(n, dtype=torch.float64)
        self._spread, self._size, self._noise = torch.zeros(3, n, dtype=torch.float64)
        self._finite = torch.ones(n, dtype=torch.bool)
        self._eps = 0.0

    def prepare(self, features: Tensor, at: slice) -> Prepared:
        """Centre one block of features (k, m, d) of the models `at` and factor its matrices."""
        k, m, d = features.shape
        self._eps = torch.finfo(features.dtype).eps * m
        size = features.square().sum((1, 2))
        finite = size.isfinite()
        features = torch.where(finite.view(k, 1, 1), features, 0)
        x = features - features.mean(1, keepdim=True)
        spread = x.square().sum((1, 2))
        if not self._scale[at].any():  # the first block sets each model's unit, lest squares of squares overflow
            self._scale[at] = (m / spread.double()).sqrt().nan_to_num(1, posinf=1)
        x = x * self._scale[at].to(x).view(k, 1, 1)
        own = x.square().sum(2, keepdim=True)  # (k, m, 1)
        total = own.sum(1, keepdim=True)
        u = own / (m - 2) - total / (2 * (m - 1) * (m - 2))
        one = torch.ones_like(u)
        p, q = torch.cat([x, u, one], 2), torch.cat([x, one, u], 2)
        self._finite[at] &= finite & spread.isfinite()
        self._spread[at] += spread.double()
        self._size[at] += size.double()
        self._noise[at] += self._weight(m) * m * (m - 3) * (total.flatten().double() / m).square()
        gram = None
        if self.route == "gram" or (self.route == "all" and (d + 2 > m or self.n * m * m <= IN_MEMORY)):
            gram = torch.bmm(p, q.mT)
            gram.diagonal(dim1=1, dim2=2).zero_()
        return Prepared(at, p if gram is None else p[:0], q if gram is None else q[:0], gram)

    def _weight(self, m: int) -> float:
        return m / self.samples / (m * (m - 3))

    def add(self, parts: Sequence[Prepared]) -> None:
        """Add one block, all of its models together, in order."""
        p = parts[0].p if parts[0].gram is None else parts[0].gram
        m = p.shape[1]
        groups = [slice(a, min(a + GROUP, m)) for a in range(0, m, GROUP)]
        if self.route == "all":
            for rows in groups:
                panel = _stack([part.panel(rows).flatten(1) for part in parts])  # (n, r m)
                self._add_product((panel @ panel.T).double() * self._weight(m))
            return
        pooled = self._pooled_gram(parts, groups) if self.route == "gram" else self._pooled_narrow(parts, groups)
        self._listed.append(pooled.double() * self._weight(m))

    def _add_product(self, h: Tensor) -> None:
        own = h.diagonal().clone()
        self._product += h
        self._square += h.square()
        self._with_own += h * own.unsqueeze(1)
        self._own.append(own)

    def _pooled_gram(self, parts: Sequence[Prepared], groups: Sequence[slice]) -> Tensor:
        """Σ over each group of Σ_j A_ij B_ij, (P + n, groups)."""
        out = []
        for rows in groups:
            panel = _stack([part.panel(rows).flatten(1) for part in parts])  # (n, r m)
            step = max(1, AT_ONCE // panel.shape[1])
            out.append(torch.cat([(panel[i] * panel[j]).sum(1) for i, j in (c.T for c in self._extended.split(step))]))
        return torch.stack(out, 1)

    def _pooled_narrow(self, parts: Sequence[Prepared], groups: Sequence[slice]) -> Tensor:
        by_width: dict[int, list[Prepared]] = {}
        for part in parts:
            by_width.setdefault(part.p.shape[2], []).append(part)
        kind, place = torch.zeros(2, self.n, dtype=torch.long)
        stacked = []
        for number, same in enumerate(by_width.values()):
            members = torch.cat([torch.arange(part.at.start, part.at.stop) for part in same])
            kind[members], place[members] = number, torch.arange(len(members))
            p, q = torch.cat([part.p for part in same]), torch.cat([part.q for part in same])
            stacked.append((p, q, (p * q).sum(2)))  # the last are the diagonals of A
        m = parts[0].p.shape[1]
        group = torch.zeros(m, len(groups), dtype=parts[0].p.dtype)
        for number, rows in enumerate(groups):
            group[rows, number] = 1
        out = torch.zeros(len(self._extended), len(groups), dtype=group.dtype)
        first, second = kind[self._extended].T
        for a, (p_a, q_a, diagonal_a) in enumerate(stacked):
            for b, (p_b, q_b, diagonal_b) in enumerate(stacked):
                wanted = ((first == a) & (second == b)).nonzero().flatten()
                step = max(1, AT_ONCE // (m * max(p_a.shape[2], p_b.shape[2])))
                for chunk in wanted.split(step):
                    i, j = place[self._extended[chunk]].T
                    cross = torch.bmm(q_a[i].mT, q_b[j])  # (pairs, d + 2, d' + 2)
                    h = (torch.bmm(p_a[i], cross) * p_b[j]).sum(2) - diagonal_a[i] * diagonal_b[j]  # (pairs, m)
                    out[chunk] = h @ group
        return out

    def finish(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """CKA of each pair, its standard error, and why it is missing where it is."""
        i, j = self.pairs.T
        if self.route == "all":
            own = torch.stack(self._own, 1)  # (n, groups)
            total = own.sum(1)
            product, square = self._product[i, j], self._square[i, j]
            with_own = self._with_own[i, j] / total[i] + self._with_own[j, i] / total[j]
            owns = own @ own.T
            groups = own.shape[1]
        else:
            pooled = torch.cat(self._listed, 1)  # (P + n, groups)
            h, own = pooled.split([len(self.pairs), self.n])
            total, product, square = own.sum(1), h.sum(1), h.square().sum(1)
            with_own = (h * own[i]).sum(1) / total[i] + (h * own[j]).sum(1) / total[j]
            owns, groups = None, own.shape[1]
        q = (total[i] * total[j]).clamp_min(0).sqrt()
        value = product / q
        # Σ over groups of (2 h/q - value (h_ii/H_ii + h_jj/H_jj))², expanded: no (pairs, groups) array is needed.
        if owns is not None:
            diagonal = owns.diagonal()
            cross = owns[i, j]
            squares_i, squares_j = diagonal[i], diagonal[j]
        else:
            cross = (own[i] * own[j]).sum(1)
            squares_i, squares_j = own.square().sum(1)[i], own.square().sum(1)[j]
        selves = squares_i / total[i] ** 2 + 2 * cross / (total[i] * total[j]) + squares_j / total[j] ** 2
        variance = 4 * square / q**2 - 4 * value * with_own / q + value**2 * selves
        stderr = (variance.clamp_min(0) * groups / max(1, groups - 1)).sqrt()
        missing = self._reasons()
        reason = [missing[a] or missing[b] for a, b in self.pairs.tolist()]
        gone = torch.tensor([bool(r) for r in reason], dtype=torch.bool)
        nan = torch.full_like(value, torch.nan)
        # A cosine, up to rounding.
        return torch.where(gone, nan, value.clamp(-1, 1)).numpy(), torch.where(gone, nan, stderr).numpy(), reason

    def _reasons(self) -> list[str]:
        """Why each model has no CKA; empty where it has one."""
        if self.route == "all":
            own = torch.stack(self._own).sum(0)
        else:
            own = torch.cat(self._listed, 1)[len(self.pairs) :].sum(1)
        # Both tests compare with what rounding alone would leave. The second catches features that differ on a single
        # sample: their A is zero, and the ratio would be 0/0.
        constant = (self._spread <= (4 * self._eps) ** 2 * self._size) | (own <= self._eps**2 * self._noise)
        return [
            NOT_FINITE if not ok else CONSTANT if flat else ""
            for ok, flat in zip(self._finite.tolist(), constant.tolist(), strict=True)
        ]


def _stack(parts: list[Tensor]) -> Tensor:
    """Parts below one another; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
