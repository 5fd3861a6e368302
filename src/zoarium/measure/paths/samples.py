"""Loss and error of every sample, for comparisons of the same samples at different weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from zoarium._core.estimates import Estimates
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.paths.chains import SharedChain, with_ones
from zoarium.zoo.cohort import Cohort

CHUNK_BYTES = 1 << 28  # what a chunk of pairs may hold at once, roughly
STATISTICS_BATCH = 128  # inputs a pass when batch-norm statistics are estimated
CACHED = 1 << 19  # numbers of one layer's activations that evaluation keeps at once; more would leave the cache


@torch.no_grad()
def sample_losses(cohort: Cohort, split: Split, task: str) -> tuple[Tensor, Tensor]:
    """Loss and error in percentage points of every sample, (n, N) each, in the type of the weights.

    Cross-entropy and 0 or 100 for classes (for language, their mean over the tokens of a sequence); mean squared error
    and 100 e²/σ² (mean 100 (1 - R²)) for regression.
    """
    x = cohort.inputs(split.x)
    chain = SharedChain.of(cohort.net, x)
    if chain is not None:
        x = with_ones(x)
        weights = chain.views(chain.pack(cohort.params))
    if task == "regression":
        target = split.y.reshape(len(split), -1).t().to(x)  # (k, N)
        variance = target.var(1, correction=0).sum()
    losses, errors = [], []
    size = max(16, CACHED // (max(1, len(cohort)) * max(_activations(cohort, split.x))))
    for start in range(0, len(split), size):
        rows = slice(start, start + size)
        if chain is not None:
            out = chain.forward(weights, x[rows])  # (n, c, b)
        else:
            out = cohort(x[rows])
            out = out.flatten(1, 2) if task == "language" else out.flatten(2)
            out = out.transpose(1, 2).contiguous()
        if task == "classification":
            loss, error = _classes(out, split.y[rows])
        elif task == "language":  # a sample is a sequence: the mean over its tokens
            y = split.y[rows]
            loss, error = (v.view(len(v), *y.shape).mean(2) for v in _classes(out, y.flatten()))
        else:
            square = (out - target[:, rows]).square()
            loss, error = square.mean(1), 100.0 * square.sum(1) / variance
        losses.append(loss)
        errors.append(error)
    return torch.cat(losses, 1), torch.cat(errors, 1)


def _classes(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and error (n, b) from logits (n, c, b), which are overwritten.

    Classes lie on the middle axis, since reductions over a short last axis are many times slower; for the same reason
    arg max gives way to a comparison with the best other class and decides ties only.
    """
    index = y.expand(len(logits), 1, -1)
    own = logits.gather(1, index).squeeze(1)  # (n, b)
    best = logits.amax(1)
    wrong = own < best
    loss = (logits - best.unsqueeze(1)).exp_().sum(1).log_() + best - own
    rival = logits.scatter_(1, index, -torch.inf).amax(1)
    if bool((rival == own).any()):
        wrong |= (rival == own) & (logits.argmax(1) < y)  # the first of equals wins, as in arg max
    wrong |= loss.isnan()
    return loss, wrong.to(logits.dtype).mul_(100.0)


def _activations(cohort: Cohort, x: Tensor) -> list[int]:
    """Numbers that each layer of one model holds for one sample."""
    sizes: list[int] = [1]
    hooks = [
        leaf.register_forward_hook(
            lambda module, args, out: sizes.append(out.numel() if isinstance(out, Tensor) else 0)
        )
        for leaf in cohort.module.modules()
        if not list(leaf.children())
    ]
    try:
        with torch.no_grad():
            functional_call(cohort.module.eval(), cohort.state(0), (cohort.inputs(x[:1]),))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def paired_mean(differences: Tensor, reasons: Sequence[str]) -> Estimates:
    """Mean over samples of differences (m, N) with its standard error; NaN where a reason is given or one is needed."""
    d = differences.double().numpy()
    samples = d.shape[1]
    value = d.mean(1)
    stderr = d.std(1, ddof=1) / samples**0.5 if samples > 1 else np.full(len(d), np.nan)
    why = [own or ("" if np.isfinite(v) else "the loss is not finite") for own, v in zip(reasons, value, strict=True)]
    keep = np.array([not reason for reason in why], dtype=bool)
    return Estimates(np.where(keep, value, np.nan), np.where(keep, stderr, np.nan), np.where(keep, samples, 0), 0, why)


def not_finite(cohort: Cohort, pairs: Tensor) -> list[str]:
    """For each pair the reason why it cannot be measured: an end whose weights are not finite; else ''."""
    finite = torch.ones(len(cohort), dtype=torch.bool)
    for tensor in cohort.params.values():
        finite &= tensor.isfinite().flatten(1).all(1)
    broken = [[row for row in pair if not finite[row]] for pair in pairs.tolist()]
    return [f"weights of {cohort.ids[rows[0]]} are not finite" if rows else "" for rows in broken]


def pair_chunks(cohort: Cohort, pairs: Tensor, data: Dataset, points: int, bends: int = 2) -> Sequence[Tensor]:
    """Cut pairs into chunks whose curves and values along them fit in memory together; at least one chunk."""
    like = next(iter(cohort.params.values()))
    samples = max(len(data.train), len(data.test))
    inside = 3 * STATISTICS_BATCH * sum(_activations(cohort, data.train.x))
    each = like.element_size() * ((3 * bends + 4) * cohort.layout.size + 4 * points * samples + inside)
    return pairs.split(max(1, CHUNK_BYTES // each))
