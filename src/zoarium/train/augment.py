"""Random views of training images: mirrored, shifted, rotated.

    crop      shift by whole pixels, uniformly up to an eighth of each side     RandomCrop(32, padding=4)
    flip      mirror left and right, with probability 1/2                       RandomHorizontalFlip
    rotate    by an angle uniform in ±20 degrees, nearest pixel                 RandomRotation(20)

applied in this order, as in the usual recipe for CIFAR (He et al. 2015, section 4.2, with rotation added by the recipe
of the phase zoos, arXiv 2504.18072). What comes into view is black: the smallest value of each channel.

Every model draws from a stream of its own seed, one row of numbers for each sample of an epoch, so its views do not
depend on what it shares a program with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoarium._core.errors import GridError
from zoarium._core.seeds import generator

SHIFT = 1 / 8  # of a side
DEGREES = 20.0
KINDS = {"none": frozenset[str](), "flip": {"flip"}, "crop_flip": {"crop", "flip"}}
KINDS["crop_flip_rotate"] = {"crop", "flip", "rotate"}


def check_augment(kind: str, in_shape: tuple[int, ...], name: str) -> None:
    """Refuse to augment what is no image."""
    if kind != "none" and len(in_shape) != 3:
        raise GridError(
            f"augment={kind!r} moves the pixels of images (channels, height, width), but inputs of {name!r} have shape "
            f"{in_shape}; leave it out."
        )


class Augmentation:
    """Views of the training images of n models.

    Parameters
    ----------
    kind : {"none", "flip", "crop_flip", "crop_flip_rotate"}
        What is done to the images of every model.
    seeds : sequence of int
        One a model.
    images : sequence of Tensor (N, channels, height, width)
        The training images.
    """

    def __init__(self, kind: str, seeds: Sequence[int], images: Sequence[Tensor]) -> None:
        self.parts, self.seeds = KINDS[kind], list(seeds)
        self.shape = images[0].shape[1:]
        self.height, self.width = self.shape[1:]
        self.black = torch.stack([x.amin((0, 2, 3)) for x in images]).amin(0)  # (channels,)
        rows, columns = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        self.rows, self.columns = (c.flatten().to(self.black.device) for c in (rows, columns))  # (pixels,)

    def draw(self, epoch: int, count: int) -> Tensor:
        """Four uniform numbers for each sample each model sees in an epoch, in the order it sees them: (n, N, 4)."""
        streams = {s: torch.rand(count, 4, generator=generator("augment", s, epoch)) for s in dict.fromkeys(self.seeds)}
        return torch.stack([streams[s] for s in self.seeds]).to(self.black.device)

    def images(self, inputs: Tensor) -> Tensor:
        """The images (..., channels, height, width) among inputs as a stack holds them, perhaps flat and padded."""
        if inputs.shape[-3:] == self.shape:
            return inputs
        return inputs[..., : self.shape.numel()].unflatten(-1, self.shape)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Views of images (..., channels, height, width), one for each row of `drawn` (..., 4)."""
        shape = images.shape
        images, u = images.flatten(0, -4), drawn.flatten(0, -2).unsqueeze(-1)  # (k, C, H, W), (k, 4, 1)
        y, x, outside = self._source(u[:, 0], u[:, 1], u[:, 2], u[:, 3])  # (k, pixels) each
        index = (y * self.width + x).masked_fill_(outside, 0)
        taken = images.flatten(2).gather(2, index.unsqueeze(1).expand(-1, images.shape[1], -1))
        black = self.black.to(taken).view(1, -1, 1)
        return torch.where(outside.unsqueeze(1), black, taken).view(shape)

    def _source(self, down: Tensor, right: Tensor, mirror: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each pixel of a view comes from, and whether that is outside the image."""
        y, x = self.rows.expand(len(down), -1), self.columns.expand(len(down), -1)
        outside = torch.zeros_like(y, dtype=torch.bool)
        if "rotate" in self.parts:  # the last step in order is the first to be undone
            angle = (2 * turn - 1) * math.radians(DEGREES)
            cy, cx = (self.height - 1) / 2, (self.width - 1) / 2
            dy, dx = y - cy, x - cx
            y = (angle.cos() * dy + angle.sin() * dx + cy).round().long()
            x = (angle.cos() * dx - angle.sin() * dy + cx).round().long()
            outside = outside | self._beyond(y, x)
        if "flip" in self.parts:
            x = torch.where(mirror < 0.5, self.width - 1 - x, x)
        if "crop" in self.parts:
            y, x = y + _shift(down, self.height), x + _shift(right, self.width)
            outside = outside | self._beyond(y, x)
        return y, x, outside

    def _beyond(self, y: Tensor, x: Tensor) -> Tensor:
        return (y < 0) | (y >= self.height) | (x < 0) | (x >= self.width)


def _shift(u: Tensor, side: int) -> Tensor:
    """A whole number of pixels, uniform over -pad .. pad."""
    pad = math.ceil(side * SHIFT)
    return (u * (2 * pad + 1)).long().clamp_max(2 * pad) - pad
