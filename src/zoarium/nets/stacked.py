"""Many networks of one architecture as one function.

`stack(module)` returns a :class:`StackedNet` that maps stacked parameters ``{name: (n, *shape)}`` and inputs to outputs
``(n, b, c)``, differentiably. Chains of linear layers and pointwise activations run as batched matrix products; any
other module goes through `torch.func.vmap`; a module vmap cannot take runs model by model, and `reason` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        The architecture. Its own weights are not used.
    """

    kind = "loop"

    def __init__(self, module: nn.Module, reason: str = "") -> None:
        self.module = module
        self.layout = Layout.of(module)
        self.reason = reason

    @property
    def layers(self) -> list[str]:
        """Names under which :meth:`features` can return activations; the last is the output."""
        return [name for name, child in self.module.named_modules() if name and not list(child.children())]

    def __call__(self, params: Tensors, x: Tensor, buffers: Tensors | None = None, *, per_model: bool = False) -> Tensor:
        """Outputs of shape (n, b, ...).

        Parameters
        ----------
        params : mapping of str to Tensor
            Stacked parameters, each (n, *shape).
        x : Tensor
            One batch (b, ...) shown to every model, or (n, b, ...) with ``per_model=True``.
        buffers : mapping of str to Tensor, optional
            Stacked buffers; in training mode they are updated in place, as batch norm does.
        per_model : bool, default False
            Whether `x` holds a batch of its own for each model.
        """
        return self._run(params, buffers or {}, x, per_model, ())[0]

    def features(
        self, params: Tensors, x: Tensor, layers: Sequence[str], buffers: Tensors | None = None, *, per_model: bool = False
    ) -> dict[str, Tensor]:
        """Activations ``{layer: (n, b, ...)}`` of named layers (see :attr:`layers`); "logits" is the output."""
        inner = [layer for layer in layers if layer != "logits"]
        for layer in inner:
            if layer not in self.layers:
                raise NetError(unknown_name("layer", layer, [*self.layers, "logits"]))
        out, taken = self._run(params, buffers or {}, x, per_model, tuple(inner))
        return {**taken, "logits": out} if "logits" in layers else taken

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(next(iter(params.values())))
        outs = [
            self._one({k: v[i] for k, v in params.items()}, {k: v[i] for k, v in buffers.items()},
                      x[i] if per_model else x, layers)
            for i in range(n)
        ]
        return torch.stack([o for o, _ in outs]), {k: torch.stack([t[k] for _, t in outs]) for k in layers}

    def _one(
        self, params: Tensors, buffers: Tensors, x: Tensor, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        taken: dict[str, Tensor] = {}
        hooks = [
            self.module.get_submodule(layer).register_forward_hook(
                lambda module, args, output, layer=layer: taken.__setitem__(layer, output)
            )
            for layer in layers
        ]
        try:
            return functional_call(self.module, {**params, **buffers}, (x,)), taken
        finally:
            for hook in hooks:
                hook.remove()


class VmapNet(StackedNet):
    """Any module vmap can take."""

    kind = "vmap"

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        def one(params: Tensors, buffers: Tensors, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self._one(params, buffers, x, layers)

        return vmap(one, in_dims=(0, 0, 0 if per_model else None), randomness="different")(params, buffers, x)


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

    def _run(
        self, params: Tensors, buffers: Tensors, x: Tensor, per_model: bool, layers: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = params[self.links[0].weight].shape[0]
        taken: dict[str, Tensor] = {}
        h = x.flatten(2) if per_model else x.flatten(1).expand(n, -1, -1)
        for link in self.links:
            w = params[link.weight].transpose(1, 2)  # (n, in, out)
            h = torch.bmm(h, w) if link.bias is None else torch.baddbmm(params[link.bias].unsqueeze(1), h, w)
            if link.layer in layers:
                taken[link.layer] = h
            for name, function in link.after:
                h = function(h)
                if name in layers:
                    taken[name] = h
        return h, taken


def _leaves(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """The leaves of nested `nn.Sequential`s in order, or None where anything else holds children."""
    if isinstance(module, nn.Sequential):
        leaves: list[tuple[str, nn.Module]] = []
        for name, child in module.named_children():
            below = _leaves(child, f"{prefix}{name}.")
            if below is None:
                return None
            leaves += below
        return leaves
    return None if list(module.children()) else [(prefix[:-1], module)]


def chain_of(module: nn.Module) -> tuple[Affine, ...] | None:
    """The links of a multilayer perceptron, or None if `module` is anything else."""
    if not isinstance(module, nn.Sequential):
        return None
    leaves = _leaves(module)
    if leaves is None:
        return None
    if leaves and type(leaves[0][1]) is nn.Flatten:
        leaves = leaves[1:]
    if len({id(leaf) for _, leaf in leaves if isinstance(leaf, nn.Linear)}) != sum(
        isinstance(leaf, nn.Linear) for _, leaf in leaves
    ):
        return None  # a layer used twice has tied weights
    links: list[Affine] = []
    for name, leaf in leaves:
        if type(leaf) is nn.Linear:
            links.append(Affine(name, f"{name}.weight", f"{name}.bias" if leaf.bias is not None else None, ()))
        elif type(leaf) in POINTWISE and links:
            last = links[-1]
            links[-1] = Affine(last.layer, last.weight, last.bias, (*last.after, (name, leaf)))
        else:
            return None
    return tuple(links) or None


def stack(module: nn.Module) -> StackedNet:
    """The fastest stacked form of a module.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> net = stack(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> params = {name: torch.zeros(5, *shape) for name, shape in net.layout.shapes}
    >>> net.kind, tuple(net(params, torch.ones(7, 4)).shape)
    ('bmm', (5, 7, 2))
    """
    links = chain_of(module)
    if links is not None:
        return ChainNet(module, links)
    return VmapNet(module, "vmap over the module's own forward")
