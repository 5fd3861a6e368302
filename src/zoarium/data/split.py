"""Dividing rows into a training and a test split, once and for all."""

from __future__ import annotations

import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Split


def split_rows(n: int, test: int, seed: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of the training and the test split, each in ascending order.

    Parameters
    ----------
    n : int
        Rows in all.
    test : int
        Rows of the test split.
    seed : int
        Draws which.
    labels : Tensor of shape (n,), optional
        Classes to keep in proportion: each split has a class's share up to one row.
    """
    order = torch.randperm(n, generator=generator("split", seed))
    if labels is not None:
        # Members of a class, in drawn order, get places spread evenly over (0, 1); the test split is the first places.
        place = torch.empty(n, dtype=torch.float64)
        drawn = labels[order]
        for label in labels.unique():
            members = order[drawn == label]
            place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        order = order[place[order].argsort(stable=True)]
    return order[test:].sort().values, order[:test].sort().values


def count_of_test(n: int, test_size: float | int, what: str) -> int:
    """How many of `n` rows a `test_size` (a share, or a number of rows) means; at least one row stays on each side."""
    whole = isinstance(test_size, int) and not isinstance(test_size, bool)
    if not (whole and 1 <= test_size < n) and not (isinstance(test_size, float) and 0 < test_size < 1):
        raise DataError(
            f"{what}: test_size must be a share between 0 and 1 or a number of rows below {n}, found {test_size!r}."
        )
    return int(test_size) if whole else min(max(1, round(test_size * n)), n - 1)


def standardised(train: Split, test: Split, targets: bool = False) -> tuple[Split, Split]:
    """Inputs (and targets, if asked) with mean 0 and standard deviation 1 over the training split, test likewise."""

    def scale(fit: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        mean, sd = fit.mean(0), fit.std(0)
        sd = torch.where(sd > 0, sd, torch.ones_like(sd))  # a constant feature carries nothing: leave it at 0
        return (fit - mean) / sd, (other - mean) / sd

    train_x, test_x = scale(train.x, test.x)
    train_y, test_y = scale(train.y, test.y) if targets else (train.y, test.y)
    return Split(train_x, train_y), Split(test_x, test_y)
