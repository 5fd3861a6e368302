"""Curvature products of stacked multilayer perceptrons, written out in batched matrix products.

With R{·} the derivative in the direction V of the weights (Pearlmutter, "Fast exact multiplication by the Hessian",
1994, section 3.1), layers z_l = W_l h_{l-1}, h_l = σ(z_l), u_l = ∂L/∂h_l and δ_l = ∂L/∂z_l,

    R{z_l} = V_l h_{l-1} + W_l R{h_{l-1}},          R{h_l} = σ'(z_l) ⊙ R{z_l},
    R{δ_l} = σ'(z_l) ⊙ R{u_l} + u_l ⊙ σ''(z_l) ⊙ R{z_l},
    R{u_{l-1}} = W_lᵀ R{δ_l} + V_lᵀ δ_l,            (HV)_l = R{δ_l} h_{l-1}ᵀ + δ_l R{h_{l-1}}ᵀ.

The Gauss-Newton matrix drops every term with a δ or u (Schraudolph, "Fast curvature matrix-vector products for
second-order gradient descent", 2002). All that does not depend on V is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoarium.data.dataset import Task
from zoarium.measure.curvature.output_loss import Curvature, OutputLoss
from zoarium.nets.stacked import ChainNet
from zoarium.zoo.cohort import Cohort

KEEP = 2**26  # numbers of intermediate values worth keeping between products (256 MB in float32)


@dataclass(frozen=True)
class _Pass:
    """What one batch of data leaves behind for every product; features before samples, so rows are long."""

    inputs: list[Tensor]  # h_{l-1} of layer l, a row of ones below it if the layer has a bias: (n, in [+ 1], b)
    slope: list[Tensor | None]  # σ'(z_l), (n, out, b); None for the identity
    bend: list[Tensor | None]  # u_l σ''(z_l), (n, out, b); None where it vanishes
    delta: list[Tensor]  # ∂L/∂z_l, (n, out, b)
    loss: OutputLoss


class ChainProducts:
    """Curvature products of stacked multilayer perceptrons by the R-operator, a few batched matrix products a layer.

    In the coordinates of the products a layer is one (out, in + 1) matrix whose last column is the bias.
    """

    def __init__(
        self, cohort: Cohort, x: Tensor, y: Tensor, task: Task, curvature: Curvature, batch: int | None = None
    ) -> None:
        net = cohort.net
        assert isinstance(net, ChainNet)
        self._links = net.links
        self._task: Task = task
        self._curvature: Curvature = curvature
        self._order, self._shapes = chain_order(net)
        v = cohort.flat[:, self._order]
        self.n, self.size = v.shape
        self.dtype = v.dtype
        self._weights = self._views(v)  # (n, out, in [+ 1]) a layer
        batch = batch or len(x)
        self._data = [(x[i : i + batch].flatten(1).T.contiguous(), y[i : i + batch]) for i in range(0, len(x), batch)]
        self._scale = 1 / len(x)
        self._work: list[tuple[Tensor, Tensor]] = []
        kept = 3 * self.n * len(x) * sum(out for out, _, _ in self._shapes) <= KEEP
        self._kept = [self._forward(*part) for part in self._data] if kept else None
        outputs = (part.loss.outputs for part in self._passes())
        self.finite = torch.stack([f.flatten(1).isfinite().all(1) for f in outputs]).all(0)

    def _views(self, v: Tensor) -> list[Tensor]:
        """Layers (n, out, in [+ 1]) of vectors (n, p); they share its memory."""
        sizes = [rows * columns for rows, columns, _ in self._shapes]
        parts = v.split(sizes, dim=1)
        return [part.unflatten(1, shape[:2]) for part, shape in zip(parts, self._shapes, strict=True)]

    def to_flat(self, v: Tensor) -> Tensor:
        """Reorder (..., p) to the coordinates of ``cohort.flat``."""
        out = torch.empty_like(v)
        out[..., self._order] = v
        return out

    def from_flat(self, v: Tensor) -> Tensor:
        """Reorder (..., p) from the coordinates of ``cohort.flat``."""
        return v[..., self._order]

    def select(self, rows: Sequence[int]) -> ChainProducts:
        """Keep the matrices of some of the models."""
        index = torch.as_tensor(rows)
        some = object.__new__(ChainProducts)
        some.__dict__.update(self.__dict__)
        some._work = []
        some.n, some.finite = len(index), self.finite[index]
        some._weights = [w[index] for w in self._weights]
        some._kept = None if self._kept is None else [_rows_of(part, index) for part in self._kept]
        return some

    @torch.no_grad()
    def __call__(self, v: Tensor) -> Tensor:
        """Products (n, p) with vectors `v` (n, p)."""
        out = torch.zeros_like(v)
        for part in self._passes():
            self._add_product(part, self._views(v), self._views(out))
        return out

    def _passes(self) -> Iterable[_Pass]:
        return self._kept or (self._forward(*part) for part in self._data)

    @torch.no_grad()
    def _forward(self, x: Tensor, y: Tensor) -> _Pass:
        inputs, slopes, bends = [], [], []
        h = x.expand(self.n, -1, -1)  # (n, in, b)
        for link, w, (_, _, biased) in zip(self._links, self._weights, self._shapes, strict=True):
            if biased:
                h = torch.cat([h[:1] if not inputs else h, h.new_ones(1 if not inputs else self.n, 1, h.shape[2])], 1)
            inputs.append(h[:1] if not inputs else h)  # the first layer's are the data, one copy for all models
            z = _times_shared(w, h[0]) if len(inputs) == 1 else torch.bmm(w, h)
            h, slope, bend = activate([function for _, function in link.after], z)
            slopes.append(slope)
            bends.append(bend if self._curvature == "hessian" else None)
        loss = OutputLoss(h, y, self._task, self._scale)
        deltas: list[Tensor] = []
        u = loss.gradient
        for index in reversed(range(len(self._weights))):
            bend, slope = bends[index], slopes[index]
            bends[index] = None if bend is None else bend * u
            deltas.insert(0, u if slope is None else u * slope)
            if index:
                u = torch.bmm(self._weights[index][:, :, : self._width_in(index)].mT, deltas[0])
        return _Pass(inputs, slopes, bends, deltas, loss)

    def _width_in(self, index: int) -> int:
        _, columns, biased = self._shapes[index]
        return columns - biased

    def _workspace(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Two (n, out, batch) tensors a layer, made once: fresh memory for every product costs as much as the sums."""
        if not self._work or self._work[0][0].shape[::2] != (self.n, batch):
            like = self._weights[0]
            self._work = [
                (like.new_empty(self.n, out, batch), like.new_empty(self.n, out, batch)) for out, _, _ in self._shapes
            ]
        return self._work

    def _add_product(self, part: _Pass, v: list[Tensor], out: list[Tensor]) -> None:
        """Add to `out` what one batch of data gives; R marks a derivative in the direction `v`."""
        x = part.inputs[0][0]  # (d [+ 1], b), the same for all models
        work = self._workspace(x.shape[1])
        bent: list[Tensor | None] = []  # u_l σ''(z_l) R z_l
        for index, (w, slope, bend, (r_h, _)) in enumerate(
            zip(self._weights, part.slope, part.bend, work, strict=True)
        ):
            if index == 0:
                torch.mm(v[0].reshape(-1, len(x)), x, out=r_h.flatten(0, 1))
            else:
                torch.bmm(v[index], part.inputs[index], out=r_h)
                r_h.baddbmm_(w[:, :, : self._width_in(index)], work[index - 1][0])
            bent.append(None if bend is None else bend * r_h)
            if slope is not None:
                r_h.mul_(slope)
        r_u = part.loss.hessian_product_(work[-1][0])
        for index in reversed(range(len(v))):
            slope, r_bend = part.slope[index], bent[index]
            r_delta = r_u if slope is None else r_u.mul_(slope)
            if r_bend is not None:
                r_delta += r_bend
            if index == 0:
                out[0] += (r_delta.flatten(0, 1) @ x.T).unflatten(0, (self.n, -1))
                break
            width, r_u = self._width_in(index), work[index - 1][1]
            gained = torch.bmm(r_delta, part.inputs[index].mT)
            torch.bmm(self._weights[index][:, :, :width].mT, r_delta, out=r_u)
            if self._curvature == "hessian":
                gained[:, :, :width] += torch.bmm(part.delta[index], work[index - 1][0].mT)
                r_u.baddbmm_(v[index][:, :, :width].mT, part.delta[index])
            out[index] += gained  # a view with gaps, into which baddbmm_ would go model by model


