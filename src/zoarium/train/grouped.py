"""Convolutional nets of n models as one net with n groups, channels last.

The channels of all models lie side by side, (b, n c, h, w), and a convolution with ``groups=n`` lets each model see its
own. Channels last, this beats both vmap and a loop over models while channels are few; batch norm, pooling and
pointwise functions work on channels one by one, so they take the joined channels as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium.nets import StackedNet
from zoarium.nets.stacked import POINTWISE, Tensors

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class GroupedNet(StackedNet):
    """A row of convolutions, batch norms, pools, pointwise functions and linear layers, n models at a time."""

    kind = "grouped"

    def __init__(self, module: nn.Module, leaves: list[tuple[str, nn.Module]]) -> None:
        super().__init__(module, "one grouped convolution for all models, channels last")
        self.leaves = leaves

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(next(iter(params.values())))
        taken: dict[str, Tensor] = {}
        joined = x.transpose(0, 1) if per_model else x.unsqueeze(1).expand(-1, n, *x.shape[1:])  # (b, n, c, h, w)
        h = joined.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        for name, leaf in self.leaves:
            h = self._apply(name, leaf, h, params, buffers, n)
            if name in layers:
                taken[name] = _by_model(h, n)
        return _by_model(h, n), taken

    def _apply(self, name: str, leaf: nn.Module, h: Tensor, params: Tensors, buffers: Tensors, n: int) -> Tensor:
        weight, bias = params.get(f"{name}.weight"), params.get(f"{name}.bias")
        if isinstance(leaf, nn.Conv2d):
            assert weight is not None
            w = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            b = None if bias is None else bias.flatten()
            return F.conv2d(h, w, b, leaf.stride, leaf.padding, leaf.dilation, groups=n)
        if isinstance(leaf, nn.BatchNorm2d):
            return self._normalise(name, leaf, h, weight, bias, buffers)
        if isinstance(leaf, nn.Flatten):  # (b, n c, h, w) -> (n, b, c h w): what follows is a chain
            return h.unflatten(1, (n, -1)).transpose(0, 1).flatten(2)
        if isinstance(leaf, nn.Linear):
            assert weight is not None
            w = weight.transpose(1, 2)
            return torch.bmm(h, w) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, w)
        return leaf(h)

    def _normalise(
        self, name: str, leaf: nn.BatchNorm2d, h: Tensor, weight: Tensor | None, bias: Tensor | None, buffers: Tensors
    ) -> Tensor:
        mean, variance = buffers.get(f"{name}.running_mean"), buffers.get(f"{name}.running_var")
        train = self.module.training or mean is None
        if self.module.training and f"{name}.num_batches_tracked" in buffers:
            buffers[f"{name}.num_batches_tracked"].add_(1)
        # views of the stacked buffers, so that the running statistics change in place
        mean, variance, weight, bias = (None if t is None else t.reshape(-1) for t in (mean, variance, weight, bias))
        return F.batch_norm(h, mean, variance, weight, bias, train, leaf.momentum or 0.0, leaf.eps)


def _by_model(h: Tensor, n: int) -> Tensor:
    """Activations as (n, b, ...)."""
    return h if h.dim() == 3 else h.unflatten(1, (n, -1)).transpose(0, 1)


def grouped(module: nn.Module) -> GroupedNet | None:
    """Return the grouped form of a convolutional `nn.Sequential`, or None if it holds anything else."""
    if type(module) is not nn.Sequential:
        return None
    leaves = list(module.named_children())
    flat = False
    seen: set[int] = set()
    for _, leaf in leaves:
        if type(leaf) is nn.Conv2d:
            fits = not flat and leaf.groups == 1 and leaf.padding_mode == "zeros"
        elif type(leaf) is nn.BatchNorm2d:
            fits = not flat and leaf.momentum is not None
        elif type(leaf) in POOLS:
            fits = not flat and not getattr(leaf, "return_indices", False)
        elif type(leaf) is nn.Flatten:
            fits, flat = not flat and (leaf.start_dim, leaf.end_dim) == (1, -1), True
        elif type(leaf) is nn.Linear:
            fits = flat
        else:
            fits = type(leaf) in POINTWISE and not getattr(leaf, "inplace", False)
        if not fits or id(leaf) in seen:  # a layer used twice has tied weights
            return None
        if list(leaf.parameters()):
            seen.add(id(leaf))
    return GroupedNet(module, leaves) if flat and type(leaves[0][1]) is nn.Conv2d else None
