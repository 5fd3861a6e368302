"""Convolutional networks for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zoarium._core.errors import NetError
from zoarium.nets.mlp import activation_module, check_sizes
from zoarium.nets.registry import net


@net("cnn", reference="LeCun et al. 1998; batch norm: Ioffe & Szegedy 2015; global pooling: Lin, Chen & Yan 2014")
def cnn(
    in_shape: tuple[int, ...], n_outputs: int, *, width: int = 8, depth: int = 3, activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Module:  # fmt: skip
    """Convolutional network: `depth` 3 x 3 layers of w, 2w, 2w, ... channels, pooling between them, a linear head.

    Parameters
    ----------
    in_shape : (channels, height, width)
        Shape of one image.
    n_outputs : int
        Units of the last layer.
    width : int, default 8
        Channels w of the first layer.
    depth : int, default 3
        Convolutions. Between two of them, images of 4 pixels or more a side are halved by max-pooling.
    activation : str, default "relu"
    batch_norm : bool, default False
        Batch norm after each convolution, which then has no bias.

    Returns
    -------
    torch.nn.Sequential
        Layers ``conv1, (norm1,) act1, pool1, conv2, ..., average, flatten, out``. The head sees the mean over
        positions, so the number of parameters does not depend on the size of the images and load follows `width`.

    Raises
    ------
    NetError
        If inputs are no images.

    Examples
    --------
    >>> net = cnn((1, 8, 8), 10, width=4)
    >>> [name for name, _ in net.named_children()]
    ['conv1', 'act1', 'pool1', 'conv2', 'act2', 'pool2', 'conv3', 'act3', 'average', 'flatten', 'out']
    """
    check_sizes("cnn", width=width, depth=depth, n_outputs=n_outputs)
    if len(in_shape) != 3:
        raise NetError(
            f"net 'cnn' needs images (channels, height, width), but inputs have shape {tuple(in_shape)}; "
            "reshape them, for example with x.reshape(len(x), 1, height, width), or choose net='mlp'."
        )
    channels, height, breadth = in_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1, depth + 1):
        wanted = width if index == 1 else 2 * width
        layers[f"conv{index}"] = nn.Conv2d(channels, wanted, kernel_size=3, padding=1, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm2d(wanted)
        layers[f"act{index}"] = activation_module(activation)
        channels = wanted
        if index < depth and min(height, breadth) >= 4:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
            height, breadth = height // 2, breadth // 2
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["out"] = nn.Linear(channels, n_outputs)
    return nn.Sequential(layers)
