"""Many networks of one architecture as one function.

`stack(module)` returns a :class:`StackedNet` that maps stacked parameters ``{name: (n, *shape)}`` and inputs to outputs
``(n, b, c)``, differentiably (twice, for Hessian-vector products). There are four routes, each named by `kind`:

- "bmm": linear layers and pointwise activations in a row, as one batched matrix product a layer;
- "grouped": convolutions, pooling, batch norm and sums, as one grouped convolution a layer (`zoarium.nets.grouped`);
- "vmap": any other module `torch.func.vmap` can take;
- "loop": the rest, model by model, with the reason vmap gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zoarium._core.errors import NetError, unknown_name
from zoarium.nets.layout import Layout

Tensors = Mapping[str, Tensor]

POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity)


class StackedNet:
    """n networks of one architecture as one function; `kind` names the route taken, `reason` says why.

    Parameters
    ----------
    module : torch.nn.Module
        The architecture. Its own weights are not used; its mode (training or evaluation) is.
    reason : str
        Why this route.

    Notes
    -----
    Dropout draws a mask for each model. Buffers a module *assigns* in its forward, instead of changing them in place as
    batch norm does, are lost.
    """

    kind: str = "loop"

    def __init__(self, module: nn.Module, reason: str = "") -> None:
        self.module = module
        self.layout = Layout.of(module)
        self.reason = reason

    @property
    def layers(self) -> list[str]:
        """Names under which :meth:`features` can return activations; the last is the output."""
        return [name for name, child in self.module.named_modules() if name and not list(child.children())]

    def __call__(
        self, params: Tensors, x: Tensor, buffers: Tensors | None = None, *, per_model: bool = False
    ) -> Tensor:
        """Outputs of shape (n, b, ...).

        Parameters
        ----------
        params : mapping of str to Tensor
            Stacked parameters, each (n, *shape).
        x : Tensor
            One batch (b, ...) shown to every model, or (n, b, ...) with ``per_model=True``.
        buffers : mapping of str to Tensor, optional
            Stacked buffers; in training mode they are updated in place, as batch norm does. Where one is not given the
            module's own is used, and left as it is.
        per_model : bool, default False
            Whether `x` holds a batch of its own for each model.
        """
        return self._run(params, self._complete(params, buffers), x, per_model, ())[0]

    def features(
        self,
        params: Tensors,
        x: Tensor,
        layers: Sequence[str],
        buffers: Tensors | None = None,
        *,
        per_model: bool = False,
    ) -> dict[str, Tensor]:
        """Activations ``{layer: (n, b, ...)}`` of named layers (see :attr:`layers`); "logits" is the output.

        Raises
        ------
        NetError
            For an unknown layer, one the forward pass does not run, or one that returns no tensor.
        """
        inner = [layer for layer in layers if layer != "logits"]
        for layer in inner:
            if layer not in self.layers:
                raise NetError(unknown_name("layer", layer, [*self.layers, "logits"]))
        out, taken = self._run(params, self._complete(params, buffers), x, per_model, tuple(inner))
        return {**taken, "logits": out} if "logits" in layers else taken

    def _complete(self, params: Tensors, buffers: Tensors | None) -> Tensors:
        """Buffers a training pass may change and the caller did not give, as copies."""
        buffers = buffers or {}
        if not self.module.training:
            return buffers
        n = len(next(iter(params.values())))
        own = {k: b for k, b in self.module.named_buffers() if k not in buffers}
        return {**buffers, **{k: b.expand(n, *b.shape).clone() for k, b in own.items()}} if own else buffers

    @property
    def _overwrites(self) -> bool:
        """Whether a layer works in place, so that an activation taken before it must be copied."""
        return any(getattr(child, "inplace", False) for child in self.module.modules())

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(next(iter(params.values())))
        outs = [
            self._one(
                {k: v[i] for k, v in params.items()},
                {k: v[i] for k, v in buffers.items()},
                x[i] if per_model else x,
                layers,
            )
            for i in range(n)
        ]
        return torch.stack([o for o, _ in outs]), {k: torch.stack([t[k] for _, t in outs]) for k in layers}

    def _one(
        self, params: Tensors, buffers: Tensors, x: Tensor, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        taken: dict[str, Tensor] = {}
        copy = self._overwrites

        def hook(name: str) -> Callable[..., None]:
            def take(module: nn.Module, args: object, output: object) -> None:
                if not isinstance(output, Tensor):
                    raise NetError(
                        f"layer {name!r} gives a {type(output).__name__}, not a tensor; choose another layer."
                    )
                taken[name] = output.clone() if copy else output

            return take

        hooks = [self.module.get_submodule(layer).register_forward_hook(hook(layer)) for layer in layers]
        try:
            out = functional_call(self.module, {**params, **buffers}, (x,))
        finally:
            for handle in hooks:
                handle.remove()
        unused = [layer for layer in layers if layer not in taken]
        if unused:
            raise NetError(f"layer {unused[0]!r} is not run in the forward pass; choose another layer.")
        if not isinstance(out, Tensor):
            raise NetError(
                f"net {type(self.module).__name__} gives a {type(out).__name__}, not a tensor; wrap it so that forward "
                "returns its outputs (logits) alone."
            )
        return out, taken


class VmapNet(StackedNet):
    """Any module vmap can take; becomes a loop, and says why, at the first call that shows it cannot."""

    kind = "vmap"

    def __init__(self, module: nn.Module, reason: str = "") -> None:
        super().__init__(module, reason)
        self._proven: set[bool] = set()  # modes (training or not) in which vmap has worked

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mode = self.module.training
        if self.kind == "loop":
            return super()._run(params, buffers, x, per_model, layers)
        if mode in self._proven:
            return self._together(params, buffers, x, per_model, layers)
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        try:
            out = self._together(params, buffers, x, per_model, layers)
        except NetError:
            raise
        except Exception as error:  # vmap refuses in many ways, and a module may fail for reasons of its own
            with torch.no_grad():
                for name, buffer in buffers.items():
                    buffer.copy_(before[name])
            out = super()._run(params, buffers, x, per_model, layers)  # raises where the module itself is at fault
            self.kind, self.reason = "loop", f"vmap cannot take it ({_first_sentence(error)})"
            return out
        self._proven.add(mode)
        return out

    def _together(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        def one(params: Tensors, buffers: Tensors, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self._one(params, buffers, x, layers)

        return vmap(one, in_dims=(0, 0, 0 if per_model else None), randomness="different")(params, buffers, x)


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class Affine:
    """One link of a chain: names of a linear layer's weight and bias, and the pointwise functions after it."""

    layer: str
    weight: str
    bias: str | None
    after: tuple[tuple[str, nn.Module], ...]


