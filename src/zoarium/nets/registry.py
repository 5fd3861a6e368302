"""The registry of architectures, and building one from a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from zoarium._core.errors import NetError
from zoarium._core.registry import Registry
from zoarium._core.seeds import stream

MODULES = tuple(f"zoarium.nets.{name}" for name in ("mlp", "cnn", "resnet", "vit", "gpt", "pinn"))
NETS = Registry("net", modules=MODULES, error=NetError)
net = NETS.register

Factory = Callable[..., nn.Module]
GIVEN = ("in_shape", "n_outputs")  # what the data say; everything else a factory takes is an axis


def factory_of(net: str | Factory) -> Factory:
    """The factory behind a registered name, or the user's own callable."""
    return NETS[net].function if isinstance(net, str) else net


def axes_of(net: str | Factory) -> dict[str, Any]:
    """Parameters of a net that a grid can vary, with their defaults (`inspect.Parameter.empty` where required)."""
    parameters = inspect.signature(factory_of(net)).parameters.values()
    return {
        p.name: p.default for p in parameters if p.name not in GIVEN and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def build(
    net: str | Factory, params: Mapping[str, Any], *, in_shape: tuple[int, ...], n_outputs: int, seed: int = 0
) -> nn.Module:
    """Build a module; its initial weights depend on `seed` and the architecture only.

    The global random state of torch is left as it was. The module remembers how it was made: ``module.rebuild(seed=1)``
    is the same net with other initial weights.
    """
    factory = factory_of(net)
    accepted = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    given = {"in_shape": in_shape, "n_outputs": n_outputs}
    given = {name: value for name, value in given.items() if takes_any or name in accepted}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream("init", seed))
        try:
            module = factory(**given, **params)
        except (TypeError, ValueError) as error:
            name = net if isinstance(net, str) else getattr(net, "__name__", repr(net))
            raise NetError(
                f"net {name!r} cannot be built with {dict(params)} on inputs {in_shape}: {error}."
            ) from error
    if isinstance(module, nn.Module):
        module.rebuild = partial(build, net, dict(params), in_shape=in_shape, n_outputs=n_outputs)  # type: ignore
    return module
