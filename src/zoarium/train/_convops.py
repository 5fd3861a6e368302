"""Forward and backward of each step of a convolutional stack, by the library's own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium.nets.check import single_value_error
from zoarium.nets.convgraph import Step
from zoarium.train.chain import Pointwise

_aten = torch.ops.aten


class Pass:
    """The values of one forward pass, and the gradients at them on the way back."""

    def __init__(self, count: int) -> None:
        self.values: list[Tensor | None] = [None] * (count + 1)
        self.grads: list[Tensor | None] = [None] * (count + 1)
        self.own = [False] * (count + 1)  # whether nobody else reads that gradient

    def value(self, index: int) -> Tensor:
        return cast("Tensor", self.values[index])

    def take(self, index: int) -> tuple[Tensor, bool]:
        """The gradient at a value, which is then forgotten."""
        grad, self.grads[index] = self.grads[index], None
        return cast("Tensor", grad), self.own[index]

    def give(self, index: int, grad: Tensor, own: bool) -> None:
        """Add to the gradient at a value; `own` says that this tensor may be overwritten."""
        before = self.grads[index]
        if before is not None:
            if own:
                grad.add_(before)
            elif self.own[index]:
                grad = before.add_(grad)
            else:
                grad = before + grad
            own = True
        self.grads[index], self.own[index] = grad, own


@dataclass
class Op:
    """A step for some models.

    `first` says that nobody needs the gradient at its input, `idle` that nobody needs the one at its output either.
    """

    step: Step
    out: int
    g: int
    first: bool
    idle: bool = False
    adds_up: bool = True

    def forward(self, p: Pass) -> None:
        raise NotImplementedError

    def backward(self, p: Pass) -> None:
        raise NotImplementedError

    def give(self, p: Pass, grad: Tensor, own: bool) -> None:
        """Hand a gradient to the input, where a parameter lies before it."""
        if not self.first:
            p.give(self.source, grad, own)

    @property
    def source(self) -> int:
        return self.step.inputs[0]

    def _keep(self, total: Tensor | None, grad: Tensor | None) -> None:
        if total is not None and grad is not None:
            (total.add_ if self.adds_up else total.copy_)(grad.reshape(total.shape))


class ConvOp(Op):
    def bind(self, weight: Tensor, bias: Tensor | None, sums: tuple[Tensor, Tensor | None]) -> None:
        leaf = cast("nn.Conv2d", self.step.leaf)
        self.weight, self.bias, self.sums = weight.flatten(0, 1), None if bias is None else bias.flatten(), sums
        sizes = (list(leaf.stride), list(cast("tuple[int, int]", leaf.padding)), list(leaf.dilation), False, [0, 0])
        self.settings, self.groups = sizes, leaf.groups * self.g
        self.mask = [not self.first, True, bias is not None]

    def forward(self, p: Pass) -> None:
        p.values[self.out] = torch.convolution(
            p.value(self.source), self.weight, self.bias, *self.settings, self.groups
        )

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        sizes = None if self.bias is None else [len(self.bias)]
        dx, dw, db = _aten.convolution_backward(
            d, p.value(self.source), self.weight, sizes, *self.settings, self.groups, self.mask
        )
        self._keep(self.sums[0], dw)
        self._keep(self.sums[1], db)
        self.give(p, dx, True)


class NormOp(Op):
    def bind(
        self, weight: Tensor | None, bias: Tensor | None, sums: tuple[Tensor | None, Tensor | None],
        mean: Tensor, var: Tensor, count: Tensor | None,
    ) -> None:  # fmt: skip
        self.leaf = cast("nn.BatchNorm2d", self.step.leaf)
        self.weight, self.bias = (None if t is None else t.flatten() for t in (weight, bias))
        self.sums, self.mean, self.var, self.count = sums, mean.view(-1), var.view(-1), count

    def forward(self, p: Pass) -> None:
        x = p.value(self.source)
        if x.shape[0] * x.shape[2] * x.shape[3] == 1:
            raise single_value_error(p.value(0).shape)
        y, self.average, self.scale = torch.native_batch_norm(
            x, self.weight, self.bias, self.mean, self.var, True, cast("float", self.leaf.momentum), self.leaf.eps
        )
        p.values[self.out] = y
        if self.count is not None:
            self.count.add_(1)

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        dx, dw, db = _aten.native_batch_norm_backward(
            d, p.value(self.source), self.weight, self.mean, self.var, self.average, self.scale, True, self.leaf.eps,
            [not self.first, self.weight is not None, self.bias is not None],
        )  # fmt: skip
        self._keep(self.sums[0], dw)
        self._keep(self.sums[1], db)
        self.give(p, dx, True)


class ReluOp(Op):
    """Overwrites its input where no one else reads it; the sign of the output is all the way back needs."""

    in_place = False

    def forward(self, p: Pass) -> None:
        x = p.value(self.source)
        p.values[self.out] = x.clamp_min_(0) if self.in_place else x.clamp_min(0)

    def backward(self, p: Pass) -> None:
        d, own = p.take(self.out)
        y = p.value(self.out)
        grad = d if own else torch.empty_like(y)
        self.give(p, _aten.threshold_backward.grad_input(d, y, 0, grad_input=grad), True)


class PointwiseOp(Op):
    def bind(self, kernels: Pointwise) -> None:
        self.kernels = kernels

    def forward(self, p: Pass) -> None:
        x = p.value(self.source)
        out = torch.empty_like(x)
        self.kernels.forward(x, out)
        p.values[self.out] = out

    def backward(self, p: Pass) -> None:
        d, own = p.take(self.out)
        d = d if own else torch.empty_like(p.value(self.out)).copy_(d)
        self.kernels.backward(d, p.value(self.source), p.value(self.out))
        self.give(p, d, True)


class MaxPoolOp(Op):
    def forward(self, p: Pass) -> None:
        leaf = cast("nn.MaxPool2d", self.step.leaf)
        self.settings: list[Any] = [_pair(v) for v in (leaf.kernel_size, leaf.stride, leaf.padding, leaf.dilation)]
        self.settings.append(leaf.ceil_mode)
        p.values[self.out], self.places = _aten.max_pool2d_with_indices(p.value(self.source), *self.settings)

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        x = p.value(self.source)
        self.give(p, _aten.max_pool2d_with_indices_backward(d, x, *self.settings, self.places), True)


class AveragePoolOp(Op):
    def forward(self, p: Pass) -> None:
        leaf, x = self.step.leaf, p.value(self.source)
        self.whole = isinstance(leaf, nn.AdaptiveAvgPool2d) and leaf.output_size in (1, (1, 1))
        if isinstance(leaf, nn.AvgPool2d):
            self.settings = [_pair(v) for v in (leaf.kernel_size, leaf.stride, leaf.padding)]
            self.settings += [leaf.ceil_mode, leaf.count_include_pad, leaf.divisor_override]
            p.values[self.out] = _aten.avg_pool2d(x, *self.settings)
        else:
            p.values[self.out] = cast("nn.Module", leaf)(x)

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        x = p.value(self.source)
        if self.whole:
            self.give(p, (d / (x.shape[2] * x.shape[3])).expand(x.shape), False)
        elif isinstance(self.step.leaf, nn.AvgPool2d):
            self.give(p, _aten.avg_pool2d_backward(d, x, *self.settings), True)
        else:
            self.give(p, _aten._adaptive_avg_pool2d_backward(d, x), True)


class AddOp(Op):
    in_place = False

    def forward(self, p: Pass) -> None:
        a, b = (p.value(i) for i in self.step.inputs)
        p.values[self.out] = a.add_(b) if self.in_place else a + b

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        for index in self.step.inputs:
            p.give(index, d, False)


class SubsampleOp(Op):
    def forward(self, p: Pass) -> None:
        s = self.step.amounts[0]
        p.values[self.out] = p.value(self.source)[:, :, ::s, ::s]

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        s, x = self.step.amounts[0], p.value(self.source)
        grad = torch.zeros_like(x)
        grad[:, :, ::s, ::s] = d
        self.give(p, grad, True)


class PadOp(Op):
    def forward(self, p: Pass) -> None:
        own = p.value(self.source).permute(0, 2, 3, 1).unflatten(3, (self.g, -1))  # (b, H, W, g, C)
        p.values[self.out] = F.pad(own, self.step.amounts).flatten(3).permute(0, 3, 1, 2)

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        before, after = self.step.amounts
        own = d.permute(0, 2, 3, 1).unflatten(3, (self.g, -1))
        kept = own[..., before : own.shape[-1] - after]
        self.give(p, kept.flatten(3).permute(0, 3, 1, 2), False)


class FlattenOp(Op):
    def forward(self, p: Pass) -> None:
        p.values[self.out] = p.value(self.source).unflatten(1, (self.g, -1)).transpose(0, 1).flatten(2)

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)  # (g, b, C*H*W)
        x = p.value(self.source)
        own = d.view(self.g, len(x), -1, *x.shape[2:]).transpose(0, 1)  # (b, g, C, H, W)
        self.give(p, torch.empty_like(x).copy_(own.flatten(1, 2)), True)


class LinearOp(Op):
    def bind(self, weight: Tensor, bias: Tensor | None, sums: tuple[Tensor, Tensor | None]) -> None:
        self.weight, self.bias, self.sums = weight, bias, sums  # (g, out, in)

    def forward(self, p: Pass) -> None:
        h, w = p.value(self.source), self.weight.transpose(1, 2)
        p.values[self.out] = torch.bmm(h, w) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), h, w)

    def backward(self, p: Pass) -> None:
        d, _ = p.take(self.out)
        self._keep(self.sums[0], torch.bmm(d.transpose(1, 2), p.value(self.source)))
        self._keep(self.sums[1], d.sum(1) if self.bias is not None else None)
        self.give(p, torch.bmm(d, self.weight), True)


KINDS: dict[str, type[Op]] = {
    "conv": ConvOp, "norm": NormOp, "pool": AveragePoolOp, "pointwise": PointwiseOp, "add": AddOp,
    "subsample": SubsampleOp, "pad": PadOp, "flatten": FlattenOp, "linear": LinearOp,
}  # fmt: skip


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