class ChainNet(StackedNet):
    """Linear layers and pointwise activations in a row: one batched matrix product a layer."""

    kind = "bmm"

    def __init__(self, module: nn.Module, links: tuple[Affine, ...]) -> None:
        super().__init__(module, "a chain of linear layers and pointwise activations")
        self.links = links
        first, leaf = (_leaves(module) or [("", module)])[0]
        self.flatten = first if isinstance(leaf, nn.Flatten) else None

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = params[self.links[0].weight].shape[0]
        taken: dict[str, Tensor] = {}
        copy = self._overwrites
        h = x if per_model else x.expand(n, *x.shape)  # (n, b, ...)
        if self.flatten is not None:
            h = h.flatten(2)
            if self.flatten in layers:
                taken[self.flatten] = h
        inner = h.shape[1:-1]  # (b,), or (b, ...) where no Flatten comes first and layers act on the last axis
        h = h.reshape(n, -1, h.shape[-1])
        for link in self.links:
            w = params[link.weight].transpose(1, 2)  # (n, in, out)
            h = torch.bmm(h, w) if link.bias is None else torch.baddbmm(params[link.bias].unsqueeze(1), h, w)
            for name, function in ((link.layer, None), *link.after):
                h = h if function is None else function(h)
                if name in layers:
                    taken[name] = h.clone() if copy else h
        if len(inner) > 1:
            taken = {k: v if k == self.flatten else v.reshape(n, *inner, v.shape[-1]) for k, v in taken.items()}
            h = h.reshape(n, *inner, h.shape[-1])
        return h, taken


