"""Published image sets: from bytes to tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from zoarium._core.errors import DataError
from zoarium.data.dataset import Dataset, Split
from zoarium.data.split import split_rows


@dataclass(frozen=True)
class Channels:
    """Mean and standard deviation of each channel over the training images, in [0, 1], as commonly published."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


def image_task(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: tuple[str, ...], channels: Channels,
    *, n_train: int, n_test: int, normalize: bool, seed: int, shrink: int = 1,
) -> Dataset:  # fmt: skip
    """A task of (images uint8 (N, 3, h, w), labels) pairs, with `n_train` and `n_test` of them, classes in proportion.

    Images are shrunk by means over `shrink` x `shrink` pixels. Only those kept become floats, some at a time, so a part
    of a large set needs no memory for the whole.
    """
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in (channels.mean, channels.sd))
    splits = []
    for kind, (images, labels), wanted in (("train", train, n_train), ("test", test, n_test)):
        if not 1 <= wanted <= len(images):
            raise DataError(f"data {name!r}: n_{kind} must lie between 1 and {len(images):,}, found {wanted:,}.")
        rows = torch.arange(len(images))
        if wanted < len(images):
            _, rows = split_rows(len(images), wanted, seed, labels)
        height, width = (side // shrink for side in images.shape[2:])
        x = torch.empty(wanted, 3, height, width)
        for chunk, out in zip(rows.split(1000), x.split(1000), strict=True):
            part = images[chunk].float().div_(255)
            part = avg_pool2d(part, shrink) if shrink > 1 else part
            out.copy_((part - mean) / sd if normalize else part)
        splits.append(Split(x, labels[rows].to(torch.int64)))
    return Dataset(name, splits[0], splits[1], "classification", len(classes), classes)
