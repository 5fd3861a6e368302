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


def check_sizes(net: str, **sizes: int) -> None:
    """Widths and the like must be whole and positive."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise NetError(f"net {net!r}: {name} must be a whole number from 1, found {size!r}.")


@net("mlp", reference="Rumelhart, Hinton & Williams 1986")
def mlp(
    in_shape: tuple[int, ...], n_outputs: int, *, width: int = 32, depth: int = 1, activation: str = "relu"
) -> nn.Module:
    """Multilayer perceptron: `depth` hidden layers of `width` units, PyTorch's default initialisation.

    Parameters
    ----------
    in_shape : tuple of int
        Shape of one input, which is flattened.
    n_outputs : int
        Units of the last layer.
    width : int, default 32
        Units of each hidden layer.
    depth : int, default 1
        Hidden layers; 0 gives a linear model.
    activation : str, default "relu"
        One of :data:`ACTIVATIONS`.

    Returns
    -------
    torch.nn.Sequential
        Layers ``flatten, fc1, act1, ..., out``.

    Raises
    ------
    NetError
        For a size that is not positive, or an unknown activation.
    """
    check_sizes("mlp", width=width, n_outputs=n_outputs)
    if depth != 0:
        check_sizes("mlp", depth=depth)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    size = math.prod(in_shape)
    for index in range(1, depth + 1):
        layers[f"fc{index}"] = nn.Linear(size, width)
        layers[f"act{index}"] = activation_module(activation)
        size = width
    layers["out"] = nn.Linear(size, n_outputs)
    return nn.Sequential(layers)
