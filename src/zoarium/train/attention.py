"""Layer norm, GELU and attention of stacked models as in-place kernels, forwards and backwards.

Attention of one head, with ones as a last row of Vᵀ: one product gives the mixture and the sum it is divided by.

    E = 2^(q kᵀ)                          q scaled by log₂e / √d beforehand: exp2 is four times faster than exp here
    [o l; l]ᵀ = [V 1]ᵀ Eᵀ                 o = P V with P = E / l
    dP - D = [do / l, -D]  [V 1]ᵀ         D = o · do / l, the row sums of P dP       (Dao et al. 2022, eq. 4)
    dS = E (dP - D),   dQ = ln2 dS K,   dK = ln2 dSᵀ Q,   dV = Eᵀ (do / l)

Products are laid out with the t tokens of a sequence last, (d, t): narrow heads make poor vectors, sequences good ones.

The residual stream holds rows of mean zero (whatever writes into it is centred beforehand), so layer norm is a division
by the root mean square. Its gain and shift, and the bias of the layer after it, live in the weights of that layer: rows
x̂ of mean zero do not see a constant added to a column of W, and rows x̂ + 1 see it as a bias.

    LN(x) W + c = x̂ (g W) + b = (x̂ + 1) (C g W + 1 bᵀ / d)          b = β W + c,  C takes the mean from columns
    dx = scale (dx̂ - x̂ mean(dx̂ x̂)),  dx̂ = dz (C g W)ᵀ               of mean zero by itself
    (x̂ + 1)ᵀ dz = M + 1 sᵀ,   dc = s,   dW = g M + β sᵀ,   dg = rows of M · W,   dβ = W s
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten
LOG2E, LN2 = math.log2(math.e), math.log(2)
SAFE = 60.0  # exponents of 2 that neither overflow nor vanish, sums and products with them included
SIGMOID = 2 * math.sqrt(2 / math.pi)  # GELU by its tanh approximation is x σ(SIGMOID (x + 0.044715 x³))
CUBE = 0.044715 / SIGMOID**2


def normalise(x: Tensor, eps: float, square: Tensor, scale: Tensor, out: Tensor) -> None:
    """From rows x (..., d) of mean zero to x̂ + 1; `scale` (..., 1) keeps what x was multiplied by."""
    torch.mul(x, x, out=square)
    torch.sum(square, -1, keepdim=True, out=scale)
    scale.mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    torch.mul(x, scale, out=out)
    out.add_(1)


def normalise_back(d: Tensor, d_out: Tensor, x: Tensor, out: Tensor, scale: Tensor, square: Tensor) -> None:
    """Add to `d` the gradient of the rows `x` from that of x̂, whose rows have mean zero."""
    torch.mul(d_out, out, out=square)
    share = square.sum(-1, keepdim=True).mul_(scale).mul_(scale).mul_(-1 / x.shape[-1])
    d.addcmul_(d_out, scale).addcmul_(x, share)


def power(s: Tensor, mask: Tensor | None = None) -> None:
    """``s <- 2^s`` in place, times a factor a row where it would overflow; 0 where `mask` (t, t) is 0."""
    low, high = (float(end) for end in torch.aminmax(s))
    if not (low >= -SAFE and high <= SAFE):  # NaN too
        if mask is not None:
            s.masked_fill_(mask == 0, -math.inf)
        s.sub_(s.amax(-1, keepdim=True))
    torch.exp2(s, out=s)
    if mask is not None:
        s.mul_(mask)


def gelu(y: Tensor, kind: str, out: Tensor, spare: Tensor, gate: Tensor, *, keep: bool) -> None:
    """GELU of `y` into `out`; with `keep`, what :func:`gelu_back` needs is left in `y`.

    For "tanh", `y` and `out` are SIGMOID times what they are called.
    """
    if kind == "none":
        _aten.gelu.out(y, approximate="none", out=out)
        return
    torch.mul(y, y, out=spare)
    torch.addcmul(y, spare, y, value=CUBE, out=gate)
    torch.sigmoid(gate, out=gate)
    torch.mul(y, gate, out=out)
    if keep:  # y <- σ + y σ (1 - σ) (1 + 3 CUBE y²)
        spare.mul_(3 * CUBE).add_(1)
        torch.addcmul(out, out, gate, value=-1, out=y)
        torch.addcmul(gate, y, spare, out=y)


def gelu_back(d: Tensor, y: Tensor, kind: str) -> None:
    """``d <- d GELU'(y)`` in place."""
    if kind == "none":
        _aten.gelu_backward.grad_input(d, y, approximate="none", grad_input=d)
    else:
        d.mul_(y)


class Kept(NamedTuple):
    """What attention leaves for the way back: (q, k, v, 1) by head, E, l, and the mixture (k, d, m t)."""

    parts: Tensor
    e: Tensor
    total: Tensor
    out: Tensor


