"""Stacks with a backward pass of their own, and which nets they take.

A finder looks at the stacked form of a net and its data and answers with a :class:`Found`, or None. The first answer
counts; a net nobody takes is differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoarium.data.dataset import Dataset
from zoarium.nets import StackedNet
from zoarium.nets.grouped import ConvGraphNet
from zoarium.train.autograd import AutogradStack
from zoarium.train.conv import ConvStack, may_split, reordered, written_out
from zoarium.train.convcost import epoch_bytes, epoch_seconds, training_portion


@dataclass(frozen=True)
class Found:
    """A stack for a net, and its price.

    Attributes
    ----------
    route : str
        Its name in plans.
    reason : str
        Why, in words.
    stack : callable
        (n, task, smoothing, dtype, device) -> the stack.
    seconds : callable
        (n, micro, samples) -> estimated seconds an epoch on one core.
    bytes : callable
        (n, micro, samples, item) -> estimated peak memory, numbers of `item` bytes.
    words : callable
        (n, micro) -> how n models run, in words.
    """

    route: str
    reason: str
    stack: Callable[..., AutogradStack]
    seconds: Callable[[int, int, int], float]
    bytes: Callable[[int, int, int, int], int]
    words: Callable[[int, int], str]


def convolutional(net: StackedNet, dataset: Dataset) -> Found | None:
    """Convolutional nets whose every step has a backward pass in `zoarium.train.conv`."""
    if not isinstance(net, ConvGraphNet) or dataset.task not in ("classification", "regression"):
        return None
    shapes = net.shapes(dataset.in_shape)
    if len(shapes[-1]) != 1 or written_out(net.graph, shapes) is not None:
        return None
    steps, p = reordered(net.graph.steps), net.layout.size
    shapes = net.shapes(dataset.in_shape, steps)
    splits = may_split(steps)

    def stack(*args: Any) -> AutogradStack:
        return ConvStack(net, *args, in_shape=dataset.in_shape)

    def words(n: int, micro: int) -> str:
        one = training_portion(steps, shapes, n, micro, 4, splits)
        rows = "" if one.rows == micro else f" and {one.rows} of {micro} samples"
        if one.size == 1:
            return f"one model{rows} at a time through dense kernels, so that its activations stay in the cache"
        models = f"all {n} models" if one.size == n else f"{one.size} of {n} models"
        return f"{models}{rows} at a time side by side, one grouped convolution a layer"

    convolutions = sum(step.kind == "conv" for step in steps)
    return Found(
        "conv",
        f"{convolutions} convolutions in a graph of {len(steps)} steps with a backward pass written out",
        stack,
        lambda n, micro, samples: epoch_seconds(steps, shapes, p, n, micro, samples, splits),
        lambda n, micro, samples, item: epoch_bytes(steps, shapes, p, n, micro, samples, item, splits),
        words,
    )


FINDERS: list[Callable[[StackedNet, Dataset], Found | None]] = [convolutional]


def why_autograd(net: StackedNet, dataset: Dataset) -> str:
    """Why a convolutional net that runs as a graph is left to autograd, or nothing."""
    if not isinstance(net, ConvGraphNet):
        return ""
    why = written_out(net.graph, net.shapes(dataset.in_shape)) or f"no backward pass is written out for {dataset.task}"
    return f", differentiated by autograd: {why}"


def find(net: StackedNet, dataset: Dataset) -> Found | None:
    """The first stack that takes a net."""
    return next((found for finder in FINDERS if (found := finder(net, dataset)) is not None), None)
