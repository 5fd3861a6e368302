"""What a model gets right: loss, accuracy, error, generalisation gap and calibration on both splits.

The training split is the one the model was trained on (its share of the data, its wrong labels), in evaluation mode and
without augmentation, so that train and test differ in the samples alone.

    ECE = Σ_k |B_k|/N · |acc(B_k) - conf(B_k)|,    B_k: test samples whose confidence falls in the k-th of 15 equal bins

Guo et al., "On calibration of modern neural networks", 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoarium._core.estimates import Estimates
from zoarium.data.dataset import Dataset, Split, Task
from zoarium.measure.curvature.output_loss import check_targets, targets
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

QUANTITIES = (
    "train_loss", "test_loss", "train_accuracy", "test_accuracy", "train_error", "test_error", "generalization_gap",
    "calibration_error",
)  # fmt: skip

BUDGET = 2**26  # bytes of activations held at a time

NOT_FINITE = "outputs are not finite"
NO_CLASSES = "defined for classification, and this is regression"


def activations(cohort: Cohort, x: Tensor) -> int:
    """Numbers one model of a cohort computes for one sample of `x` (N, ...), roughly: what a forward pass must hold."""
    size = 0

    def count(module: object, args: object, output: Any) -> None:
        nonlocal size
        size += output.numel() if isinstance(output, Tensor) else 0

    hooks = [m.register_forward_hook(count) for m in cohort.module.modules() if not list(m.children())]
    try:
        cohort.select([0])(cohort.inputs(x[:1]))
    finally:
        for hook in hooks:
            hook.remove()
    # A stacked chain calls no module, so nothing was counted; its rows are as wide as its weights.
    return size or sum(max(shape, default=1) for _, shape in cohort.layout.shapes)


def dtype_of(cohort: Cohort) -> torch.dtype:
    """Floating-point type of a cohort's parameters."""
    return next(iter(cohort.params.values())).dtype


