"""How long a program will take: a small model, calibrated once, so that a plan never depends on the clock.

One micro-step costs a fixed price a kernel call, a price a matrix product, its arithmetic and the memory it touches:

    chain    seconds = a + n (b + 6 p m / r(m) + e u m),    plus a step: c + 3 ... passes over the parameters that step

with p parameters, micro-batch m, u hidden units. The constants are medians measured on one core of a recent server;
only their ratios matter, and only for speed: any plan computes the same models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from zoarium.nets.transformer import Transformer

CALL = 2.2e-6  # seconds a kernel call of the chain route, with its share of the interpreter
PRODUCT = 0.12e-6  # seconds a matrix in a batched product
RATE = 75e9  # floating-point operations a second in large products
HALF = 6.0  # micro-batch at which a product runs at half that rate
UNIT = 1.5e-9  # seconds an activation forward and backward
CACHE = 3 << 20  # bytes a core holds near: parameters, gradients and optimiser state of a stack should fit
NEAR, FAR = 60e9, 12e9  # bytes a second within that and beyond it

AUTOGRAD_CALL = 9e-6  # seconds an autograd operation, forward and backward
AUTOGRAD_RATE = 20e9


def chain_seconds(
    sizes: Sequence[int], batches: Sequence[int], counts: Sequence[int], micro: int, samples: int, slots: int
) -> float:
    """Seconds an epoch of a chain program.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, padded hidden widths, outputs.
    batches, counts : sequence of int
        Distinct batch sizes, and the models of each.
    micro : int
        Micro-batch, a divisor of every batch size.
    samples : int
        Training samples N.
    slots : int
        Optimiser state tensors.
    """
    n, layers = sum(counts), len(sizes) - 1
    p = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    units = sum(sizes[1:])
    rows = min(micro, samples)
    bytes_ = 4 * p * n * (2 + slots)
    speed = NEAR if bytes_ <= CACHE else FAR
    accumulate = (
        CALL * (6 + 4 * layers)
        + n * PRODUCT * 3 * layers
        + n * 6 * p * rows / (RATE * rows / (rows + HALF))
        + n * units * rows * UNIT
        + 8 * p * n / speed  # a gradient is read and written once a micro-step
    )
    total = accumulate * -(-samples // rows)
    for batch, count in zip(batches, counts, strict=True):
        steps = -(-samples // min(batch, samples))
        total += steps * count * p * 4 * (7 + 4 * slots) / speed
    due = -(-samples // min(min(batches), samples))  # the smallest batch is due at every such micro-step
    return total + due * CALL * (4 + layers * (4 + 2 * slots))


def autograd_seconds(
    work: float, tensors: int, p: int, batches: Sequence[int], counts: Sequence[int], micro: int, samples: int,
    looped: bool,
) -> float:  # fmt: skip
    """Seconds an epoch of a program that autograd differentiates; `looped` when models run one by one."""
    n = sum(counts)
    rows = min(micro, samples)
    calls = AUTOGRAD_CALL * 3 * tensors * (n if looped else 1)
    steps = -(-samples // rows)
    return steps * (calls + 6 * n * work * rows / AUTOGRAD_RATE + 40 * n * p / NEAR)


def chain_bytes(sizes: Sequence[int], n: int, micro: int, samples: int, slots: int, item: int) -> int:
    """Most memory a chain program holds at once."""
    p = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    hidden = sum(sizes[1:])
    return item * n * (p * (4 + slots) + 4 * hidden * min(micro, samples) + sizes[0] * 2 * micro) + (24 << 20)


def autograd_bytes(work: float, p: int, n: int, micro: int, samples: int, in_size: int, item: int) -> int:
    """Most memory of an autograd program, activations counted at a tenth of the multiplications."""
    activations = max(work / 10, in_size * 4)
    return int(item * n * (p * 7 + min(micro, samples) * (activations + 2 * in_size))) + (48 << 20)


TRANSFORMER_CALL = 4e-6  # seconds a kernel call of the transformer route
TRANSFORMER_RATE = 70e9  # floating-point operations a second in its products
TRANSFORMER_PASS = 0.35e-9  # seconds a number read or written once
TRANSFORMER_SMALL = 0.2e-6  # seconds a matrix of one head and one sequence in a batched product
TRANSFORMER_TILE = 32 << 20  # bytes of activations at a time


def transformer_multiplications(form: Transformer, t: int) -> float:
    """Multiplications of one forward pass of one sample of t tokens."""
    d, hidden, depth = form.width, form.hidden, len(form.blocks)
    token, pairs = 4 * d * d + 2 * d * hidden, 2 * t * d
    if form.causal:
        return t * (depth * (token + pairs) + d * form.outputs)
    last = t * 2 * d * d + token + pairs  # the last block serves one token
    return (depth - 1) * t * (token + pairs) + last + t * d * form.inputs + d * form.outputs


def tile_floats(form: Transformer, t: int) -> int:
    """Numbers a tile of the transformer route holds for each sample of t tokens and each model."""
    d, hidden, heads, depth = form.width, form.hidden, form.heads, len(form.blocks)
    kept = 8 * d + 2 * heads + heads * t + 2 * hidden
    shared = 7 * d + heads * t + 2 * hidden
    return t * (depth * kept + shared + (form.outputs if form.causal else 0))


def transformer_seconds(
    form: Transformer, t: int, p: int, batches: Sequence[int], counts: Sequence[int], micro: int, samples: int,
    slots: int,
) -> float:  # fmt: skip
    """Seconds an epoch of a transformer program of models with p parameters on sequences of t tokens."""
    n, depth = sum(counts), len(form.blocks)
    rows = min(micro, samples)
    floats = tile_floats(form, t)
    tiles = max(1, math.ceil(4 * n * rows * floats / TRANSFORMER_TILE))
    tile = (
        TRANSFORMER_CALL * 75 * depth * tiles
        + n * rows * (6 * transformer_multiplications(form, t) / TRANSFORMER_RATE + 3 * floats * TRANSFORMER_PASS)
        + n * rows * 6 * depth * form.heads * TRANSFORMER_SMALL
    )
    folding = TRANSFORMER_CALL * 40 * (depth + 1) + n * p * 4 * 10 / FAR
    total = (tile + folding) * -(-samples // rows)
    for batch, count in zip(batches, counts, strict=True):
        total += -(-samples // min(batch, samples)) * count * p * 4 * (7 + 4 * slots) / FAR
    due = -(-samples // min(min(batches), samples))
    return total + due * TRANSFORMER_CALL * 4 * (depth + 1) * (4 + 2 * slots)


def transformer_bytes(
    form: Transformer, t: int, p: int, inputs: int, n: int, micro: int, slots: int, item: int
) -> int:  # fmt: skip
    """Most memory of a transformer program: weights folded and not, a few tiles, micro-batches laid out."""
    sample = item * tile_floats(form, t)
    tile = min(max(TRANSFORMER_TILE * item // 4, sample), n * max(micro, 32) * sample)
    return item * n * (p * (9 + slots) + 2 * micro * inputs) + 4 * tile + (48 << 20)