def chain_order(net: ChainNet) -> tuple[Tensor, list[tuple[int, int, bool]]]:
    """Where each coordinate of a chain's products lies in the flat row, and (rows, columns, has bias) of each layer."""
    places = {name: i.long() for name, i in net.layout.views(torch.arange(net.layout.size)).items()}
    layers = [
        places[link.weight]
        if link.bias is None
        else torch.cat([places[link.weight], places[link.bias].unsqueeze(1)], 1)
        for link in net.links
    ]
    shapes = [
        (layer.shape[0], layer.shape[1], link.bias is not None) for layer, link in zip(layers, net.links, strict=True)
    ]
    return torch.cat([layer.flatten() for layer in layers]), shapes


def activate(functions: Sequence[nn.Module], z: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value, slope and second derivative of pointwise functions applied in a row; None stands for 1 and for 0."""
    functions = [f for f in functions if type(f) is not nn.Identity]
    if not functions:
        return z, None, None
    if len(functions) == 1 and type(functions[0]) is nn.ReLU:
        return z.clamp(min=0), (z > 0).to(z.dtype), None
    flat = all(type(f) in (nn.ReLU, nn.LeakyReLU) for f in functions)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        h = z
        for function in functions:
            h = function(h.clone())  # a copy, for functions that work in place
        (slope,) = torch.autograd.grad(h.sum(), z, create_graph=not flat)
        if flat or not slope.requires_grad:
            return h.detach(), slope.detach(), None
        (bend,) = torch.autograd.grad(slope.sum(), z)
    return h.detach(), slope.detach(), bend


def _times_shared(w: Tensor, x: Tensor) -> Tensor:
    """(n, out, in) times (in, b), as one matrix product for all models."""
    return (w.reshape(-1, w.shape[2]) @ x).unflatten(0, w.shape[:2])


def _rows_of(part: _Pass, index: Tensor) -> _Pass:
    def some(values: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if value is None else value[index] for value in values]

    inputs = [part.inputs[0], *(h[index] for h in part.inputs[1:])]
    return _Pass(inputs, some(part.slope), some(part.bend), [d[index] for d in part.delta], part.loss.select(index))
