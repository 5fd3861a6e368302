"""Convolutional nets, n models at a time: one grouped convolution a layer.

The channels of n models stand side by side, (b, n·C, H, W) in memory order b, H, W, n·C ("channels last"), so that a
convolution with n groups gives each model its own filters, and pooling, activations, sums and batch norm, which act
channel by channel, need nothing else. Where all models see the same images the first convolution is one matrix product
of all filters with the unfolded patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium._core.errors import NetError
from zoarium.nets.check import single_value_error
from zoarium.nets.convgraph import ConvGraph, Step
from zoarium.nets.stacked import StackedNet, Tensors


class ConvGraphNet(StackedNet):
    """The steps of a :class:`~zoarium.nets.convgraph.ConvGraph`, each for all models at once."""

    kind = "grouped"

    def __init__(self, module: nn.Module, graph: ConvGraph) -> None:
        chain = all(step.kind not in ("add", "pad", "subsample") for step in graph.steps)
        what = "a chain" if chain else "a graph"
        super().__init__(module, f"{what} of convolutions, run as one grouped convolution a layer")
        self.graph = graph
        self._last_use = [max(users, default=len(graph.steps)) for users in graph.uses]

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(next(iter(params.values())))
        if x.dim() != 4 + per_model:
            raise NetError(
                "this net takes images (channels, height, width), found inputs of shape "
                f"{tuple(x.shape[1 + per_model :])}; reshape them."
            )
        for layer in layers:
            if layer not in self.graph.layers:
                raise NetError(f"layer {layer!r} is not run in the forward pass; choose another layer.")
        wanted = {value: name for name, value in self.graph.layers.items() if name in layers}
        taken: dict[str, Tensor] = {}
        start = channels_last(x.transpose(0, 1).flatten(1, 2)) if per_model else x  # (b, n*C, H, W) or shared
        values: dict[int, Tensor] = {0: start}
        flat: set[int] = set()
        for index, step in enumerate(self.graph.steps):
            inputs = [values[value] for value in step.inputs]
            if not per_model and step.kind != "conv" and 0 in step.inputs:
                inputs = [h.repeat(1, n, 1, 1) if v == 0 else h for v, h in zip(step.inputs, inputs, strict=True)]
            h = self._step(step, inputs, params, buffers, n, start, not per_model and step.inputs[0] == 0)
            if step.kind == "flatten" or step.inputs[0] in flat:
                flat.add(index + 1)
            values[index + 1] = h
            for value in step.inputs:
                if self._last_use[value] == index:
                    values.pop(value, None)
            if index + 1 in wanted:
                for name in layers:
                    if self.graph.layers[name] == index + 1:
                        taken[name] = h if index + 1 in flat else h.unflatten(1, (n, -1)).transpose(0, 1)
        out = values[len(self.graph.steps)]
        return out if len(self.graph.steps) in flat else out.unflatten(1, (n, -1)).transpose(0, 1), taken

    def shapes(self, in_shape: tuple[int, ...], steps: Sequence[Step] | None = None) -> list[tuple[int, ...]]:
        """Shape (C, H, W) or (features,) of each value of one model on one sample of shape `in_shape`.

        `steps` are those of the graph, or the same in another order.
        """
        params = {name: p.detach().unsqueeze(0) for name, p in self.module.named_parameters()}
        buffers = {name: b.unsqueeze(0) for name, b in self.module.named_buffers()}
        values = [next(iter(params.values())).new_zeros(2, *in_shape)]
        modes = [(child, child.training) for child in self.module.modules()]
        try:
            self.module.eval()
            with torch.no_grad():
                for step in steps or self.graph.steps:
                    inputs = [values[value] for value in step.inputs]
                    values.append(self._step(step, inputs, params, buffers, 1, values[0], False))
        finally:
            for child, mode in modes:
                child.training = mode
        return [tuple(v.shape[1:] if v.dim() == 4 else v.shape[2:]) for v in values]

    def _step(
        self, step: Step, inputs: list[Tensor], params: Tensors, buffers: Tensors, n: int, start: Tensor, shared: bool
    ) -> Tensor:
        h, leaf, name = inputs[0], step.leaf, step.name
        if isinstance(leaf, nn.Conv2d):
            weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
            if shared and leaf.groups > 1:
                h, shared = h.repeat(1, n, 1, 1), False
            return _first(h, weight, bias, leaf) if shared else _grouped(h, weight, bias, leaf)
        if isinstance(leaf, nn.BatchNorm2d):
            if leaf.training and h.shape[0] * h.shape[2] * h.shape[3] == 1:
                raise single_value_error(start.shape)
            return _batch_norm(h, name, leaf, params, buffers)
        if isinstance(leaf, nn.Linear):
            weight, bias = params[f"{name}.weight"].transpose(1, 2), params.get(f"{name}.bias")
            return torch.bmm(h, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight)
        if isinstance(leaf, nn.Dropout):
            own = self.module.get_submodule(name)  # not a copy that works out of place: its mode counts
            return F.dropout(h, leaf.p, own.training)
        if step.kind == "add":
            return inputs[0] + inputs[1]
        if step.kind == "subsample":
            return h[:, :, :: step.amounts[0], :: step.amounts[0]]
        if step.kind == "pad":
            own = h.permute(0, 2, 3, 1).unflatten(3, (n, -1))  # (b, H, W, n, C)
            return F.pad(own, step.amounts).flatten(3).permute(0, 3, 1, 2)
        if step.kind == "flatten":
            return h.unflatten(1, (n, -1)).transpose(0, 1).flatten(2)  # (n, b, C*H*W)
        return cast("nn.Module", leaf)(h)


def channels_last(h: Tensor) -> Tensor:
    """The same images with channels last in memory, also where one channel leaves torch in doubt."""
    h = h.contiguous(memory_format=torch.channels_last)
    if h.shape[1] == 1:  # else taken for channels first, and so is all that follows: pooling took ten times as long
        h = h.as_strided(h.shape, (h.shape[2] * h.shape[3], 1, h.shape[3], 1), h.storage_offset())
    return h


def _grouped(h: Tensor, weight: Tensor, bias: Tensor | None, leaf: nn.Conv2d) -> Tensor:
    """Each model's convolution on its own channels: (b, n*C, H, W) -> (b, n*C', H', W')."""
    filters = channels_last(weight.flatten(0, 1))  # (n*C', C, k, k)
    padding = cast("tuple[int, int]", leaf.padding)
    return F.conv2d(
        h,
        filters,
        None if bias is None else bias.flatten(),
        leaf.stride,
        padding,
        leaf.dilation,
        groups=len(weight) * leaf.groups,
    )


def _first(x: Tensor, weight: Tensor, bias: Tensor | None, leaf: nn.Conv2d) -> Tensor:
    """All models' first convolution of the same images (b, C, H, W): one matrix product with the patches."""
    size = _output_size(x, leaf)
    if min(size) < 1 or x.shape[1] != leaf.in_channels:
        raise NetError(
            f"this net takes {leaf.in_channels} channel(s) of at least {leaf.kernel_size} pixels, found images "
            f"{tuple(x.shape[1:])}; choose a net for this shape."
        )
    padding = cast("tuple[int, int]", leaf.padding)
    patches = F.unfold(x, cast("tuple[int, int]", leaf.kernel_size), leaf.dilation, padding, leaf.stride)
    patches = patches.transpose(1, 2).flatten(0, 1)  # (b*H'*W', C*k*k)
    filters = weight.flatten(0, 1).flatten(1).t()  # (C*k*k, n*C')
    h = patches @ filters if bias is None else torch.addmm(bias.flatten(), patches, filters)
    return h.view(len(x), *size, -1).permute(0, 3, 1, 2)  # (b, n*C', H', W'), channels last in memory


