"""A data set in memory: a training split and a test split, fixed once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from zoarium._core.seeds import generator

Task = Literal["classification", "regression", "language"]


@dataclass(frozen=True)
class Split:
    """Inputs `x` (N, ...) and targets `y`: classes (N,) int64, numbers (N, k), or next tokens (N, t) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def sample(self, count: int | None, *names: object) -> Split:
        """At most `count` rows, drawn without replacement by the stream `names`; all of them, in order, for None."""
        if count is None or count >= len(self):
            return self
        rows = torch.randperm(len(self), generator=generator("sample", *names))[:count].sort().values
        return Split(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Dataset:
    """A named task with its training and test split.

    Parameters
    ----------
    name : str
        Name shown in tables.
    train, test : Split
        The two splits; a model never trains on `test`.
    task : {"classification", "regression", "language"}
        A language task has sequences of tokens (N, t) as inputs and the token after each of them as targets (N, t).
    n_outputs : int
        Classes, width of the target, or tokens in the vocabulary.
    classes : tuple of str
        Names of the classes (or tokens), if known.
    """

    name: str
    train: Split
    test: Split
    task: Task
    n_outputs: int
    classes: tuple[str, ...] = field(default=())

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train.x.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every number in both splits."""
        digest = hashlib.blake2b(digest_size=12)
        for part in (self.train.x, self.train.y, self.test.x, self.test.y):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def variant(self, *, fraction: float = 1.0, label_noise: float = 0.0, seed: int = 0) -> Dataset:
        """The task with a share of its training data and some wrong training labels; the test split stays clean.

        Both are drawn from `seed` alone, so every model that names the same three values sees the same data. Smaller
        fractions are subsets of larger ones. Noise moves a label (or target token) to one of the *other* classes,
        uniformly; for regression it adds a normal error of `label_noise` standard deviations of the target.
        """
        train = self.train
        if fraction < 1.0:
            keep = max(1, round(fraction * len(train)))
            order = torch.randperm(len(train), generator=generator("data_fraction", seed))
            rows = order[:keep].sort().values
            train = Split(train.x[rows], train.y[rows])
        if label_noise > 0.0:
            draw = generator("label_noise", seed)
            if self.task != "regression":
                wrong = torch.rand(self.train.y.shape, generator=draw) < label_noise
                shift = torch.randint(1, max(self.n_outputs, 2), self.train.y.shape, generator=draw)
                if fraction < 1.0:
                    wrong, shift = wrong[rows], shift[rows]
                y = torch.where(wrong, (train.y + shift) % self.n_outputs, train.y)
            else:
                noise = torch.randn(self.train.y.shape, generator=draw, dtype=self.train.y.dtype)
                if fraction < 1.0:
                    noise = noise[rows]
                y = train.y + label_noise * self.train.y.std(0) * noise
            train = Split(train.x, y)
        return replace(self, train=train)

    def __repr__(self) -> str:
        if self.task == "language":
            outputs = f"vocabulary of {self.n_outputs}"
        else:
            what = "classes" if self.task == "classification" else "outputs" if self.n_outputs > 1 else "output"
            outputs = f"{self.n_outputs} {what}"
        return (
            f"Dataset({self.name!r}, {len(self.train)} train + {len(self.test)} test, input {self.in_shape}, {outputs})"
        )
