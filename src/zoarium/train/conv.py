"""Stacks of convolutional nets with the backward pass written out: native kernels in order, no graph of autograd.

A micro-step runs a few models at a time, and a few samples, so that their activations stay in the cache
(`zoarium.train.convcost` says how many). The channels of those models stand side by side, (b, g·C, H, W) with channels
last in memory, and each convolution has g groups; g = 1 is a loop over models with the dense kernels.

For y = f(x) with gradient d at y each step adds its share to the gradient at x:

    convolution      dx, dW, db by the library's own backward kernels
    batch norm       the same, from the mean and deviation the forward pass kept
    relu             d where y > 0, in place
    max-pool         d at the first largest value; relu(max(z)) = max(relu(z)), so the relu moves behind the pool
    sum              d to both
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium.data.dataset import Split, Task
from zoarium.nets.convgraph import ConvGraph, Step
from zoarium.nets.grouped import ConvGraphNet, channels_last
from zoarium.train._convops import KINDS, AddOp, ConvOp, LinearOp, MaxPoolOp, NormOp, Op, Pass, PointwiseOp, ReluOp
from zoarium.train.autograd import AutogradStack
from zoarium.train.chain import Pointwise, pointwise, score
from zoarium.train.convcost import Portion, evaluation_portion, training_portion


def written_out(graph: ConvGraph, shapes: Sequence[tuple[int, ...]]) -> str | None:
    """Why a graph has no backward pass here, as a clause; None if it has."""
    for step in graph.steps:
        if step.kind == "add" and len({shapes[value] for value in step.inputs}) > 1:
            return "it adds activations of different shapes"
        leaf = step.leaf
        if step.kind == "pointwise" and pointwise(leaf) is None:
            return f"no backward pass is written out for {type(leaf).__name__}"
        if isinstance(leaf, nn.AdaptiveMaxPool2d):
            return "no backward pass is written out for AdaptiveMaxPool2d"
        if step.kind == "add" and step.inputs[0] == step.inputs[1]:
            return "a value is added to itself"
    return None


def may_split(steps: Sequence[Step]) -> bool:
    """Whether a micro-batch may be cut: not with batch norm, which sees the whole of it."""
    return all(step.kind != "norm" for step in steps)


def reordered(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with every relu that feeds a max-pool alone moved behind it, where it has a quarter of the work."""
    out = list(steps)
    uses = ConvGraph(tuple(steps), {}).uses
    for index in range(len(out) - 1):
        first, second = out[index], out[index + 1]
        alone = second.inputs == (index + 1,) and uses[index + 1] == [index + 1]
        if type(first.leaf) is nn.ReLU and type(second.leaf) is nn.MaxPool2d and alone:
            out[index], out[index + 1] = replace(second, inputs=first.inputs), replace(first, inputs=(index + 1,))
    return tuple(out)


def _bind(stack: ConvStack, a: int, b: int) -> list[Op]:
    """The operations of models a to b, over views of their parameters, gradients and running statistics."""
    params = {name: p.detach()[a:b] for name, p in stack.named.items()}
    sums = {name: g[a:b] for name, g in zip(stack.named, stack.grads, strict=True)}
    graph = ConvGraph(stack.steps, {})
    uses: list[list[int]] = graph.uses
    ops: list[Op] = []
    depends = [False]  # whether a parameter lies before a value, so that its gradient is wanted
    for index, step in enumerate(stack.steps):
        upstream = any(depends[value] for value in step.inputs)
        depends.append(upstream or step.kind in ("conv", "norm", "linear"))
        kind = MaxPoolOp if isinstance(step.leaf, nn.MaxPool2d) else ReluOp if type(step.leaf) is nn.ReLU else None
        op = (kind or KINDS[step.kind])(step, index + 1, b - a, not upstream, not depends[-1])
        weight, bias = f"{step.name}.weight", f"{step.name}.bias"
        own = (params.get(weight), params.get(bias), (sums.get(weight), sums.get(bias)))
        producer = stack.steps[step.inputs[0] - 1].kind if step.inputs[0] else "input"
        alone = uses[step.inputs[0]] == [index]
        if isinstance(op, ConvOp | LinearOp):
            op.bind(*own)  # pyright: ignore[reportArgumentType]
        elif isinstance(op, NormOp):
            name = step.name
            mean, var, count = (
                stack.buffers[f"{name}.{key}"][a:b] for key in ("running_mean", "running_var", "num_batches_tracked")
            )
            op.bind(*own, mean, var, count)
        elif isinstance(op, ReluOp):
            op.in_place = alone and producer in ("conv", "norm", "pool", "add", "linear")
        elif isinstance(op, PointwiseOp):
            op.bind(cast("Pointwise", pointwise(step.leaf)))
        elif isinstance(op, AddOp):
            op.in_place = alone and producer in ("conv", "norm")
        ops.append(op)
    return ops