def outputs_on(cohort: Cohort, x: Tensor, budget: int = BUDGET) -> Iterator[tuple[slice, Tensor]]:
    """Outputs (n, b, ..., c) of every model with the rows of `x` (N, ...) they belong to, in one stacked pass a piece.

    A piece holds as many samples as keep the activations of all models within `budget` bytes (default 64 MB), and at
    least one.
    """
    if not len(cohort) or not len(x):
        return
    step = max(1, budget // (len(cohort) * activations(cohort, x) * dtype_of(cohort).itemsize))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, cohort(cohort.inputs(x[rows]))


@measure(
    "performance", scope="model", quantities=QUANTITIES,
    reference="Guo et al. 2017, 'On calibration of modern neural networks' (calibration error)",
    cost="one forward pass over both splits",
)  # fmt: skip
def performance(cohort: Cohort, data: Dataset, *, bins: int = 15) -> dict[str, Estimates]:
    """Loss, accuracy, error, generalisation gap and calibration error of every model.

    Parameters
    ----------
    cohort : Cohort
        n models.
    data : Dataset
        What they were trained on.
    bins : int, default 15
        Equal-width bins of confidence.

    Returns
    -------
    dict of str to Estimates
        ``train_loss``, ``test_loss``: mean negative log-likelihood in nats (a token, for language; regression: mean
        squared error), standard error sd/√N over samples. ``train_accuracy``, ``test_accuracy``, ``train_error``,
        ``test_error``: shares in [0, 1], binomial standard error √(p(1-p)/N); for language, shares of tokens, sd/√N
        over sequences. ``generalization_gap``: train accuracy minus test accuracy, a share.
        ``calibration_error``: expected calibration error on the test split, a share. What needs classes is NaN with a
        reason for regression; everything is for a model whose outputs are not finite.

    Notes
    -----
    A binomial standard error of 0 (every sample right) does not mean certainty: use
    :func:`zoarium._core.statistics.wilson_interval` for an interval. The standard error of the calibration error holds
    the signs of the bins fixed; the error itself is biased upwards on few samples, by about √(bins/N).

    Examples
    --------
    >>> from zoarium.testing.cohorts import small_cohort, small_dataset
    >>> got = performance(small_cohort(), small_dataset())
    >>> bool((got["train_accuracy"].value > 0.3).all())
    True
    """
    train = _scores(cohort, data.train, data.task, bins)
    test = _scores(cohort, data.test, data.task, bins)
    gap = train["accuracy"].value - test["accuracy"].value
    return {
        "train_loss": train["loss"], "test_loss": test["loss"],
        "train_accuracy": train["accuracy"], "test_accuracy": test["accuracy"],
        "train_error": train["error"], "test_error": test["error"],
        "generalization_gap": Estimates(
            gap, np.hypot(train["accuracy"].stderr, test["accuracy"].stderr),
            train["accuracy"].samples + test["accuracy"].samples, 0,
            [a or b for a, b in zip(train["accuracy"].reason, test["accuracy"].reason, strict=True)],
        ),
        "calibration_error": test["calibration"],
    }  # fmt: skip


def _scores(cohort: Cohort, split: Split, task: Task, bins: int) -> dict[str, Estimates]:
    """Mean loss, accuracy, error and calibration error of every model on one split."""
    n, total = len(cohort), len(split)
    if not total:
        nothing = Estimates(np.full(n, np.nan), np.nan, 0, 0, ["the split is empty"] * n)
        return dict.fromkeys(("loss", "accuracy", "error", "calibration"), nothing)
    losses, right, confidence = [], [], []
    for rows, out in outputs_on(cohort, split.x):
        y = split.y[rows]
        check_targets(out, y, task)
        if task == "regression":
            losses.append((out.flatten(2).double() - targets(y)).square().mean(2))
            continue
        # Classes first: sums over few classes then run along long rows. In double precision, since a confident model's
        # loss is the small difference of large logits.
        logits = out.movedim(-1, 0).double().contiguous()  # (c, n, b) or, a prediction a token, (c, n, b, t)
        top, likeliest = logits.max(0)
        log_total = logits.logsumexp(0)
        losses.append(_a_sample(log_total - logits.gather(0, y.expand(1, n, *y.shape))[0]))
        right.append((likeliest == y).double())
        confidence.append((top - log_total).exp())
    loss = torch.cat(losses, 1)  # (n, N)
    finite = loss.isfinite().all(1).numpy()
    reason = ["" if ok else NOT_FINITE for ok in finite]
    scores = {"loss": _mean(loss, finite, reason)}
    if task == "regression":
        none = Estimates(np.full(n, np.nan), np.nan, 0, 0, [r or NO_CLASSES for r in reason])
        return {**scores, "accuracy": none, "error": none, "calibration": none}
    correct = torch.cat(right, 1)
    if task == "language":  # tokens of a sequence are no independent samples: the error is that over sequences
        hits = _mean(_a_sample(correct), finite, reason)
        accuracy, stderr = hits.value, hits.stderr
    else:
        accuracy = np.where(finite, correct.mean(1).numpy(), np.nan)
        stderr = np.sqrt(accuracy * (1 - accuracy) / total)
    return {
        **scores,
        "accuracy": Estimates(accuracy, stderr, total, 0, reason),
        "error": Estimates(1 - accuracy, stderr, total, 0, reason),
        "calibration": _calibration(torch.cat(confidence, 1), correct, bins, finite, reason),
    }


def _a_sample(values: Tensor) -> Tensor:
    """Mean over the tokens of each sample, (n, b, ...) -> (n, b)."""
    return values.flatten(2).mean(2) if values.dim() > 2 else values


def _calibration(confidence: Tensor, correct: Tensor, bins: int, finite: np.ndarray, reason: list[str]) -> Estimates:
    """Expected calibration error from confidences and hits, both (n, N) or, for tokens, (n, N, t)."""
    shape = confidence.shape
    confidence, correct = confidence.flatten(1), correct.flatten(1)
    excess = confidence - correct
    where = ((confidence * bins).ceil().nan_to_num(1).long() - 1).clamp(0, bins - 1)
    per_bin = torch.zeros(len(excess), bins, dtype=excess.dtype).scatter_add_(1, where, excess.nan_to_num())
    # Σ_k |Σ_{i in k} e_i| / N is the mean of s_{k(i)} e_i, which also gives its standard error.
    return _mean(_a_sample((excess * per_bin.sign().gather(1, where)).view(shape)), finite, reason)


def _mean(samples: Tensor, finite: np.ndarray, reason: list[str]) -> Estimates:
    """Mean over samples (n, N) with its standard error."""
    total = samples.shape[1]
    value = np.where(finite, samples.mean(1).numpy(), np.nan)
    stderr = samples.std(1).numpy() / total**0.5 if total > 1 else np.full(len(samples), np.nan)
    return Estimates(value, np.where(finite, stderr, np.nan), total, 0, reason)
