"""Residual networks with a dial for their width.

    y = relu(F(x) + shortcut(x))

with F two 3 x 3 convolutions, or one of 1 x 1, 3 x 3 and 1 x 1 (a "bottleneck"), and batch norm after each.

He, Zhang, Ren & Sun, "Deep residual learning for image recognition", 2015 (arXiv 1512.03385): figure 5 and table 1 for
ResNet-18 and ResNet-50, section 4.2 for the small ones. The stages have w, 2w, 4w (and 8w) channels; w = 64 and w = 16
are the published nets. As in the usual reference code, a bottleneck halves the image in its 3 x 3 convolution.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoarium._core.errors import NetError
from zoarium.nets.check import single_value_error
from zoarium.nets.mlp import check_sizes
from zoarium.nets.registry import net

Stem = Literal["imagenet", "cifar"]
REFERENCE = "He, Zhang, Ren & Sun 2015 (arXiv 1512.03385)"


def check_images(net: str, in_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape of one image as (channels, height, width); anything else is a `NetError`."""
    if len(in_shape) != 3:
        raise NetError(
            f"net {net!r} needs images (channels, height, width), but inputs have shape {tuple(in_shape)}; "
            "reshape them, for example with x.reshape(len(x), 1, height, width), or choose net='mlp'."
        )
    channels, height, width = in_shape
    return channels, height, width