class Attention:
    """Full self-attention of k models on m sequences of t tokens: buffers that one pass after another uses.

    Parameters
    ----------
    like : Tensor
        Gives dtype and device.
    k, m, t, heads, width : int
        Models, sequences, tokens, heads, embedding.
    causal : bool
        Whether a token sees only those before it.
    """

    def __init__(self, like: Tensor, k: int, m: int, t: int, heads: int, width: int, *, causal: bool) -> None:
        self.shape = k, m, t, heads, width // heads
        c, groups = width // heads, k * m * heads
        self.mask = like.new_ones(t, t).tril_() if causal else None
        self.flat = like.new_empty(
            k, 3 * width, m * t
        )  # q, k, v as the product of the weights gives them, or gradients
        self.by_head = self.flat.view(k, 3, heads, c, m, t).permute(0, 4, 2, 1, 3, 5)  # (k, m, heads, 3, c, t)
        self.scores = like.new_empty(groups, t, t)
        self.mixed = like.new_empty(groups, c + 1, t)
        self.mixed_by_head = self.mixed.view(k, m, heads, c + 1, t)
        self.part = like.new_empty(groups, c, t)
        self.part_by_head = self.part.view(k, m, heads, c, t)

    def keep(self) -> Kept:
        """Buffers for one pass."""
        k, m, t, heads, c = self.shape
        new = self.scores.new_empty
        parts = self.scores.new_ones(k, m, heads, 3 * c + 1, t)
        return Kept(parts, torch.empty_like(self.scores), new(k, m, heads, 1, t), new(k, heads * c, m * t))

    def forward(self, kept: Kept) -> None:
        """From `flat` to the mixture."""
        c = self.shape[-1]
        parts, e, total, out = kept
        parts[..., : 3 * c, :].unflatten(3, (3, c)).copy_(self.by_head)
        query, key, value = self._rows(parts)
        torch.bmm(query.transpose(1, 2), key, out=e)
        power(e, self.mask)
        torch.bmm(value, e.transpose(1, 2), out=self.mixed)
        total.copy_(self.mixed_by_head[..., c:, :])
        torch.div(self.mixed_by_head[..., :c, :], total, out=self._heads(out))

    def backward(self, d: Tensor, kept: Kept) -> None:
        """From the gradient `d` (k, d, m t) of the mixture to that of q, k and v in `flat`."""
        c = self.shape[-1]
        parts, e, total, out = kept
        query, key, value = self._rows(parts)
        inner, last = self.mixed_by_head[..., :c, :], self.mixed_by_head[..., c:, :]
        torch.div(self._heads(d), total, out=inner)
        torch.mul(inner, self._heads(out), out=self.part_by_head)
        torch.neg(self.part_by_head.sum(3, keepdim=True), out=last)
        torch.bmm(self.mixed.transpose(1, 2), value, out=self.scores)
        self.scores.mul_(e)
        torch.bmm(key, self.scores.transpose(1, 2), out=self.part)
        torch.mul(self.part_by_head, LN2, out=self.by_head[..., 0, :, :])
        torch.bmm(query, self.scores, out=self.part)
        torch.mul(self.part_by_head, LN2, out=self.by_head[..., 1, :, :])
        torch.bmm(self.mixed[:, :c], e, out=self.part)
        self.by_head[..., 2, :, :].copy_(self.part_by_head)

    def _heads(self, x: Tensor) -> Tensor:
        k, m, t, heads, c = self.shape
        return x.view(k, heads, c, m, t).permute(0, 3, 1, 2, 4)  # (k, m, heads, c, t)

    def _rows(self, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.shape[-1]
        rows = parts.view(-1, 3 * c + 1, parts.shape[-1])
        return rows[:, :c], rows[:, c : 2 * c], rows[:, 2 * c :]


class FirstAttention:
    """Attention of the first token alone to all: the last block of a net whose head reads no other."""

    def __init__(self, like: Tensor, k: int, m: int, t: int, heads: int, width: int) -> None:
        self.shape = k, m, t, heads, width // heads
        c, groups = width // heads, k * m * heads
        self.flat = like.new_empty(k, 2 * width, m * t)  # k and v, or their gradients
        self.by_head = self.flat.view(k, 2, heads, c, m, t).permute(0, 4, 2, 1, 3, 5)
        self.parts = like.new_ones(k, m, heads, 2 * c + 1, t)
        rows = self.parts.view(groups, 2 * c + 1, t)
        self.key, self.value = rows[:, :c], rows[:, c:]
        self.query, self.d_query = (like.new_empty(k, m, width) for _ in range(2))
        self.e, self.scores = (like.new_empty(groups, 1, t) for _ in range(2))
        self.mixed = like.new_empty(groups, 1, c + 1)
        self.sums = like.new_empty(groups, 1, 1)
        self.out = like.new_empty(k, m, width)

    def forward(self) -> None:
        """From `flat` and `query` to `out`."""
        c = self.shape[-1]
        self.parts[..., : 2 * c, :].unflatten(3, (2, c)).copy_(self.by_head)
        torch.bmm(self.query.view(-1, 1, c), self.key, out=self.e)
        power(self.e)
        torch.bmm(self.e, self.value.transpose(1, 2), out=self.mixed)
        self.sums.copy_(self.mixed[..., c:])
        torch.div(self.mixed[..., :c], self.sums, out=self.out.view(-1, 1, c))

    def backward(self, d: Tensor) -> None:
        """From the gradient `d` (k, m, d) of `out` to those of `query` (in `d_query`), k and v (in `flat`)."""
        k, m, t, heads, c = self.shape
        inner = self.mixed[..., :c]
        torch.div(d.view(-1, 1, c), self.sums, out=inner)
        torch.neg((inner * self.out.view(-1, 1, c)).sum(2, keepdim=True), out=self.mixed[..., c:])
        torch.bmm(self.mixed, self.value, out=self.scores)
        self.scores.mul_(self.e).mul_(LN2)
        torch.bmm(self.scores, self.key.transpose(1, 2), out=self.d_query.view(-1, 1, c))
        lead = (k, m, heads, -1)
        torch.mul(self.query.view(*lead, 1), self.scores.view(*lead[:3], 1, t), out=self.by_head[..., 0, :, :])
        torch.mul(inner.reshape(*lead, 1), self.e.view(*lead[:3], 1, t), out=self.by_head[..., 1, :, :])
