"""Training stacks with a backward pass of their own: which nets have one, and what it costs.

A finder looks at the stacked form of a net and its data and answers with a :class:`HandWritten`, or None. The first
answer counts; a net nobody takes is differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoarium.data.dataset import Dataset, Split
from zoarium.nets import StackedNet
from zoarium.nets.grouped import ConvGraphNet
from zoarium.nets.transformer import TransformerNet
from zoarium.train.conv import ConvStack, may_split, reordered, written_out
from zoarium.train.convcost import epoch_bytes, epoch_seconds, training_portion
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
    """A stack with its backward pass written out, for one architecture on one kind of data.

    Attributes
    ----------
    route : str
        Its name in plans.
    reason : str
        Why it fits, in words.
    build : callable
        ``(n, smoothing, dtype, device) -> Stack``.
    seconds : callable
        ``(batches, counts, micro, samples, slots) -> float``: an epoch on one core.
    bytes : callable
        ``(n, micro, samples, slots, item) -> int``: the most a program of n models holds.
    words : callable
        ``(n, micro) -> str``: how n models run, or nothing.
    """

    route: str
    reason: str
    build: Callable[[int, Sequence[float], torch.dtype, torch.device | str], Stack]
    seconds: Callable[[Sequence[int], Sequence[int], int, int, int], float]
    bytes: Callable[[int, int, int, int, int], int]
    words: Callable[[int, int], str] = lambda n, micro: ""


def convolutional(net: StackedNet, dataset: Dataset) -> HandWritten | None:
    """Convolutional nets whose every step has a backward pass in `zoarium.train.conv`."""
    if not isinstance(net, ConvGraphNet) or dataset.task == "language":
        return None
    task, shapes = dataset.task, net.shapes(dataset.in_shape)
    if len(shapes[-1]) != 1 or written_out(net.graph, shapes) is not None:
        return None
    steps, p = reordered(net.graph.steps), net.layout.size
    shapes = net.shapes(dataset.in_shape, steps)
    splits = may_split(steps)

    def build(n: int, smoothing: Sequence[float], dtype: torch.dtype, device: torch.device | str) -> Stack:
        return ConvStack(net, n, task, smoothing, dtype, device, in_shape=dataset.in_shape)

    def words(n: int, micro: int) -> str:
        one = training_portion(steps, shapes, n, micro, 4, splits)
        rows = "" if one.rows == micro else f" and {one.rows} of {micro} samples"
        if one.size == 1:
            return f"one model{rows} at a time through dense kernels, so that its activations stay in the cache"
        models = f"all {n} models" if one.size == n else f"{one.size} of {n} models"
        return f"{models}{rows} at a time side by side, one grouped convolution a layer"

    convolutions = sum(step.kind == "conv" for step in steps)
    return HandWritten(
        "conv",
        f"{convolutions} convolutions in a graph of {len(steps)} steps with a backward pass written out",
        build,
        lambda batches, counts, micro, samples, slots: epoch_seconds(
            steps, shapes, p, sum(counts), micro, samples, splits
        ),
        lambda n, micro, samples, slots, item: epoch_bytes(steps, shapes, p, n, micro, samples, item, splits),
        words,
    )


def transformer(net: StackedNet, dataset: Dataset) -> HandWritten | None:
    """Vision transformers on classes or numbers, GPT-2s on language."""
    if not isinstance(net, TransformerNet) or (net.transformer.kind == "gpt2") != (dataset.task == "language"):
        return None
    form, layout, task = net.transformer, net.layout, dataset.task
    t = dataset.in_shape[0] if form.kind == "gpt2" else form.tokens
    inputs = dataset.train.x[0].numel()

    def build(n: int, smoothing: Sequence[float], dtype: torch.dtype, device: torch.device | str) -> Stack:
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


FINDERS: list[Callable[[StackedNet, Dataset], HandWritten | None]] = [convolutional, transformer]


def hand_written(net: StackedNet, dataset: Dataset) -> HandWritten | None:
    """The first stack that takes a net."""
    return next((found for finder in FINDERS if (found := finder(net, dataset)) is not None), None)


def why_autograd(net: StackedNet, dataset: Dataset) -> str:
    """Why a convolutional net that runs as a graph is left to autograd, or nothing."""
    if not isinstance(net, ConvGraphNet):
        return ""
    why = written_out(net.graph, net.shapes(dataset.in_shape)) or f"no backward pass is written out for {dataset.task}"
    return f", differentiated by autograd: {why}"
