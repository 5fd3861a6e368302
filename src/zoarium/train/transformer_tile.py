"""One tile of a stack of transformers: k models on m samples, forwards and backwards through buffers laid out once.

A tile is as large as a core's share of the cache allows, so that what the forward pass leaves is still there when the
backward pass wants it. Weights come folded (`zoarium.train.transformer`): gains of layer norm inside the next layer,
everything that writes into the residual stream centred.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoarium.nets.transformer import Transformer
from zoarium.train.attention import SIGMOID, Attention, FirstAttention, gelu, gelu_back, normalise, normalise_back


class Weights(NamedTuple):
    """A block's linear layers for n models, (n, in, out) and (n, out).

    Layers after a norm (`qkv`, `first`) hold its gain and shift and their own bias; the way back needs them without.
    """

    qkv: Tensor
    qkv_back: Tensor
    out: Tensor
    out_b: Tensor
    first: Tensor
    first_back: Tensor
    last: Tensor
    last_b: Tensor


class Sums(NamedTuple):
    """What the gradients of a block's linear layers are added to."""

    qkv: Tensor
    out: Tensor
    out_b: Tensor
    first: Tensor
    last: Tensor
    last_b: Tensor


class _Scratch:
    """Buffers for `rows` rows that every layer uses in turn."""

    def __init__(self, like: Tensor, k: int, rows: int, form: Transformer) -> None:
        self.square, self.d_normed = (like.new_empty(k, rows, form.width) for _ in range(2))
        self.wide, self.gate = (like.new_empty(k, rows, form.hidden) for _ in range(2))
        self.eps = form.eps


class _Norm:
    """A layer norm from rows `x` of mean zero to `out`."""

    def __init__(self, like: Tensor, k: int, rows: int, scratch: _Scratch) -> None:
        self.x, self.out = (like.new_empty(k, rows, scratch.square.shape[-1]) for _ in range(2))  # out: x̂ + 1
        self.scale = like.new_empty(k, rows, 1)
        self.scratch = scratch

    def forward(self) -> Tensor:
        normalise(self.x, self.scratch.eps, self.scratch.square, self.scale, self.out)
        return self.out

    def backward(self, d: Tensor, d_out: Tensor) -> Tensor:
        """Add to `d`."""
        normalise_back(d, d_out, self.x, self.out, self.scale, self.scratch.square)
        return d


class _FeedForward:
    """Layer norm and the two-layer perceptron, around them the residual: x + MLP(LN(x))."""

    def __init__(self, like: Tensor, k: int, rows: int, form: Transformer, scratch: _Scratch) -> None:
        self.norm = _Norm(like, k, rows, scratch)
        self.y, self.h = (like.new_empty(k, rows, form.hidden) for _ in range(2))
        self.scratch, self.kind = scratch, form.gelu
        self.alpha = 1 / SIGMOID if form.gelu == "tanh" else 1.0  # `gelu` scales this one

    def forward(self, w: Weights, after: Tensor, *, keep: bool) -> None:
        torch.bmm(self.norm.forward(), w.first, out=self.y)
        gelu(self.y, self.kind, self.h, self.scratch.wide, self.scratch.gate, keep=keep)
        torch.add(self.norm.x, w.last_b.unsqueeze(1), out=after)
        torch.baddbmm(after, self.h, w.last, alpha=self.alpha, out=after)

    def backward(self, w: Weights, total: Sums, d: Tensor) -> None:
        wide, d_normed = self.scratch.wide, self.scratch.d_normed
        torch.baddbmm(total.last, self.h.transpose(1, 2), d, alpha=self.alpha, out=total.last)
        total.last_b.add_(d.sum(1))
        torch.baddbmm(wide, d, w.last.transpose(1, 2), beta=0, alpha=self.alpha, out=wide)
        gelu_back(wide, self.y, self.kind)
        torch.baddbmm(total.first, self.norm.out.transpose(1, 2), wide, out=total.first)
        torch.bmm(wide, w.first_back.transpose(1, 2), out=d_normed)
        self.norm.backward(d, d_normed)


class _Mixing:
    """Layer norm and attention of every token, around them the residual: x + attention(LN(x))."""

    def __init__(self, like: Tensor, k: int, m: int, t: int, attention: Attention, scratch: _Scratch) -> None:
        self.norm = _Norm(like, k, m * t, scratch)
        self.attention, self.kept, self.scratch = attention, attention.keep(), scratch
        self.d_mixed = scratch.d_normed.view(k, -1, m * t)  # used up before the other is needed

    def forward(self, w: Weights, after: Tensor) -> None:
        torch.bmm(w.qkv.transpose(1, 2), self.norm.forward().transpose(1, 2), out=self.attention.flat)
        self.attention.forward(self.kept)
        torch.add(self.norm.x, w.out_b.unsqueeze(1), out=after)
        torch.baddbmm(after, self.kept.out.transpose(1, 2), w.out, out=after)

    def backward(self, w: Weights, total: Sums, d: Tensor) -> Tensor:
        flat = self.attention.flat
        total.out_b.add_(d.sum(1))
        torch.baddbmm(total.out, self.kept.out, d, out=total.out)
        torch.bmm(w.out, d.transpose(1, 2), out=self.d_mixed)
        self.attention.backward(self.d_mixed, self.kept)
        torch.baddbmm(total.qkv, self.norm.out.transpose(1, 2), flat.transpose(1, 2), out=total.qkv)
        torch.bmm(flat.transpose(1, 2), w.qkv_back.transpose(1, 2), out=self.scratch.d_normed)
        return self.norm.backward(d, self.scratch.d_normed)


