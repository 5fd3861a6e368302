"""Scores of every sample, so that two ways of using the same models can be compared sample by sample.

A score is in points: 100 for a right class and 0 for a wrong one, so that its mean is accuracy in per cent; for
regression 100 (1 - e²/σ²) with the squared error of the sample and the variance of the test targets, so that its mean
is 100 R². The score of a sequence of tokens is the mean over its tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoarium.data.dataset import Dataset, Split
from zoarium.zoo.cohort import Cohort


def outputs(cohort: Cohort, x: Tensor, *, batch_size: int = 4096) -> Tensor:
    """Outputs (n, N, c), of sequences (n, N, t, c), of every model on all of ``x``."""
    parts = [cohort(chunk) for chunk in cohort.inputs(x).split(batch_size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def sample_scores(out: Tensor, split: Split, task: str) -> Tensor:
    """Points (n, N) in double precision from outputs or probabilities (n, N, c); NaN where these are not finite."""
    if task != "regression":
        # argmax of NaN is a class like any other, so it must not pass for a prediction
        points = torch.where(out.isfinite().all(-1), 100.0 * (out.argmax(-1) == split.y).double(), torch.nan)
        return points.mean(-1) if task == "language" else points
    target = split.y.reshape(len(split), -1).double()  # (N, k)
    variance = target.var(0, correction=0).sum()
    error = (out.flatten(2).double() - target).square().sum(-1)
    return 100.0 * (1.0 - error / variance)


def sample_losses(out: Tensor, split: Split, task: str) -> Tensor:
    """Cross-entropy in nats from logits, or mean squared error, of every sample: (n, N) in double precision."""
    if task != "regression":
        return log_losses(out.double().log_softmax(-1), split)
    return (out.flatten(2).double() - split.y.reshape(len(split), -1).double()).square().mean(-1)


def log_losses(log_probabilities: Tensor, split: Split) -> Tensor:
    """Negative log-probability (n, N) of the true class; of the true tokens, their mean over a sequence."""
    n = len(log_probabilities)
    flat = F.nll_loss(log_probabilities.flatten(0, -2), split.y.flatten().repeat(n), reduction="none")
    return flat.view(n, len(split), -1).mean(2)


def score_on(cohort: Cohort, data: Dataset) -> Tensor:
    """Points (n, N) of every model on every sample of the test split."""
    return sample_scores(outputs(cohort, data.test.x), data.test, data.task)
