"""Chains of linear layers that share their inputs, forward and backward by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from zoarium.nets.stacked import ChainNet, StackedNet


class SharedChain:
    """Forward and backward through m chains of linear layers that share their inputs.

    Activations are kept as (m, units, b), so that the first layer of all networks is one product with the shared batch
    and no transpose is ever copied. Biases ride in the weights: every layer has one more input that is always 1, and
    hence one more unit whose own weights do nothing. A layer is then one block (m, (out + 1) (in + 1)).
    """

    def __init__(self, net: ChainNet) -> None:
        self.links, self.layout = net.links, net.layout
        named = dict(self.layout.shapes)
        sizes = [named[link.weight] for link in self.links]
        self.last = len(sizes) - 1
        self.shapes = [(out + (i < self.last), into + 1) for i, (out, into) in enumerate(sizes)]
        self.kinds = [_kind([function for _, function in link.after]) for link in self.links]
        self._room: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        self.saved: list[tuple[Tensor, Tensor] | None] = []

    @classmethod
    def of(cls, net: StackedNet, x: Tensor) -> SharedChain | None:
        """Take the chain out of a stacked net for inputs `x`; None where there is none or a layer has no bias."""
        if not isinstance(net, ChainNet) or any(link.bias is None for link in net.links):
            return None
        first = dict(net.layout.shapes)[net.links[0].weight]
        return cls(net) if x[0].numel() == first[1] and (x.dim() == 2 or net.flatten is not None) else None

    def views(self, blocks: list[Tensor]) -> list[Tensor]:
        """Blocks as matrices (m, out + 1, in + 1)."""
        return [block.unflatten(1, shape) for block, shape in zip(blocks, self.shapes, strict=True)]

    def pack(self, params: Mapping[str, Tensor]) -> list[Tensor]:
        """Stacked parameters as one block a layer."""
        blocks = []
        for link, (rows, columns) in zip(self.links, self.shapes, strict=True):
            weight = params[link.weight]
            block = weight.new_zeros(len(weight), rows, columns)
            block[:, : weight.shape[1], :-1] = weight
            block[:, : weight.shape[1], -1] = params[str(link.bias)]
            blocks.append(block.flatten(1))
        return blocks

    def flatten(self, blocks: list[Tensor]) -> Tensor:
        """Blocks as rows (m, p)."""
        named, shapes = {}, dict(self.layout.shapes)
        for link, block, shape in zip(self.links, blocks, self.shapes, strict=True):
            full = block.unflatten(1, shape)[:, : shapes[link.weight][0]]
            named[link.weight], named[str(link.bias)] = full[..., :-1], full[..., -1]
        return self.layout.flatten(named)

    def _rooms(self, weights: list[Tensor], b: int) -> tuple[list[Tensor], list[Tensor]]:
        """Activations (m, units, b) of every layer, and the rows in them that carry the next layer's bias."""
        key = (len(weights[0]), b)
        if key not in self._room:
            hidden = [weights[0].new_empty(key[0], rows, b) for rows, _ in self.shapes]
            self._room[key] = hidden, [h[:, -1] for h in hidden[:-1]]
        return self._room[key]

    def forward(self, weights: list[Tensor], x: Tensor) -> Tensor:
        """Compute outputs (m, c, b) on inputs (b, d + 1); the memory is used again by the next call."""
        hidden, ones = self._rooms(weights, len(x))
        self.saved = []
        for i, z in enumerate(hidden):
            if i == 0:
                torch.mm(weights[0].flatten(0, 1), x.t(), out=z.view(-1, len(x)))
            else:
                torch.bmm(weights[i], hidden[i - 1], out=z)
            self.saved.append(self._activate(z, i))
            if i < self.last:
                ones[i].fill_(1.0)
        return hidden[-1]

    def backward(self, delta: Tensor, weights: list[Tensor], x: Tensor, into: list[Tensor]) -> None:
        """Overwrite `into` by the gradients of the weights, given those of the outputs of the last forward."""
        hidden, _ = self._rooms(weights, len(x))
        for i in range(self.last, -1, -1):
            if self.kinds[i] == "relu":
                torch.ops.aten.threshold_backward.grad_input(delta, hidden[i], 0, grad_input=delta)
            elif (kept := self.saved[i]) is not None:
                (delta,) = torch.autograd.grad(kept[1], kept[0], delta)
            if i < self.last:
                delta[:, -1].zero_()
            if i == 0:
                torch.mm(delta.flatten(0, 1), x, out=into[0].flatten(0, 1))
            else:
                torch.bmm(delta, hidden[i - 1].transpose(1, 2), out=into[i])
                delta = torch.bmm(weights[i].transpose(1, 2), delta)

    def _activate(self, z: Tensor, i: int) -> tuple[Tensor, Tensor] | None:
        """Apply what follows layer `i` in place; keep what its derivative needs, nothing where the output tells all."""
        if self.kinds[i] == "relu":
            z.relu_()
        if self.kinds[i] != "other":
            return None
        before = z.clone().requires_grad_()
        with torch.enable_grad():
            after = before * 1  # a copy that functions may change in place
            for _, function in self.links[i].after:
                after = function(after)
        z.copy_(after.detach())
        return before, after


def with_ones(x: Tensor) -> Tensor:
    """Flatten inputs (b, ...) to (b, d + 1), the last of them 1."""
    flat = x.flatten(1)
    return torch.cat([flat, torch.ones_like(flat[:, :1])], 1)


def _kind(functions: Sequence[nn.Module]) -> Literal["none", "relu", "other"]:
    kept = {type(f) for f in functions} - {nn.Identity}
    return "none" if not kept else "relu" if kept == {nn.ReLU} else "other"