def _output_size(x: Tensor, leaf: nn.Conv2d) -> tuple[int, int]:
    height, width = (
        (int(size) + 2 * int(pad) - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            x.shape[-2:], leaf.padding, leaf.dilation, leaf.kernel_size, leaf.stride, strict=True
        )
    )
    return height, width


def _batch_norm(h: Tensor, name: str, leaf: nn.BatchNorm2d, params: Tensors, buffers: Tensors) -> Tensor:
    """Batch norm of all models' channels at once; in training mode running statistics are updated in place."""
    n = h.shape[1] // leaf.num_features

    def stacked(key: str) -> Tensor:
        own = buffers.get(f"{name}.{key}")
        return getattr(leaf, key).repeat(n) if own is None else own.view(-1) if own.is_contiguous() else own.flatten()

    mean, var = stacked("running_mean"), stacked("running_var")
    weight, bias = params.get(f"{name}.weight"), params.get(f"{name}.bias")
    out = F.batch_norm(
        h, mean, var, None if weight is None else weight.flatten(), None if bias is None else bias.flatten(),
        leaf.training, cast("float", leaf.momentum), leaf.eps,
    )  # fmt: skip
    if leaf.training:
        with torch.no_grad():
            for key, new in (("running_mean", mean), ("running_var", var)):
                own = buffers.get(f"{name}.{key}")
                if own is not None and not own.is_contiguous():  # a copy was updated
                    own.copy_(new.view(own.shape))
            if (count := buffers.get(f"{name}.num_batches_tracked")) is not None:
                count.add_(1)
    return out