class _FirstMixing:
    """The same where only the first token of a sample is asked for."""

    def __init__(self, like: Tensor, k: int, m: int, t: int, form: Transformer, scratch: _Scratch) -> None:
        self.norm = _Norm(like, k, m * t, scratch)
        self.attention = FirstAttention(like, k, m, t, form.heads, form.width)
        self.first, self.d = like.new_empty(k, m, form.width), like.new_empty(k, m * t, form.width)
        self.scratch, self.sizes = scratch, (k, m, t, form.width)

    def forward(self, w: Weights, after: Tensor) -> None:
        mix, d = self.attention, self.sizes[-1]
        normed = self.norm.forward()
        self.first.copy_(self._first(normed))
        torch.bmm(w.qkv[..., d:].transpose(1, 2), normed.transpose(1, 2), out=mix.flat)
        torch.bmm(self.first, w.qkv[..., :d], out=mix.query)
        mix.forward()
        torch.add(self._first(self.norm.x), w.out_b.unsqueeze(1), out=after)
        torch.baddbmm(after, mix.out, w.out, out=after)

    def backward(self, w: Weights, total: Sums, d: Tensor) -> Tensor:
        mix, width, d_normed = self.attention, self.sizes[-1], self.scratch.d_normed
        total.out_b.add_(d.sum(1))
        torch.baddbmm(total.out, mix.out.transpose(1, 2), d, out=total.out)
        mix.backward(torch.bmm(d, w.out.transpose(1, 2)))
        turned = mix.flat.transpose(1, 2)
        total.qkv[..., :width].add_(torch.bmm(self.first.transpose(1, 2), mix.d_query))
        total.qkv[..., width:].add_(torch.bmm(self.norm.out.transpose(1, 2), turned))
        torch.bmm(turned, w.qkv_back[..., width:].transpose(1, 2), out=d_normed)
        self._first(d_normed).add_(torch.bmm(mix.d_query, w.qkv_back[..., :width].transpose(1, 2)))
        self.d.zero_()
        self._first(self.d).copy_(d)
        return self.norm.backward(self.d, d_normed)

    def _first(self, rows: Tensor) -> Tensor:
        return rows.view(self.sizes)[:, :, 0]


class Tile:
    """Buffers of k models and m samples of t tokens.

    Parameters
    ----------
    form : Transformer
        The architecture. A vision transformer's head reads its first token alone, so its last block computes no other.
    like : Tensor
        Gives dtype and device.
    k, m, t : int
        Models, samples, tokens a sample.
    """

    def __init__(self, form: Transformer, like: Tensor, k: int, m: int, t: int) -> None:
        scratch = _Scratch(like, k, m * t, form)
        attention = Attention(like, k, m, t, form.heads, form.width, causal=form.causal)
        depth, short = len(form.blocks), form.kind == "vit"
        self.mixings: list[_Mixing | _FirstMixing] = [
            _Mixing(like, k, m, t, attention, scratch) for _ in range(depth - short)
        ]
        self.perceptrons = [_FeedForward(like, k, m * t, form, scratch) for _ in range(depth - short)]
        rows, few = m * t, scratch
        if short:
            rows, few = m, _Scratch(like, k, m, form)
            self.mixings.append(_FirstMixing(like, k, m, t, form, scratch))
            self.perceptrons.append(_FeedForward(like, k, m, form, few))
        self.end = _Norm(like, k, rows, few)
        self.d, self.d_end = like.new_empty(k, rows, form.width), few.d_normed  # of the rows before the head, and after
        self.out = like.new_empty(k, rows, form.outputs)
        self.patches = like  # of a vision transformer's images, put here by the stack
        self.tokens = self.mixings[0].norm.x.view(k, m, t, -1)  # where embedded tokens are put, of mean zero

    def forward(self, weights: list[Weights], *, keep: bool) -> Tensor:
        """From `tokens` to normalised rows before the head: (k, m, d) of first tokens, or (k, m t, d) of all.

        With `keep`, :meth:`backward` may follow.
        """
        ends = [*(mixing.norm.x for mixing in self.mixings[1:]), self.end.x]
        for w, mixing, perceptron, end in zip(weights, self.mixings, self.perceptrons, ends, strict=True):
            mixing.forward(w, perceptron.norm.x)
            perceptron.forward(w, end, keep=keep)
        return self.end.forward()

    def backward(self, weights: list[Weights], sums: list[Sums]) -> Tensor:
        """From the gradient of what :meth:`forward` gave, put in `d_end`, to that of the embedded tokens (k, m t, d).

        Gradients of the weights are added to `sums`.
        """
        d = self.end.backward(self.d.zero_(), self.d_end)
        steps = list(zip(weights, sums, self.mixings, self.perceptrons, strict=True))
        for w, total, mixing, perceptron in reversed(steps):
            perceptron.backward(w, total, d)
            d = mixing.backward(w, total, d)
        return d