def _convolution(channels: int, wanted: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, wanted, kernel, stride, padding=kernel // 2, bias=False)


class PaddedShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels: the shortcut without parameters (option A of the paper)."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, C + new, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def _shortcut(channels: int, wanted: int, stride: int, projection: bool) -> nn.Module | None:
    """How x reaches the sum: as it is (None), by a 1 x 1 convolution (option B), or padded (option A)."""
    if stride == 1 and channels == wanted:
        return None
    if projection:
        return nn.Sequential(_convolution(channels, wanted, 1, stride), nn.BatchNorm2d(wanted))
    return PaddedShortcut(wanted - channels, stride)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; `relu` is the block's output, so that features can name it."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width, stride, projection)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, width, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, the last with four times the channels, and a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        wanted = width * self.expansion
        self.conv1, self.bn1 = _convolution(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, wanted, 1), nn.BatchNorm2d(wanted)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, wanted, stride, projection)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, 4 width, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A stem, stages of residual blocks at w, 2w, 4w, ... channels, the mean over positions and a linear layer.

    Parameters
    ----------
    block : type
        :class:`BasicBlock` or :class:`Bottleneck`.
    blocks : tuple of int
        Blocks of each stage; every stage but the first halves the image.
    channels, n_outputs : int
        Channels of the images, and units of the last layer.
    width : int
        Channels w of the stem and, before expansion, of the first stage.
    stem : {"imagenet", "cifar"}
        7 x 7 convolution of stride 2 and a 3 x 3 max-pool of stride 2, or one 3 x 3 convolution of stride 1.
    projection : bool, default True
        Whether shortcuts that change shape are 1 x 1 convolutions (option B) or padded (option A).
    zero_init_residual : bool, default False
        Start the last batch norm of every block at 0, so that each block is its shortcut (Goyal et al. 2017, arXiv
        1706.02677).

    Notes
    -----
    Weights start as PyTorch's own convolutions and linear layers do (Kaiming-uniform), as in the phase zoos, not
    Kaiming-normal as in the paper. Parameters are called ``conv1, bn1, layer1.0.conv1, ..., fc``, as in torchvision,
    whose checkpoints load.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        channels: int,
        n_outputs: int,
        *,
        width: int,
        stem: Stem,
        projection: bool = True,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        imagenet = stem == "imagenet"
        self.conv1 = _convolution(channels, width, 7, 2) if imagenet else _convolution(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else None
        self.stages = [f"layer{index + 1}" for index in range(len(blocks))]
        size = width
        for index, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            inner, stage = width * 2**index, []
            for place in range(count):
                stage.append(block(size, inner, 2 if index and not place else 1, projection))
                size = inner * block.expansion
            self.add_module(name, nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(size, n_outputs)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, channels, height, width) -> outputs (b, c)."""
        if self.training:
            check_batch(x, len(self.stages) - 1 + (2 if self.maxpool is not None else 0))
        h = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            h = self.maxpool(h)
        for stage in self.stages:
            h = self.get_submodule(stage)(h)
        return self.fc(self.avgpool(h).flatten(1))


def check_batch(x: Tensor, halvings: int) -> None:
    """Batch norm trains on no single value a channel: say so before it does."""
    if len(x) == 1 and max(x.shape[-2:]) <= 2**halvings:
        raise single_value_error(x.shape)


check_batch.checks_only = True  # a symbolic trace may leave it out
fx.wrap("check_batch")


def _imagenet_family(
    name: str, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], in_shape: tuple[int, ...],
    n_outputs: int, width: int, stem: Stem, zero_init_residual: bool,
) -> ResNet:  # fmt: skip
    check_sizes(name, width=width, n_outputs=n_outputs)
    channels, *_ = check_images(name, in_shape)
    if stem not in ("imagenet", "cifar"):
        raise NetError(f"net {name!r}: stem must be 'imagenet' or 'cifar', found {stem!r}.")
    return ResNet(block, blocks, channels, n_outputs, width=width, stem=stem, zero_init_residual=zero_init_residual)


@net("resnet18", reference=REFERENCE)
def resnet18(
    in_shape: tuple[int, ...], n_outputs: int, *, width: int = 64, stem: Stem = "imagenet",
    zero_init_residual: bool = False,
) -> ResNet:  # fmt: skip
    """ResNet-18: four stages of two basic blocks at w, 2w, 4w and 8w channels.

    Parameters
    ----------
    in_shape : (channels, height, width)
        Shape of one image. Any size runs: images of one pixel stay one pixel.
    n_outputs : int
        Units of the last layer.
    width : int, default 64
        Channels w of the first stage; the phase zoos take 2 to 256.
    stem : {"imagenet", "cifar"}, default "imagenet"
        7 x 7 convolution of stride 2 and a max-pool, which the phase zoos use on 32 x 32 images too, or one 3 x 3
        convolution, which keeps small images their size.
    zero_init_residual : bool, default False
        Start every block as its shortcut.

    Returns
    -------
    ResNet
        11,689,512 parameters at w = 64 for three channels and 1,000 classes.

    Raises
    ------
    NetError
        If inputs are no images, a size is not positive or the stem is unknown.

    Notes
    -----
    Batch norm needs two values a channel in training. Images of up to 32 pixels a side ("imagenet") or 8 ("cifar")
    shrink to one pixel, so that a last batch of one sample is an error; ``drop_last=True`` leaves it out.

    Examples
    --------
    >>> net = resnet18((3, 32, 32), 10, width=4)
    >>> sum(p.numel() for p in net.parameters())
    45102
    """
    return _imagenet_family("resnet18", BasicBlock, (2, 2, 2, 2), in_shape, n_outputs, width, stem, zero_init_residual)


@net("resnet50", reference=REFERENCE)
def resnet50(
    in_shape: tuple[int, ...], n_outputs: int, *, width: int = 64, stem: Stem = "imagenet",
    zero_init_residual: bool = False,
) -> ResNet:  # fmt: skip
    """ResNet-50: four stages of 3, 4, 6 and 3 bottleneck blocks at w, 2w, 4w and 8w channels, times four after each.

    Parameters and errors are those of :func:`resnet18`.

    Returns
    -------
    ResNet
        25,557,032 parameters at w = 64 for three channels and 1,000 classes.
    """
    return _imagenet_family("resnet50", Bottleneck, (3, 4, 6, 3), in_shape, n_outputs, width, stem, zero_init_residual)


def _cifar_family(
    name: str, blocks: int, in_shape: tuple[int, ...], n_outputs: int, width: int, zero_init_residual: bool
) -> ResNet:
    """The net of 6 `blocks` + 2 layers of section 4.2."""
    check_sizes(name, width=width, n_outputs=n_outputs)
    channels, *_ = check_images(name, in_shape)
    return ResNet(
        BasicBlock, (blocks,) * 3, channels, n_outputs, width=width, stem="cifar", projection=False,
        zero_init_residual=zero_init_residual,
    )  # fmt: skip


@net("resnet8", reference=f"{REFERENCE}, section 4.2")
def resnet8(in_shape: tuple[int, ...], n_outputs: int, *, width: int = 16, zero_init_residual: bool = False) -> ResNet:
    """ResNet-8: a 3 x 3 convolution and three stages of one basic block at w, 2w and 4w channels.

    The smallest net of section 4.2 of the paper, of 6n + 2 layers with n = 1; shortcuts are padded and have no
    parameters.

    Parameters
    ----------
    in_shape : (channels, height, width)
        Shape of one image.
    n_outputs : int
        Units of the last layer.
    width : int, default 16
        Channels w of the first stage.
    zero_init_residual : bool, default False
        Start every block as its shortcut.

    Returns
    -------
    ResNet
        75,290 parameters at w = 16 for three channels and 10 classes.

    Raises
    ------
    NetError
        If inputs are no images or a size is not positive.

    Examples
    --------
    >>> net = resnet8((3, 32, 32), 10)
    >>> sum(p.numel() for p in net.parameters())
    75290
    """
    return _cifar_family("resnet8", 1, in_shape, n_outputs, width, zero_init_residual)


@net("resnet14", reference=f"{REFERENCE}, section 4.2")
def resnet14(in_shape: tuple[int, ...], n_outputs: int, *, width: int = 16, zero_init_residual: bool = False) -> ResNet:
    """ResNet-14: a 3 x 3 convolution and three stages of two basic blocks at w, 2w and 4w channels.

    Section 4.2 of the paper with n = 2; parameters and errors are those of :func:`resnet8`.

    Returns
    -------
    ResNet
        172,506 parameters at w = 16 for three channels and 10 classes.
    """
    return _cifar_family("resnet14", 2, in_shape, n_outputs, width, zero_init_residual)