class ConvStack(AutogradStack):
    """n convolutional nets of one architecture, trained without autograd; see the module.

    Parameters
    ----------
    net : ConvGraphNet
        The architecture; :func:`written_out` has no objection to its graph.
    n, task, smoothing, dtype, device
        As for :class:`~zoarium.train.autograd.AutogradStack`.
    in_shape : (channels, height, width)
    """

    def __init__(
        self, net: ConvGraphNet, n: int, task: Task, smoothing: Sequence[float],
        dtype: torch.dtype, device: torch.device | str, *, in_shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__(net, n, task, smoothing, dtype, device)
        self.steps = reordered(net.graph.steps)
        self.shapes = net.shapes(in_shape, self.steps)
        self.splits = may_split(self.steps)
        self._portions: dict[int, Portion] = {}
        self._ops: dict[tuple[int, int], list[Op]] = {}

    def _bound(self, a: int, b: int) -> list[Op]:
        """The operations of models a to b, over views of their parameters."""
        if (a, b) not in self._ops:
            self._ops[a, b] = _bind(self, a, b)
        return self._ops[a, b]

    def accumulate(self, batch: tuple[Tensor, ...]) -> None:
        """Add the gradients of the summed losses of one micro-batch a model."""
        x, y = batch  # (n, b, C, H, W), (n, b)
        rows = x.shape[1]
        if rows not in self._portions:
            self._portions[rows] = training_portion(
                self.steps, self.shapes, self.n, rows, self.params[0].element_size(), self.splits
            )
        portion = self._portions[rows]
        for a, b in portion.models(self.n):
            ops = self._bound(a, b)
            for s in range(0, rows, portion.rows):
                adds_up = self.adds_up or s > 0
                self._portion(ops, x[a:b, s : s + portion.rows], y[a:b, s : s + portion.rows], a, adds_up)

    def _portion(self, ops: list[Op], x: Tensor, y: Tensor, a: int, adds_up: bool) -> None:
        """Forward and backward for some models and some of their samples."""
        p = Pass(len(ops))
        p.values[0] = side_by_side(x)
        for op in ops:
            op.adds_up = adds_up
            op.forward(p)
        out = p.value(len(ops))  # (g, b, c)
        p.give(len(ops), self._delta(out, y, self.smoothing[a : a + len(out)]), True)
        for op in reversed(ops):
            if not op.idle:
                op.backward(p)

    def _delta(self, out: Tensor, y: Tensor, smoothing: Tensor) -> Tensor:
        """The gradient of the summed losses at the outputs."""
        if self.task == "regression":
            return (out - y).mul_(2 / out.shape[-1])
        delta = torch.softmax(out, -1)
        smooth = smoothing.view(-1, 1, 1)
        delta.sub_(smooth / out.shape[-1])
        hot = (smooth - 1).expand(-1, y.shape[1], 1)
        return delta.scatter_add_(-1, y.unsqueeze(-1), hot)

    def evaluate(self, split: Split, rows: slice) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of a contiguous slice of models on prepared samples, each (k,)."""
        x, y = split.x, split.y
        self.net.module.eval()
        portion = evaluation_portion(
            self.steps, self.shapes, rows.stop - rows.start, len(x), self.params[0].element_size()
        )
        totals = []
        for a, b in portion.models(rows.stop - rows.start):
            here = slice(rows.start + a, rows.start + b)
            params = {name: p.detach()[here] for name, p in self.named.items()}
            buffers = {name: t[here] for name, t in self.buffers.items()}
            total = self.params[0].new_zeros(2, b - a)
            for s in range(0, len(x), portion.rows):
                images = channels_last(x[s : s + portion.rows])
                out = evaluated(self.steps, images, params, buffers)  # (k, b, c)
                total += torch.stack(score(out.transpose(1, 2).contiguous(), y[s : s + portion.rows], self.task))
            totals.append(total / len(x))
        loss, accuracy = torch.cat(totals, dim=1)
        return loss, accuracy


def side_by_side(x: Tensor) -> Tensor:
    """Images of g models (g, b, C, H, W) as (b, g*C, H, W), channels last."""
    return channels_last(x.transpose(0, 1).flatten(1, 2))


def evaluated(steps: Sequence[Step], x: Tensor, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
    """Outputs (k, b, c) of k models in evaluation mode on images (b, C, H, W), batch norm folded into convolutions."""
    k = len(next(iter(params.values())))
    uses = ConvGraph(tuple(steps), {}).uses
    values: list[Tensor | None] = [x, *[None] * len(steps)]
    folded: set[int] = set()
    for index, step in enumerate(steps):
        leaf, name = step.leaf, step.name
        h = cast("Tensor", values[step.inputs[0]])
        if not step.inputs[0] and not (isinstance(leaf, nn.Conv2d) and leaf.groups == 1):
            h = h.repeat(1, k, 1, 1)
        alone = uses[step.inputs[0]] == [index] and step.inputs[0] > 0
        producer = steps[step.inputs[0] - 1].kind if step.inputs[0] else "input"
        if isinstance(leaf, nn.Conv2d):
            weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
            after = uses[index + 1]
            if len(after) == 1 and steps[after[0]].kind == "norm":
                scale, shift = _affine(steps[after[0]], params, buffers)  # (k, K)
                weight = weight * scale.view(*scale.shape, 1, 1, 1)
                bias = shift if bias is None else torch.addcmul(shift, bias, scale)
                folded.add(after[0])
            groups = leaf.groups * (k if step.inputs[0] else 1) if leaf.groups == 1 else leaf.groups * k
            out = F.conv2d(
                h, weight.flatten(0, 1), None if bias is None else bias.flatten(), leaf.stride,
                cast("tuple[int, int]", leaf.padding), leaf.dilation, groups,
            )  # fmt: skip
        elif index in folded:
            out = h
        elif isinstance(leaf, nn.BatchNorm2d):
            scale, shift = (t.view(1, -1, 1, 1) for t in _affine(step, params, buffers))
            out = torch.addcmul(shift, h, scale)
        elif type(leaf) is nn.ReLU:
            out = h.clamp_min_(0) if alone and producer in ("conv", "norm", "add", "pool") else h.clamp_min(0)
        elif isinstance(leaf, nn.Linear):
            weight, bias = params[f"{name}.weight"].transpose(1, 2), params.get(f"{name}.bias")
            out = torch.bmm(h, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight)
        elif step.kind == "add":
            out = h + cast("Tensor", values[step.inputs[1]])
        elif step.kind in ("subsample", "pad", "flatten"):
            p = Pass(1)
            p.values[0] = h
            KINDS[step.kind](replace(step, inputs=(0,)), 1, k, False).forward(p)
            out = p.value(1)
        else:
            out = cast("nn.Module", leaf)(h)
        values[index + 1] = out
        for value in step.inputs:
            if uses[value][-1] == index:
                values[value] = None
    return cast("Tensor", values[-1])


def _affine(step: Step, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as y = scale x + shift, each (k, C)."""
    leaf, name = cast("nn.BatchNorm2d", step.leaf), step.name
    scale = torch.rsqrt(buffers[f"{name}.running_var"] + leaf.eps)
    if leaf.affine:
        scale = scale * params[f"{name}.weight"]
    shift = -scale * buffers[f"{name}.running_mean"]
    return scale, shift + params[f"{name}.bias"] if leaf.affine else shift