def _leaves(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """The leaves of nested `nn.Sequential`s in the order they run, or None where anything else holds children."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        leaves: list[tuple[str, nn.Module]] = []
        for name, child in module._modules.items():  # not named_children, which skips a module used again
            below = None if child is None else _leaves(child, f"{prefix}{name}.")
            if below is None:
                return None
            leaves += below
        return leaves
    return None if list(module.children()) else [(prefix[:-1], module)]


def plain_leaves(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a plain chain that may be run by hand: no hooks, no layer used twice, no tied weights."""
    leaves = _leaves(module) if isinstance(module, nn.Sequential) else None
    if leaves is None or any(child._forward_hooks or child._forward_pre_hooks for child in module.modules()):
        return None
    known = dict(module.named_parameters())  # holds tied weights once
    own = [f"{name}.{key}" for name, leaf in leaves for key, _ in leaf.named_parameters(recurse=False)]
    return leaves if own == list(known) else None


def is_flatten(leaf: nn.Module) -> bool:
    """Whether a layer is `nn.Flatten()` of everything but the batch."""
    return type(leaf) is nn.Flatten and (leaf.start_dim, leaf.end_dim) == (1, -1)


def chain_of(module: nn.Module) -> tuple[Affine, ...] | None:
    """The links of a multilayer perceptron, or None if `module` is anything else."""
    leaves = plain_leaves(module)
    if leaves is None:
        return None
    links: list[Affine] = []
    for name, leaf in leaves[1:] if leaves and is_flatten(leaves[0][1]) else leaves:
        if type(leaf) is nn.Linear:
            links.append(Affine(name, f"{name}.weight", f"{name}.bias" if leaf.bias is not None else None, ()))
        elif type(leaf) in POINTWISE and links:
            last = links[-1]
            links[-1] = Affine(last.layer, last.weight, last.bias, (*last.after, (name, leaf)))
        else:
            return None
    return tuple(links) or None


def stack(module: nn.Module, example: Tensor | None = None) -> StackedNet:
    """The fastest stacked form of a module.

    Parameters
    ----------
    module : torch.nn.Module
        The architecture; any module that maps one batch tensor to one output tensor.
    example : Tensor of shape (b, ...), optional
        A few inputs on which a net for vmap is tried at once, forwards and backwards, in the module's mode. Without it
        the first call decides.

    Returns
    -------
    StackedNet
        ``kind`` is "bmm", "grouped", "vmap" or "loop"; ``reason`` says why.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> net = stack(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> params = {name: torch.zeros(5, *shape) for name, shape in net.layout.shapes}
    >>> net.kind, tuple(net(params, torch.ones(7, 4)).shape)
    ('bmm', (5, 7, 2))
    """
    from zoarium.nets.convgraph import Untraceable, conv_graph
    from zoarium.nets.grouped import ConvGraphNet

    links = chain_of(module)
    if links is not None:
        return ChainNet(module, links)
    why = ""
    if any(isinstance(child, nn.Conv2d) for child in module.modules()):
        try:
            return ConvGraphNet(module, conv_graph(module))
        except Untraceable as reason:
            why = f": {reason}"
    net = VmapNet(module, f"vmap over the module's own forward{why}")
    if example is not None:
        _try(net, example)
    return net


def _try(net: VmapNet, x: Tensor) -> None:
    """Run two copies of the module forwards and backwards, so that a net vmap cannot take becomes a loop now."""
    own = dict(net.module.named_parameters())
    params = {k: p.detach().expand(2, *p.shape).clone().requires_grad_() for k, p in own.items()}
    buffers = {k: b.detach().expand(2, *b.shape).clone() for k, b in net.module.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        out = net(params, x, buffers)
        try:
            torch.autograd.grad(out.sum(), list(params.values()), allow_unused=True)
        except RuntimeError as error:
            net.kind, net.reason = "loop", f"vmap cannot take its backward pass ({_first_sentence(error)})"
