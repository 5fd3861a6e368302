"""How many models and samples of a convolutional stack run at a time, and how long that takes: from shapes alone.

    seconds = calls · (CALL or CONV) + sum over steps of g r (6 work / RATE + bytes / NEAR) · slow(working set)

for g models and r samples at a time. Small g and r keep the activations of a step in the cache, large ones share the
price of a kernel call; where choices cost the same within two per cent, more samples come first, then more models. The
constants were set by hand after a sweep of 27 shapes (1 to 128 channels, 2 to 28 pixels, g of 1, 2, 6 and 12) on one
core of a server with 1 MiB of L2 and 32 MiB of L3 cache; only their ratios matter, and only for speed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zoarium.nets.convgraph import Step

CALL = 8e-6  # seconds an operation, forward and backward, with its share of the interpreter
CONV = 100e-6  # seconds a convolution, forward and backward, whatever its size
RATE = 110e9  # floating-point operations a second of the convolutions
NEAR = 40e9  # bytes a second read and written by the other steps within the cache
CACHE = 5 << 20  # bytes of inputs, outputs and weights of a step beyond which it slows down
LANES = 16  # channels of one group a kernel takes at once


@dataclass(frozen=True)
class Portion:
    """`size` models and `rows` samples at a time; `seconds` an epoch's share of one micro-batch of all models."""

    size: int
    rows: int
    seconds: float

    def models(self, n: int) -> list[tuple[int, int]]:
        """Slices (start, stop) of n models, as equal as they can be."""
        count = math.ceil(n / self.size)
        edges = [round(i * n / count) for i in range(count + 1)]
        return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class Work:
    """What one sample of one model costs in one step."""

    multiplications: float
    activations: int  # numbers read and written
    weights: int
    convolution: bool
    thin: float = 1.0  # how much longer it takes for one model alone, whose few channels fill no vector


def work_of(steps: Sequence[Step], shapes: Sequence[tuple[int, ...]]) -> list[Work]:
    """The work of each step, multiplications padded to whole vectors of channels."""
    out = []
    for index, step in enumerate(steps):
        activations = sum(math.prod(shapes[value]) for value in (*step.inputs, index + 1))
        weights = sum(p.numel() for p in step.leaf.parameters()) if step.leaf is not None else 0
        multiplications, thin = 0.0, 1.0
        if isinstance(step.leaf, nn.Conv2d):
            channels, *place = shapes[index + 1]
            taps = math.prod(step.leaf.kernel_size) * shapes[step.inputs[0]][0] / step.leaf.groups
            multiplications = taps * math.prod(place) * max(channels, LANES / 2)
            thin = (
                min(max(0.75 * LANES / min(channels, shapes[step.inputs[0]][0]), 1.0), 2.0) if step.inputs[0] else 1.0
            )
        elif isinstance(step.leaf, nn.Linear):
            multiplications = float(weights)
        out.append(Work(multiplications, activations, weights, isinstance(step.leaf, nn.Conv2d), thin))
    return out


def seconds_of(
    work: Sequence[Work], n: int, rows: int, size: int, portion: int, item: int, *, training: bool
) -> float:  # fmt: skip
    """Seconds of one micro-batch of `rows` samples for n models, `size` models and `portion` samples at a time."""
    rounds = math.ceil(n / size) * math.ceil(rows / portion)
    here = n / math.ceil(n / size) * rows / math.ceil(rows / portion)  # samples of a round
    passes = 3 if training else 1
    total = 0.0
    for step in work:
        bytes_ = item * (step.activations * here + step.weights * n / math.ceil(n / size))
        slow = 1 + min(max(bytes_ / CACHE - 1, 0.0), 1.0)
        arithmetic = 2 * passes * step.multiplications / RATE * (step.thin if size == 1 else 1)
        traffic = passes * item * step.activations / NEAR * (0.2 if step.convolution else 1)
        total += (CONV if step.convolution else CALL) * passes / 3 + here * (arithmetic + traffic) * slow
    return rounds * total


def _portion(
    steps: Sequence[Step], shapes: Sequence[tuple[int, ...]], n: int, rows: int, item: int, *,
    training: bool, splits: bool,
) -> Portion:  # fmt: skip
    work = work_of(steps, shapes)
    sizes = sorted({math.ceil(n / k) for k in range(1, n + 1)}, reverse=True)
    portions = [rows]
    while splits and portions[-1] > 8:
        portions.append(math.ceil(portions[-1] / 2))
    best: Portion | None = None
    for portion in portions:
        for size in sizes:
            seconds = seconds_of(work, n, rows, size, portion, item, training=training)
            if best is None or seconds < 0.98 * best.seconds:
                best = Portion(size, portion, seconds)
    assert best is not None
    return best


def training_portion(
    steps: Sequence[Step], shapes: Sequence[tuple[int, ...]], n: int, rows: int, item: int, splits: bool
) -> Portion:
    """The cheapest portion for a forward and backward pass; `splits` allows parts of a micro-batch."""
    return _portion(steps, shapes, n, rows, item, training=True, splits=splits)


def evaluation_portion(
    steps: Sequence[Step], shapes: Sequence[tuple[int, ...]], n: int, rows: int, item: int
) -> Portion:
    """The cheapest portion for a forward pass over `rows` samples all models see."""
    return _portion(steps, shapes, n, rows, item, training=False, splits=True)


def epoch_seconds(
    steps: Sequence[Step], shapes: Sequence[tuple[int, ...]], p: int, n: int, micro: int, samples: int, splits: bool
) -> float:
    """Seconds of an epoch of n models of p parameters, evaluation of as many samples included."""
    rows = min(micro, samples)
    one = training_portion(steps, shapes, n, rows, 4, splits)
    after = evaluation_portion(steps, shapes, n, samples, 4)
    return -(-samples // rows) * (one.seconds + 40 * n * p / NEAR + 20 * CALL) + after.seconds


def epoch_bytes(
    steps: Sequence[Step], shapes: Sequence[tuple[int, ...]], p: int, n: int, micro: int, samples: int, item: int,
    splits: bool,
) -> int:  # fmt: skip
    """Most memory such a program holds: parameters, gradients, optimiser state, inputs, the values of one portion."""
    one = training_portion(steps, shapes, n, min(micro, samples), item, splits)
    values = sum(math.prod(shape) for shape in shapes)
    inputs = 3 * n * min(micro, samples) * math.prod(shapes[0])
    return int(item * (7 * n * p + inputs + 3 * one.size * one.rows * values)) + (64 << 20)
