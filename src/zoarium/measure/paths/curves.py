"""Curves of low loss between pairs of networks, all pairs trained as one stacked program.

    φ_c(t) = Σ_j B_j(t) θ_j,   θ_0 = w_a,  θ_k = w_b fixed,  c = (θ_1 .. θ_{k-1}) trained to minimise

    E_{t~U[0,1]} [ L(φ_c(t)) + (wd/2) ‖φ_c(t)‖² ]

where B_j is the Bernstein basis C(k,j) t^j (1-t)^{k-j} (Bezier) or the hat functions of a polygonal chain. Garipov et
al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs", 2018. Momentum SGD, one t a pair and step; the
gradient of θ_j is B_j(t) times that at φ(t), so one backward pass at φ serves every bend.

The learning rate is a closed form of the epoch. The widely used script multiplies the decayed rate again each epoch, so
that the decay compounds; here it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.paths.gradients import GradientProgram, gradient_program
from zoarium.measure.paths.samples import STATISTICS_BATCH, sample_losses
from zoarium.zoo.batchnorm import has_batchnorm, reestimate_batchnorm
from zoarium.zoo.cohort import Cohort

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["bezier", "polygonal"]
Schedule = Literal["flat_linear", "constant"]


def basis(t: Tensor, bends: int, kind: Kind = "bezier") -> Tensor:
    """Weights (..., bends) of the control points at times `t` (...); they sum to one.

    >>> basis(torch.tensor(0.5), 3).tolist(), basis(torch.tensor(0.25), 3, "polygonal").tolist()
    ([0.25, 0.5, 0.25], [0.5, 0.5, 0.0])
    """
    k = bends - 1
    j = torch.arange(bends, dtype=t.dtype)
    t = t.unsqueeze(-1)
    if kind == "bezier":
        binomial = torch.tensor([math.comb(k, i) for i in range(bends)], dtype=t.dtype)
        return binomial * t**j * (1 - t) ** (k - j)
    if kind == "polygonal":
        return (1 - (t * k - j).abs()).clamp_min(0)
    raise MeasureError(unknown_name("curve", kind, ["bezier", "polygonal"]))


def learning_rate(epoch: int, epochs: int, lr: float, schedule: Schedule = "flat_linear") -> float:
    """Rate in an epoch counted from 0: `lr` until half of the epochs, then linear to lr/100 at 90 %.

    >>> [round(learning_rate(e, 10, 0.1), 4) for e in (0, 5, 7, 9)]
    [0.1, 0.1, 0.0505, 0.001]
    """
    if schedule == "constant":
        return lr
    if schedule != "flat_linear":
        raise MeasureError(unknown_name("schedule", schedule, ["flat_linear", "constant"]))
    fallen = min(max((epoch / epochs - 0.5) / 0.4, 0.0), 1.0)
    return lr * (1 - 0.99 * fallen)


@dataclass(frozen=True)
class Curves:
    """m curves in weight space.

    Parameters
    ----------
    pairs : tuple of (str, str)
        Ids of the ends.
    control : Tensor (m, bends, p)
        Control points; the first and last are the ends.
    cohort : Cohort
        The first end of every pair, (m) models: architecture, and buffers to start from.
    kind : {"bezier", "polygonal"}
    """

    pairs: tuple[tuple[str, str], ...]
    control: Tensor
    cohort: Cohort
    kind: Kind = "bezier"

    def __len__(self) -> int:
        return len(self.pairs)

    def flat(self, t: float | Tensor) -> Tensor:
        """Weights φ(t) as (m, p), at one `t` for all curves or at one each (m,)."""
        times = torch.as_tensor(t, dtype=self.control.dtype).expand(len(self))
        return torch.bmm(basis(times, self.control.shape[1], self.kind).unsqueeze(1), self.control).squeeze(1)

    def evaluate(self, t: float | Tensor) -> Cohort:
        """Return the networks at `t` as a cohort of m models. Batch-norm statistics are those of the first end."""
        layout = self.cohort.layout
        ids = tuple(f"{a}~{b}" for a, b in self.pairs)
        return Cohort(ids, layout.views(self.flat(t)), self.cohort.module, self.cohort.buffers)

    def points(self, data: Dataset, times: int | Sequence[float] = 9, *, split: str = "train") -> CurvePoints:
        """Loss and error of every sample along the curves.

        Parameters
        ----------
        data : Dataset
            Batch-norm statistics, where the net has them, are computed on its training inputs at each point.
        times : int or sequence of float, default 9
            A number of equidistant points from 0 to 1, or the points.
        split : {"train", "test"}, default "train"
        """
        chosen = _split(data, split)
        ts = np.linspace(0.0, 1.0, times) if isinstance(times, int) else np.asarray(times, dtype=np.float64)
        losses, errors = [], []
        for t in ts.tolist():
            models = self.evaluate(t)
            if has_batchnorm(models):
                models = reestimate_batchnorm(models, models.inputs(data.train.x), batch_size=STATISTICS_BATCH)
            loss, error = sample_losses(models, chosen, data.task)
            losses.append(loss)
            errors.append(error)
        return CurvePoints(ts, torch.stack(losses, 1), torch.stack(errors, 1))

    def table(self, data: Dataset, times: int | Sequence[float] = 9) -> pl.DataFrame:
        """Mean loss and error (percentage points) on both splits, a row a curve and point; columns a, b, t, ..."""
        import polars as pl

        points = {split: self.points(data, times, split=split) for split in ("train", "test")}
        t = points["train"].t
        means = {
            f"{split}_{quantity}": values[quantity].mean(2, dtype=torch.float64).flatten().numpy()
            for split, values in points.items()
            for quantity in ("loss", "error")
        }
        ends = {name: [pair[i] for pair in self.pairs for _ in t] for i, name in enumerate(("a", "b"))}
        return pl.DataFrame({**ends, "t": np.tile(t, len(self)), **means})


@dataclass(frozen=True)
class CurvePoints:
    """Loss and error (percentage points) of N samples at T points of m curves: arrays (T,), (m, T, N), (m, T, N)."""

    t: np.ndarray
    loss: Tensor
    error: Tensor

    def __getitem__(self, quantity: str) -> Tensor:
        return self.error if quantity == "error" else self.loss


def _split(data: Dataset, split: str) -> Split:
    if split not in ("train", "test"):
        raise MeasureError(unknown_name("split", split, ["train", "test"]))
    return data.train if split == "train" else data.test


@torch.no_grad()
def fit_curve(
    cohort: Cohort,
    pairs: Tensor | Sequence[Sequence[int]],
    data: Dataset,
    *,
    curve: Kind = "bezier",
    bends: int = 3,
    epochs: int = 40,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "flat_linear",
    clip_norm: float | None = None,
    seed: int = 0,
) -> Curves:
    """Train a curve between the two models of every pair, all pairs at once.

    Parameters
    ----------
    cohort : Cohort
        Models of one architecture; they stay as they are.
    pairs : array of shape (m, 2)
        Rows (a, b) of the cohort.
    data : Dataset
        Curves are trained on its training split.
    curve : {"bezier", "polygonal"}, default "bezier"
    bends : int, default 3
        Control points, the two ends included; 2 is the straight line, with nothing to train.
    epochs, batch_size, lr, momentum, weight_decay
        SGD; weight decay acts on φ(t).
    schedule : {"flat_linear", "constant"}, default "flat_linear"
        See :func:`learning_rate`.
    clip_norm : float, optional
        Largest gradient norm of a pair, where the published rate is too high for a net; default none.
    seed : int, default 0
        Draws the order of the samples (shared by all pairs) and, with the two ids, each pair's t.

    Returns
    -------
    Curves
        A pair whose training diverged has control points that are not finite; the others do not notice.

    Raises
    ------
    MeasureError
        For an unknown curve or schedule, fewer than 2 bends, or settings out of range.

    Notes
    -----
    One forward and backward pass a pair, epoch and sample. Chains of linear layers with biases run as hand-written
    batched matrix products, other nets through autograd. Memory: about 2 bends + 2 copies of the parameters a pair.
    Batch norm uses the statistics of the batch, as in training; dropout is off.
    """
    if bends < 2 or epochs < 0 or batch_size < 1 or not 0 <= momentum < 1 or lr < 0 or not (clip_norm or 1) > 0:
        raise MeasureError(
            f"cannot fit a curve with bends={bends}, epochs={epochs}, batch_size={batch_size}, lr={lr}, "
            f"momentum={momentum}, clip_norm={clip_norm}; needs bends >= 2, batch_size >= 1, momentum in [0, 1)."
        )
    rows = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    names = tuple((cohort.ids[a], cohort.ids[b]) for a, b in rows.tolist())
    first = cohort.select(rows[:, 0])
    program = gradient_program(first, data)
    ends = [program.pack({k: v[rows[:, i]] for k, v in cohort.params.items()}) for i in (0, 1)]
    share = torch.linspace(0, 1, bends, dtype=ends[0][0].dtype).view(1, -1, 1)
    control = [(1 - share) * a.unsqueeze(1) + share * b.unsqueeze(1) for a, b in zip(*ends, strict=True)]
    if bends > 2 and len(rows):
        starts = range(0, len(data.train), batch_size)
        if len(starts) > 1 and len(data.train) - starts[-1] == 1 and has_batchnorm(first):
            starts = starts[:-1]  # a batch of one has no variance
        times = _times(names, seed, epochs * len(starts))
        weights = basis(times, bends, curve).to(control[0].dtype).unsqueeze(2)  # (epochs steps, m, 1, bends)
        sgd = _Descent(control, program, momentum, weight_decay, clip_norm)
        for epoch in range(epochs):
            program.shuffle(torch.randperm(len(data.train), generator=generator("curve order", seed, epoch)))
            rate = learning_rate(epoch, epochs, lr, schedule)
            for step, start in enumerate(starts):
                sgd.step(weights[epoch * len(starts) + step], start, start + batch_size, rate)
    joined = [program.flatten([block[:, j] for block in control]) for j in range(bends)]
    return Curves(names, torch.stack(joined, 1), first, curve)


def straight(a: Cohort, b: Cohort) -> Curves:
    """Draw the straight lines from each model of `a` to the same row of `b`."""
    return Curves(tuple(zip(a.ids, b.ids, strict=True)), torch.stack([a.flat, b.flat], 1), a)


def _times(names: Sequence[tuple[str, str]], seed: int, steps: int) -> Tensor:
    """One t a step and pair, (steps, m): mirrored when the pair is named the other way round."""
    columns = []
    for a, b in names:
        t = torch.rand(steps, generator=generator("curve", seed, *sorted((a, b))), dtype=torch.float64)
        columns.append(t if a <= b else 1 - t)
    return torch.stack(columns, 1)


class _Descent:
    """Momentum SGD on the inner control points of all pairs, in place on blocks (m, bends, size)."""

    def __init__(
        self, control: list[Tensor], program: GradientProgram, momentum: float, decay: float, clip: float | None
    ) -> None:
        self.program, self.momentum, self.decay, self.clip = program, momentum, decay, clip
        self.control = control
        self.inner = [c[:, 1:-1] for c in control]
        self.phi = [torch.empty_like(c[:, :1]) for c in control]  # (m, 1, size)
        self.grad = [torch.zeros_like(c[:, :1]) for c in control]
        self.velocity = [torch.zeros_like(c) for c in self.inner]
        program.bind([p.squeeze(1) for p in self.phi], [g.squeeze(1) for g in self.grad])

    def step(self, weights: Tensor, start: int, stop: int, rate: float) -> None:
        """One step of every pair at its own t, given as basis weights (m, 1, bends)."""
        for phi, control in zip(self.phi, self.control, strict=True):
            torch.bmm(weights, control, out=phi)
        self.program.gradient(start, stop)
        inner = weights[:, 0, 1:-1].unsqueeze(-1)  # (m, bends - 2, 1)
        if self.decay:
            for phi, grad in zip(self.phi, self.grad, strict=True):
                grad.add_(phi, alpha=self.decay)
        if self.clip is not None:
            square = torch.stack([g.square().sum((1, 2)) for g in self.grad]).sum(0)  # (m,) at φ
            norm = (square.sqrt() * inner.square().sum((1, 2)).sqrt()).view(-1, 1, 1)  # of all bends together
            inner = inner * (self.clip / (norm + 1e-6)).clamp_max(1.0)
        for velocity, grad, control in zip(self.velocity, self.grad, self.inner, strict=True):
            velocity.mul_(self.momentum).addcmul_(grad, inner)
            control.add_(velocity, alpha=-rate)
