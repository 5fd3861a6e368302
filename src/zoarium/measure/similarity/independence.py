"""Were two weight matrices trained from one start? A test that asks nothing of how they were trained.

The hidden units of a network have no order of their own: training is equivariant to permuting them, so in a model that
shares no start with another, every order of its units was equally likely, whatever the data and the optimiser. With the
rows of A and B centred over the units, and P a random permutation of m units,

    E <A, PB> = 0,        Var <A, PB> = ||A B^T||_F^2 / (m - 1),        z = <A, B> sqrt(m - 1) / ||A B^T||_F

and z is near standard normal (Hoeffding's combinatorial limit theorem). Models with a common start, or one made from
the other, keep their units in place and have large z. A matrix has units on two sides, and one of them may have a fixed
order (pixels, tokens, classes), so both are asked and the value nearer to zero counts, which can only err towards
"independent". Matrices combine by z = sum z_l / sqrt(L) (Stouffer).

Hoeffding, "A combinatorial central limit theorem", 1951. Zhu et al., "Independence tests for language models", 2025
(exact tests by the exchangeability of hidden units).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoarium._core.seeds import generator
from zoarium.measure.similarity.sources import Shape

UNITS = 128  # units of each side that a test looks at
MIN_UNITS = 8  # units that one side must have at least
NUMBERS = 256  # numbers it looks at along the other side, kernel positions included
SAMPLE = 1 << 23  # numbers of all models' samples together
CHUNK = 1 << 22  # numbers of a stack of products


class UnitSample:
    """The same units, drawn at random, of one tensor in every model.

    Parameters
    ----------
    name : str
        Decides the draw, with the shape.
    shape : tuple of int
        Two axes or more: (out, in, *kernel).
    n : int
        Models.
    units : int, default 128
        At most so many of each side.
    """

    def __init__(self, name: str, shape: Shape, n: int, *, units: int = UNITS):
        out, inward, positions = shape[0], shape[1], 1
        for size in shape[2:]:
            positions *= size
        rng = generator("weight_similarity", name, shape)
        most = max(64, SAMPLE // max(n, 1))  # numbers of one model

        def drawn(size: int, limit: int) -> Tensor:
            return torch.randperm(size, generator=rng)[: max(1, limit)].sort().values

        self.k = drawn(positions, min(NUMBERS, most // MIN_UNITS))
        self.i = drawn(inward, min(units, max(MIN_UNITS, NUMBERS // len(self.k)), most // len(self.k) // MIN_UNITS))
        self.o = drawn(out, min(units, most // (len(self.k) * len(self.i))))
        self.shape = (out, inward, positions)
        self.taken = torch.empty(n, len(self.o), len(self.i), len(self.k))
        self.testable = max(len(self.o), len(self.i)) >= MIN_UNITS

    def take(self, row: int, tensor: Tensor) -> None:
        """Copy the sample of one model."""
        self.taken[row] = tensor.reshape(self.shape)[self.o[:, None, None], self.i[:, None], self.k].float()

    def z(self, rows: int) -> np.ndarray:
        """Statistic z of every pair among the first `rows` models, (rows, rows); NaN where there is none."""
        found = np.full((rows, rows), np.nan)
        if not self.testable:
            return found
        taken = self.taken[:rows]
        sides = [side for side in (taken, taken.transpose(1, 2)) if side.shape[1] > 1]
        values = np.stack([_z(side.reshape(rows, side.shape[1], -1)) for side in sides])
        nearer = np.abs(values).argmin(0)
        return np.take_along_axis(values, nearer[None], 0)[0]


def _z(stack: Tensor) -> np.ndarray:
    """Statistic z of all pairs of matrices (n, m, d), whose m rows are the units."""
    n, m, d = stack.shape
    x = stack - stack.mean(1, keepdim=True)
    scale = x.square().mean((1, 2), keepdim=True).sqrt()
    x = x / torch.where(scale > 0, scale, torch.ones_like(scale))  # z knows no scale; squares must not overflow
    flat = x.reshape(n, -1)
    trace = flat @ flat.T
    square = _squares_by_grams(x) if d * (m + n) < n * m * m / 2 else _squares_by_pairs(x)
    return (trace * (m - 1) ** 0.5 / square.sqrt()).double().numpy()  # 0 / 0 where a sample has no spread


def _squares_by_grams(x: Tensor) -> Tensor:
    """||A B^T||_F^2 = <A^T A, B^T B> of all pairs (n, n): the cheaper way for many models."""
    n, _, d = x.shape
    found = torch.zeros(n, n)
    step = max(1, CHUNK // (n * d))
    for start in range(0, d, step):
        part = (x[:, :, start : start + step].transpose(1, 2) @ x).reshape(n, -1)  # (n, step * d)
        found += part @ part.T
    return found


def _squares_by_pairs(x: Tensor) -> Tensor:
    """||A B^T||_F^2 of all pairs (n, n), from their products."""
    n, m, _ = x.shape
    found = torch.zeros(n, n)
    step = max(1, CHUNK // (m * m))
    for i in range(n):
        for start in range(i, n, step):
            square = (x[start : start + step] @ x[i].T).square().sum((1, 2))  # (step,)
            found[i, start : start + step] = found[start : start + step, i] = square
    return found
