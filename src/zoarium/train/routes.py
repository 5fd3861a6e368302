"""Training stacks with a hand-written backward pass: which architectures have one, and what it costs.

A finder looks at the stacked form of a module and at its data and returns a :class:`HandWritten`, or None where it has
nothing to offer. The first that answers is taken; nets without an answer are differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoarium.data.dataset import Dataset, Split, Task
from zoarium.nets import StackedNet
from zoarium.nets.transformer import TransformerNet
from zoarium.train.cost import transformer_bytes, transformer_seconds
from zoarium.train.transformer import TransformerStack


class Stack(Protocol):
    """Models of a program in memory, as :class:`~zoarium.train.run.Run` drives them."""

    params: list[Tensor]
    grads: list[Tensor]
    buffers: dict[str, Tensor]
    adds_up: bool

    def load(self, row: int, state: Mapping[str, Tensor]) -> None: ...  # noqa: D102

    def dump(self, architecture: int, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...  # noqa: D102

    def inputs(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def gather(self, x: Tensor, y: Tensor, index: Tensor) -> list[tuple[Tensor, ...]]: ...  # noqa: D102

    def accumulate(self, batch: tuple[Tensor, ...]) -> None: ...  # noqa: D102

    def evaluate(self, split: Split, rows: slice) -> tuple[Tensor, Tensor]: ...  # noqa: D102


@dataclass(frozen=True)
class HandWritten:
    """A hand-written stack for one architecture on one kind of data.

    Attributes
    ----------
    route : str
        Its name.
    reason : str
        Why it fits, in words.
    build : callable
        ``(n, smoothing, dtype, device) -> Stack``.
    seconds : callable
        ``(batches, counts, micro, samples, slots) -> float``: an epoch on one core.
    bytes : callable
        ``(n, micro, samples, slots, item) -> int``: the most a program of n models holds.
    """

    route: str
    reason: str
    build: Callable[[int, Sequence[float], torch.dtype, torch.device | str], Stack]
    seconds: Callable[[Sequence[int], Sequence[int], int, int, int], float]
    bytes: Callable[[int, int, int, int, int], int]


Finder = Callable[[StackedNet, Dataset], HandWritten | None]


def transformer_route(net: StackedNet, dataset: Dataset) -> HandWritten | None:
    """Vision transformers on classes or numbers, GPT-2s on language."""
    task: Task = dataset.task
    if not isinstance(net, TransformerNet) or (net.transformer.kind == "gpt2") != (task == "language"):
        return None
    form, layout = net.transformer, net.layout
    t = dataset.in_shape[0] if form.kind == "gpt2" else form.tokens
    inputs = dataset.train.x[0].numel()

    def build(n: int, smoothing: Sequence[float], dtype: torch.dtype, device: torch.device | str) -> TransformerStack:
        return TransformerStack(form, layout, n, task, smoothing, dtype, device)

    return HandWritten(
        "transformer",
        "a transformer, its backward pass written out",
        build,
        lambda batches, counts, micro, samples, slots: transformer_seconds(
            form, t, layout.size, batches, counts, micro, samples, slots
        ),
        lambda n, micro, samples, slots, item: transformer_bytes(form, t, layout.size, inputs, n, micro, slots, item),
    )


FINDERS: list[Finder] = [transformer_route]


def hand_written(net: StackedNet, dataset: Dataset) -> HandWritten | None:
    """The hand-written stack of a net on its data, if there is one."""
    return next((found for finder in FINDERS if (found := finder(net, dataset)) is not None), None)
