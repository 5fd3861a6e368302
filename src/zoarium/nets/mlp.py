"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from zoarium._core.errors import NetError, unknown_name
from zoarium.nets.registry import net

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU,
    "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "identity": nn.Identity,
}  # fmt: skip


def activation_module(name: str) -> nn.Module:
    """The pointwise module called `name`."""
    if name not in ACTIVATIONS:
        raise NetError(unknown_name("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]()


@net("mlp", reference="Rumelhart, Hinton & Williams 1986")
def mlp(
    in_shape: tuple[int, ...], n_outputs: int, *, width: int = 32, depth: int = 1, activation: str = "relu"
) -> nn.Module:
    """Multilayer perceptron: `depth` hidden layers of `width` units, PyTorch's default initialisation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    size = math.prod(in_shape)
    for index in range(1, depth + 1):
        layers[f"fc{index}"] = nn.Linear(size, width)
        layers[f"act{index}"] = activation_module(activation)
        size = width
    layers["out"] = nn.Linear(size, n_outputs)
    return nn.Sequential(layers)
