"""Who sees which sample when: data order, and micro-steps shared by models of different batch sizes.

Every model of a program takes the same micro-batch; a model whose batch is k micro-batches adds up its gradients and
steps every k-th time, and at the end of an epoch with what is left. Models are sorted by batch size, so those due at a
micro-step are a few contiguous slices (usually one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from zoarium._core.seeds import generator
from zoarium.train.schedules import rates
from zoarium.zoo.config import Training


@lru_cache(maxsize=64)
def order(seed: int, epoch: int, count: int) -> Tensor:
    """Order in which a model of `seed` sees `count` training samples in an epoch (epochs count from 0)."""
    return torch.randperm(count, generator=generator("order", seed, epoch))


def steps_an_epoch(training: Training, count: int) -> int:
    """Optimiser steps in one pass over `count` samples."""
    batch = min(training.batch_size, count)
    return count // batch if training.drop_last else math.ceil(count / batch)


def total_steps(training: Training, count: int) -> int:
    """Optimiser steps in the whole training."""
    return training.steps if training.steps is not None else training.epochs * steps_an_epoch(training, count)


def total_epochs(training: Training, count: int) -> int:
    """Epochs in the whole training; with a number of steps given, the last may be cut short."""
    if training.steps is None:
        return training.epochs
    return math.ceil(training.steps / steps_an_epoch(training, count))


@dataclass(frozen=True)
class Timetable:
    """The micro-steps of one program.

    Parameters
    ----------
    trainings : sequence of Training
        One a model, by ascending batch size. All have one `drop_last`, and either one number of epochs or one number of
        steps with one batch size.
    count : int
        Training samples N.
    """

    trainings: tuple[Training, ...]
    count: int

    @classmethod
    def of(cls, trainings: Sequence[Training], count: int) -> Timetable:
        """Return the timetable of these models."""
        return cls(tuple(trainings), count)

    @cached_property
    def batches(self) -> np.ndarray:
        """Batch size of each model, (n,)."""
        return np.array([min(t.batch_size, self.count) for t in self.trainings])

    @cached_property
    def micro(self) -> int:
        """Samples in a micro-batch: the greatest common divisor of the batch sizes (and of `micro_batch`)."""
        wanted = [t.micro_batch for t in self.trainings if t.micro_batch]
        return int(np.gcd.reduce([*self.batches, *wanted]))

    @cached_property
    def every(self) -> np.ndarray:
        """Micro-steps in a step of each model, (n,)."""
        return self.batches // self.micro

    @cached_property
    def epochs(self) -> int:
        """Epochs of the program."""
        return total_epochs(self.trainings[0], self.count)

    @cached_property
    def used(self) -> np.ndarray:
        """Samples each model uses in an epoch, (n,)."""
        if self.trainings[0].drop_last:
            return self.count // self.batches * self.batches
        return np.full(len(self.batches), self.count)

    @cached_property
    def steps(self) -> np.ndarray:
        """Optimiser steps of each model in a whole epoch, (n,)."""
        return -(-self.used // self.batches)

    @cached_property
    def totals(self) -> np.ndarray:
        """Optimiser steps of each model in the whole training, (n,)."""
        return np.array([total_steps(t, self.count) for t in self.trainings])

    def micro_steps(self, epoch: int) -> int:
        """Micro-steps of an epoch (counted from 0)."""
        whole = -(-int(self.used.max()) // self.micro)
        left = int((self.totals[0] - epoch * self.steps[0]) * self.every[0])
        return min(whole, left) if self.trainings[0].steps is not None else whole

    def done(self, epochs: int) -> np.ndarray:
        """Optimiser steps of each model after so many epochs, (n,)."""
        return np.minimum(self.steps * epochs, self.totals)

    @cached_property
    def samples(self) -> np.ndarray:
        """Samples in the batch a model completes at each micro-step of a whole epoch, (m, n); 0 where it does not."""
        micro_steps = -(-int(self.used.max()) // self.micro)
        end = np.minimum(np.arange(1, micro_steps + 1)[:, None] * self.micro, self.used)  # samples seen after it
        start = np.minimum(np.arange(micro_steps)[:, None] * self.micro, self.used)
        completes = (end > start) & ((end % self.batches == 0) | (end == self.used))
        return np.where(completes, (end - 1) % self.batches + 1, 0)

    @cached_property
    def due(self) -> list[list[tuple[int, int]]]:
        """For each micro-step of a whole epoch, the slices (start, stop) of models that step."""
        slices = []
        for row in self.samples > 0:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
            slices.append([(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)])
        return slices

    @cached_property
    def _curves(self) -> tuple[np.ndarray, np.ndarray]:
        keys: dict[int, int] = {}  # identity of a cached curve -> its row
        curves: list[np.ndarray] = []
        which = np.empty(len(self.trainings), dtype=np.int64)
        for i, (training, total) in enumerate(zip(self.trainings, self.totals, strict=True)):
            curve = rates(training, int(total))
            if id(curve) not in keys:
                keys[id(curve)] = len(curves)
                curves.append(curve)
            which[i] = keys[id(curve)]
        table = np.zeros((len(curves), max(int(self.totals.max()), 1)))
        for row, curve in zip(table, curves, strict=True):
            row[: len(curve)] = curve
        return table, which

    def alike(self, start: int, stop: int) -> bool:
        """Whether models `start` to `stop` take the same steps at the same rates."""
        which = self._curves[1][start:stop]
        return bool((which == which[0]).all() and (self.batches[start:stop] == self.batches[start]).all())

    def step_index(self, epoch: int) -> np.ndarray:
        """Which optimiser step (from 0) each model takes, if due, at each micro-step of an epoch, (m, n)."""
        m = np.arange(len(self.samples))[:, None]
        return np.minimum(epoch * self.steps + m // self.every, np.maximum(self.totals - 1, 0))

    def rates(self, epoch: int) -> np.ndarray:
        """Learning rates at each micro-step of an epoch, (m, n)."""
        table, which = self._curves
        return table[which, self.step_index(epoch)]

    def rate_at(self, done: np.ndarray) -> np.ndarray:
        """Learning rate of the last of so many steps (of the first, before any), (n,)."""
        table, which = self._curves
        return table[which, np.maximum(done - 1, 0)]
