"""Stacks of multilayer perceptrons with the backward pass written out: ten kernels a micro-step, whatever n is.

For one link h -> f(h W) with the bias as a last row of W and a constant 1 as a last column of h:

    z = h W                          (n, b, out) = (n, b, in + 1) (n, in + 1, out)
    dW += h^T dz,   dh = dz W^T,     dz = dh f'(z)
    dz at the output = softmax(z) - target (classification),  2/k (z - target) (regression, mean over k outputs)

Narrower nets are padded with zero units to the widest of the program. A padded unit has z = 0, f(0) = 0 and no outgoing
weight, so it gets no gradient and stays zero for ever; activations with f(0) != 0 share no program across widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoarium.data.dataset import Split, Task
from zoarium.nets.stacked import Affine

_aten = torch.ops.aten
CHUNK = 1 << 19  # activations of an evaluation at a time: 2 MiB, within a core's cache
Forward = Callable[[Tensor, Tensor], object]  # (z, out)
Backward = Callable[[Tensor, Tensor, Tensor], object]  # (d, z, h): d <- d f'(z)


@dataclass(frozen=True)
class Pointwise:
    """An activation as in-place kernels; `key` tells equal ones apart from others, `pads` says whether f(0) = 0."""

    key: str
    forward: Forward
    backward: Backward
    pads: bool = True


def pointwise(module: nn.Module | None) -> Pointwise | None:
    """Return the kernels of an activation module (None: the identity), or None if there are none for it."""
    if module is None or type(module) is nn.Identity:
        return Pointwise("identity", lambda z, out: out.copy_(z), lambda d, z, h: d)
    if type(module) is nn.ReLU:
        return Pointwise(
            "relu",
            lambda z, out: torch.clamp_min(z, 0, out=out),
            lambda d, z, h: _aten.threshold_backward.grad_input(d, z, 0, grad_input=d),
        )
    if type(module) is nn.LeakyReLU:
        slope = module.negative_slope
        return Pointwise(
            f"leaky_relu({slope})",
            lambda z, out: _aten.leaky_relu.out(z, slope, out=out),
            lambda d, z, h: _aten.leaky_relu_backward.grad_input(d, z, slope, False, grad_input=d),
        )
    if type(module) is nn.ELU:
        alpha = module.alpha
        return Pointwise(
            f"elu({alpha})",
            lambda z, out: _aten.elu.out(z, alpha, 1, 1, out=out),
            lambda d, z, h: _aten.elu_backward.grad_input(d, alpha, 1, 1, False, z, grad_input=d),
        )
    if type(module) is nn.GELU:
        kind = module.approximate
        return Pointwise(
            f"gelu({kind})",
            lambda z, out: _aten.gelu.out(z, approximate=kind, out=out),
            lambda d, z, h: _aten.gelu_backward.grad_input(d, z, approximate=kind, grad_input=d),
        )
    if type(module) is nn.SiLU:
        return Pointwise(
            "silu",
            lambda z, out: _aten.silu.out(z, out=out),
            lambda d, z, h: _aten.silu_backward.grad_input(d, z, grad_input=d),
        )
    if type(module) is nn.Tanh:
        return Pointwise(
            "tanh",
            lambda z, out: torch.tanh(z, out=out),
            lambda d, z, h: _aten.tanh_backward.grad_input(d, h, grad_input=d),
        )
    if type(module) is nn.Sigmoid:
        return Pointwise(
            "sigmoid",
            lambda z, out: torch.sigmoid(z, out=out),
            lambda d, z, h: _aten.sigmoid_backward.grad_input(d, h, grad_input=d),
            pads=False,
        )
    if type(module) is nn.Softplus:
        beta, threshold = module.beta, module.threshold
        return Pointwise(
            f"softplus({beta},{threshold})",
            lambda z, out: _aten.softplus.out(z, beta, threshold, out=out),
            lambda d, z, h: _aten.softplus_backward.grad_input(d, z, beta, threshold, grad_input=d),
            pads=False,
        )
    return None


@dataclass(frozen=True)
class Chain:
    """A multilayer perceptron as this module takes it: its links, their sizes and activations."""

    links: tuple[Affine, ...]
    sizes: tuple[int, ...]  # inputs, hidden widths, outputs
    functions: tuple[Pointwise, ...]  # one a hidden layer

    @property
    def family(self) -> tuple:
        """Equal for chains that can share a program: padded to one width, or of one width where padding is not free."""
        free = all(f.pads for f in self.functions)
        return (
            self.sizes[0],
            self.sizes[-1],
            tuple(f.key for f in self.functions),
            tuple(link.bias is not None for link in self.links),
            None if free else self.sizes,
        )


def chain(links: Sequence[Affine], params: Mapping[str, Tensor]) -> Chain | None:
    """Return the chain behind the links of a stacked net, or None if it needs kernels that are not here."""
    if links[-1].after or any(len(link.after) > 1 for link in links):
        return None
    functions = [pointwise(link.after[0][1] if link.after else None) for link in links[:-1]]
    if any(f is None for f in functions):
        return None
    sizes = (params[links[0].weight].shape[-1], *(params[link.weight].shape[-2] for link in links))
    return Chain(tuple(links), sizes, tuple(f for f in functions if f is not None))


class _Workspace:
    """Buffers of a forward and backward pass over micro-batches of b samples."""

    def __init__(self, stack: ChainStack, b: int) -> None:
        n, like = stack.n, stack.params[0]
        widths = stack.sizes[1:-1]
        self.z = [like.new_empty(n, b, w) for w in widths]
        self.h = [like.new_ones(n, b, w + bias) for w, bias in zip(widths, stack.biases[1:], strict=True)]
        self.inner = [h[..., :w] for h, w in zip(self.h, widths, strict=True)]  # without the column of ones
        self.turned = [h.transpose(1, 2) for h in self.h]
        self.d = [like.new_empty(n, b, w) for w in widths]
        self.out = like.new_empty(n, stack.sizes[-1], b)
        # classes first: a softmax over the first axis runs along memory, many times faster than over ten neighbours
        self.logits, self.delta = (like.new_empty(stack.sizes[-1], n, b) for _ in range(2))
        self.out_by_class = self.out.transpose(0, 1)
        self.delta_by_model = self.delta.permute(1, 2, 0)  # (n, b, c)


class ChainStack:
    """n multilayer perceptrons of one family, padded to one shape.

    Parameters
    ----------
    chains : sequence of Chain
        The architectures; all of one family.
    which : sequence of int
        The architecture of each of the n models.
    task : {"classification", "regression"}
    smoothing : sequence of float
        Label smoothing of each model.
    """

    def __init__(
        self, chains: Sequence[Chain], which: Sequence[int], task: Task, smoothing: Sequence[float],
        dtype: torch.dtype, device: torch.device | str,
    ) -> None:  # fmt: skip
        self.chains, self.which, self.n = list(chains), list(which), len(which)
        self.task: Task = task
        self.sizes = [max(c.sizes[i] for c in chains) for i in range(len(chains[0].sizes))]
        self.biases = [int(link.bias is not None) for link in chains[0].links]
        self.functions = chains[0].functions
        self.smoothing = torch.tensor(smoothing, dtype=dtype, device=device)
        shapes = [
            (self.n, i + bias, o) for i, o, bias in zip(self.sizes[:-1], self.sizes[1:], self.biases, strict=True)
        ]
        self.weights = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]  # (n, in + 1, out)
        self.sums = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.adds_up = True
        self.params = [w.view(self.n, -1) for w in self.weights]
        self.grads = [g.view(self.n, -1) for g in self.sums]
        self.buffers: dict[str, Tensor] = {}
        self.back = [w[:, :i].transpose(1, 2) for w, i in zip(self.weights, self.sizes[:-1], strict=True)]
        self.head = self.weights[-1].transpose(1, 2)  # (n, c, w + 1)
        self._workspaces: dict[int, _Workspace] = {}

    def load(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Put the weights of one model in its row."""
        for link, w, bias in zip(self.chains[self.which[row]].links, self.weights, self.biases, strict=True):
            weight = state[link.weight]
            w[row, : weight.shape[1], : weight.shape[0]] = weight.T
            if bias:
                w[row, -1, : weight.shape[0]] = state[link.bias or ""]

    def dump(self, architecture: int, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named parameters (k, *shape) and buffers of some rows, all of one architecture (copies)."""
        index = torch.as_tensor(rows, device=self.params[0].device)
        one = self.chains[architecture]
        params: dict[str, Tensor] = {}
        for link, w, i, o in zip(one.links, self.weights, one.sizes[:-1], one.sizes[1:], strict=True):
            taken = w[index]
            params[link.weight] = taken[:, :i, :o].transpose(1, 2).contiguous()
            if link.bias is not None:
                params[link.bias] = taken[:, -1, :o].contiguous()
        return params, {}

    def inputs(self, x: Tensor) -> Tensor:
        """Return samples as this stack reads them: flat, with a last column of ones for the bias."""
        x = x.flatten(1).to(self.params[0])
        return torch.cat([x, x.new_ones(len(x), 1)], dim=1) if self.biases[0] else x

    def gather(self, x: Tensor, y: Tensor, index: Tensor) -> list[tuple[Tensor, ...]]:
        """Micro-batches for :meth:`accumulate`: rows `index` (m, n, b) of the inputs and targets."""
        m, n, b = index.shape
        flat = index.flatten()
        rows = x.index_select(0, flat).view(m, n, b, -1)
        if self.task == "classification":
            smooth = self.smoothing.view(1, 1, n, 1)
            target = (smooth / self.sizes[-1]).expand(m, self.sizes[-1], n, b).contiguous()
            hot = y.index_select(0, flat).view(m, 1, n, b)
            target.scatter_add_(1, hot, (1 - smooth).expand(m, 1, n, b))
        else:
            target = y.index_select(0, flat).view(m, n, b, -1).permute(0, 3, 1, 2).contiguous()
        return list(zip(rows.unbind(0), rows.transpose(2, 3).unbind(0), target.unbind(0), strict=True))

    def accumulate(self, batch: tuple[Tensor, ...]) -> None:
        """Add the gradients of the summed losses of one micro-batch a model."""
        x, x_turned, target = batch  # (n, b, d + 1), (n, d + 1, b), (c, n, b)
        b = x.shape[1]
        space = self._workspaces.get(b)
        if space is None:
            space = self._workspaces[b] = _Workspace(self, b)
        h, turned = x, x_turned
        for w, z, inner, after, after_turned, f in zip(
            self.weights, space.z, space.inner, space.h, space.turned, self.functions, strict=False
        ):
            torch.bmm(h, w, out=z)
            f.forward(z, inner)
            h, turned = after, after_turned
        torch.bmm(self.head, turned, out=space.out)
        if self.task == "classification":
            space.logits.copy_(space.out_by_class)
            torch.softmax(space.logits, 0, out=space.delta)
            space.delta.sub_(target)
        else:
            torch.sub(space.out_by_class, target, out=space.delta)
            space.delta.mul_(2 / self.sizes[-1])
        delta = space.delta_by_model
        for layer in range(len(self.weights) - 1, -1, -1):
            turned = space.turned[layer - 1] if layer else x_turned
            if self.adds_up:
                torch.baddbmm(self.sums[layer], turned, delta, out=self.sums[layer])
            else:
                torch.bmm(turned, delta, out=self.sums[layer])
            if layer:
                d = space.d[layer - 1]
                torch.bmm(delta, self.back[layer], out=d)
                self.functions[layer - 1].backward(d, space.z[layer - 1], space.inner[layer - 1])
                delta = d

    def evaluate(self, split: Split, rows: slice) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of a contiguous slice of models on prepared samples, each (k,)."""
        x, y = split.x, split.y
        widest = max(self.sizes[1:])
        models = max(1, CHUNK // (min(len(x), 2048) * widest))
        totals = []
        for a in range(rows.start, rows.stop, models):
            weights = [w[a : min(a + models, rows.stop)] for w in self.weights]
            total = x.new_zeros(2, len(weights[0]))
            for s in range(0, len(x), 2048):
                total += torch.stack(score(self._outputs(weights, x[s : s + 2048]), y[s : s + 2048], self.task))
            totals.append(total / len(x))
        loss, accuracy = torch.cat(totals, dim=1)
        return loss, accuracy

    def _outputs(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return outputs (k, c, b): samples last, so that activations and losses run along memory."""
        h = x.T.expand(len(weights[0]), -1, -1)
        for layer, (w, size, bias) in enumerate(zip(weights, self.sizes[:-1], self.biases, strict=True)):
            if layer:
                self.functions[layer - 1].forward(h, h)
                h = torch.bmm(w[:, :size].transpose(1, 2), h)
                if bias:
                    h.add_(w[:, size:].transpose(1, 2))
            else:
                h = torch.bmm(w.transpose(1, 2), h)
        return h


def score(out: Tensor, y: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return the summed loss and the right answers of outputs (k, c, b), each (k,); NaN answers for regression."""
    if task == "regression":
        loss = (out - y.T).square().mean(1).sum(1)
        return loss, torch.full_like(loss, torch.nan)
    k, c, b = out.shape
    hot = out.new_zeros(c, b).scatter_(0, y.unsqueeze(0), 1).flatten()
    top = out.amax(1, keepdim=True)
    best = torch.eq(out, top, out=torch.empty_like(out)).view(k, -1)
    if float(best.sum()) == k * b:  # noqa: SIM108 - two comments read better
        right = best @ hot  # argmax over a short middle axis is forty times slower
    else:  # ties go to the first class, as argmax has it; and NaN
        right = (out.argmax(1) == y).sum(1).to(out.dtype)
    shifted = out - top
    return torch.exp(shifted).sum(1).log_().sum(1) - shifted.view(k, -1) @ hot, right
