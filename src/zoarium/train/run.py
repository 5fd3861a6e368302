"""The models of one program in memory, and one epoch of training for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import StoreError
from zoarium._core.seeds import stream
from zoarium.data.dataset import Dataset, Split
from zoarium.train.architecture import Architecture, DataKey
from zoarium.train.augment import Augmentation
from zoarium.train.autograd import AutogradStack
from zoarium.train.chain import Chain, ChainStack
from zoarium.train.optimisers import OPTIMISERS
from zoarium.train.timetable import Timetable, order
from zoarium.zoo.config import Training

State = dict[str, Tensor]
GATHER = 8 << 20  # bytes of micro-batches laid out at once


class Run:
    """The models of one program in memory: a stack, an optimiser and a timetable.

    Parameters
    ----------
    trainings, seeds : sequences
        One a model, by ascending batch size.
    streams : sequence of DataKey
        The data of each model.
    data : mapping
        The data sets; equal in shapes and number of training samples.
    architectures : sequence of Architecture
        The distinct ones.
    which : sequence of int
        The architecture of each model.
    name : str
        Names the stream of layers that draw random numbers (dropout).
    """

    def __init__(
        self, trainings: Sequence[Training], seeds: Sequence[int], streams: Sequence[DataKey],
        data: Mapping[DataKey, Dataset], architectures: Sequence[Architecture], which: Sequence[int], name: str,
        dtype: torch.dtype, device: torch.device | str,
    ) -> None:  # fmt: skip
        self.n, self.name, self.which, self.seeds = len(trainings), name, list(which), list(seeds)
        self.device = torch.device(device)
        first = data[streams[0]]
        self.timetable = Timetable.of(trainings, len(first.train))
        smoothing = [t.label_smoothing for t in trainings]
        chains = [a.chain for a in architectures if a.chain is not None]
        self.stack: ChainStack | AutogradStack = (
            ChainStack(_chains(chains), which, first.task, smoothing, dtype, device)
            if len(chains) == len(architectures)
            else architectures[0].stack(self.n, first.task, smoothing, dtype, device)
        )
        keys = sorted(set(streams))
        self._pool(data, keys, dtype)
        self.base = torch.tensor([self.offset[key] for key in streams])
        augment, images = trainings[0].augment, [data[key].train.x for key in keys]
        self.augmentation = None if augment == "none" else Augmentation(augment, seeds, images)
        self.tests = [self._prepared(data[key].test, dtype) for key in keys]
        self.splits = _runs([keys.index(key) for key in streams])  # slices of models that share their data
        self.optimiser = OPTIMISERS[trainings[0].optimizer](
            self.stack.params, self.stack.grads, trainings, self.timetable
        )
        several = bool((self.timetable.every > 1).any())
        self.stack.adds_up = self.optimiser.clear = several or trainings[0].drop_last
        self.diverged = torch.zeros(self.n, dtype=torch.int64)  # the epoch, 0 for none

    def _pool(self, data: Mapping[DataKey, Dataset], keys: Sequence[DataKey], dtype: torch.dtype) -> None:
        """Training data of all keys one after the other; noisy labels share the inputs they were made from."""
        xs: list[Tensor] = []
        self.offset: dict[DataKey, int] = {}
        parts = [self._prepared(data[key].train, dtype) for key in keys]
        self.trains = parts
        for key, part in zip(keys, parts, strict=True):
            self.offset[key] = sum(len(x) for x in xs)
            xs.append(part.x)
        self.x = xs[0] if len(xs) == 1 else torch.cat(xs)
        self.y = parts[0].y if len(parts) == 1 else torch.cat([part.y for part in parts])
        if len(parts) > 1:
            self.trains = [
                Split(self.x[start : start + len(part)], self.y[start : start + len(part)])
                for start, part in zip(self.offset.values(), parts, strict=True)
            ]

    def _prepared(self, split: Split, dtype: torch.dtype) -> Split:
        y = split.y.to(self.device, dtype) if split.y.is_floating_point() else split.y.to(self.device)
        return Split(self.stack.inputs(split.x), y.unsqueeze(1) if y.is_floating_point() and y.dim() == 1 else y)

    def train_epoch(self, epoch: int) -> None:
        """Train through one epoch (counted from 0)."""
        timetable, stack, step = self.timetable, self.stack, self.optimiser.step
        accumulate, due = stack.accumulate, timetable.due
        self.optimiser.begin(epoch)
        orders = {seed: order(seed, epoch, timetable.count) for seed in dict.fromkeys(self.seeds)}
        where = torch.stack([orders[seed] for seed in self.seeds]) + self.base[:, None]  # (n, N)
        where = where.to(self.device)
        micro, last = timetable.micro, timetable.micro_steps(epoch)
        whole = min(last, timetable.count // micro)
        index = where[:, : whole * micro].unflatten(1, (whole, micro)).transpose(0, 1) if whole else None
        drawn = self.augmentation.draw(epoch, timetable.count) if self.augmentation else None  # (n, N, 4)
        row_bytes = self.x[0].numel() * self.x.element_size() * self.n * micro
        chunk = max(1, GATHER // row_bytes)
        with torch.no_grad(), torch.random.fork_rng(devices=[], enabled=isinstance(stack, AutogradStack)):
            if isinstance(stack, AutogradStack):
                torch.manual_seed(stream("noise", self.name, epoch))
            for start in range(0, whole, chunk):
                assert index is not None
                batches = stack.gather(self.x, self.y, index[start : min(start + chunk, whole)])
                for m, batch in enumerate(batches, start):
                    self._augment(batch, drawn, m * micro)
                    accumulate(batch)
                    if due[m]:
                        step(m)
            if last > whole:  # the incomplete micro-batch at the end
                (batch,) = stack.gather(self.x, self.y, where[:, whole * micro :].unsqueeze(0))
                self._augment(batch, drawn, whole * micro)
                accumulate(batch)
                step(whole)
            if timetable.trainings[0].drop_last:
                for grad in stack.grads:  # batches left incomplete are forgotten
                    grad.zero_()

    def _augment(self, batch: tuple[Tensor, ...], drawn: Tensor | None, start: int) -> None:
        """Replace the images of a micro-batch by the views drawn for the samples of the epoch from `start` on."""
        if self.augmentation is not None and drawn is not None:
            images = self.augmentation.images(batch[0])  # (n, b, channels, height, width)
            images.copy_(self.augmentation(images, drawn[:, start : start + images.shape[1]]))

    def finite(self) -> Tensor:
        """Which models hold only finite weights, (n,)."""
        with torch.no_grad():
            return torch.stack([p.sum(1).isfinite() for p in self.stack.params]).all(0).cpu()

    def evaluate(self) -> np.ndarray:
        """Columns train_loss, train_accuracy, test_loss, test_accuracy, (n, 4)."""
        out = torch.empty(self.n, 4, dtype=torch.float64)
        with torch.no_grad():
            for a, b, key in self.splits:
                for column, split in ((0, self.trains[key]), (2, self.tests[key])):
                    loss, accuracy = self.stack.evaluate(split, slice(a, b))
                    out[a:b, column], out[a:b, column + 1] = loss.double(), accuracy.double()
        return out.numpy()

    def state(self) -> State:
        """Everything training needs to go on, by name (views)."""
        tensors = {f"param.{i}": p for i, p in enumerate(self.stack.params)}
        for name, blocks in self.optimiser.state.items():
            tensors |= {f"{name}.{i}": block for i, block in enumerate(blocks)}
        return tensors | {f"buffer.{name}": b for name, b in self.stack.buffers.items()} | {"diverged": self.diverged}

    def restore(self, state: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        """Put back a state, or some rows of it."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                if name not in state or state[name].shape != tensor.shape:
                    raise StoreError(
                        f"the saved state of program {self.name} does not fit it: {name!r} is missing or of another "
                        "shape; delete the saved state to begin this program again."
                    )
                if rows is None:
                    tensor.copy_(state[name])
                elif name != "diverged":
                    tensor[rows] = state[name][rows]

    def snapshot(self) -> State:
        """Return a copy of the state."""
        return {name: tensor.detach().clone() for name, tensor in self.state().items()}


def _chains(chains: Sequence[Chain | None]) -> list[Chain]:
    return [c for c in chains if c is not None]


def _runs(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """Slices (start, stop, value) of equal neighbours."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return [(a, b, values[a]) for a, b in itertools.pairwise(edges)]
