"""Colour patches of two photographs: a small, honest stand-in for sets of natural images.

Each photograph is divided into equal blocks, a class a block; a sample is a patch from somewhere in its block, and the
question is which. Neighbouring blocks share colours and textures, so the task is never solved by colour alone, and the
more blocks, the harder. Along its longer side a block alternates between parts for training and parts for testing, so
that no pixel is seen in both.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from zoarium._core.errors import DataError
from zoarium._core.extras import require
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import dataset

Box = tuple[int, int, int, int]  # top, left, height, width


@dataset(
    "colour_patches",
    reference="Blocks of china.jpg (D. Büchele) and flower.jpg (vultilion), which ship with scikit-learn",
    extra="data",
    licence="CC BY 2.0",
)
def colour_patches(
    *, classes: int = 10, size: int = 16, n_train: int = 4000, n_test: int = 1000, jitter: float = 0.0,
    normalize: bool = True, seed: int = 0,
) -> Dataset:  # fmt: skip
    """Which block of two photographs a colour patch is from: 4,000 to train on, 1,000 to test, 16 x 16 pixels.

    Needs the extra ``[data]`` (Pillow).

    Parameters
    ----------
    classes : int, default 10
        Blocks in all, half of them a photograph's: an even number.
    size : int, default 16
        Pixels a side.
    n_train, n_test : int
        Patches in the splits, all different, as evenly over classes as can be.
    jitter : float in [0, 1), default 0
        Each patch's channels are multiplied by numbers drawn from [1 - jitter, 1 + jitter], as if the light had
        changed: mean colour then tells less, and the task is harder. 0 leaves the pixels as they are.
    normalize : bool, default True
        Channels with mean 0 and standard deviation 1 over the training split; otherwise values from 0 (to 1 without
        jitter).
    seed : int, default 0
        Draws the patches, their light, and which parts of a block are for testing.

    Returns
    -------
    Dataset
        Inputs (3, size, size).

    Raises
    ------
    DataError
        For an odd number of classes, blocks too small for two separate patches, or more patches than there are.
    MissingExtraError
        Without Pillow.

    Examples
    --------
    >>> colour_patches(classes=20, size=8, n_train=400, n_test=100)
    Dataset('colour_patches', 400 train + 100 test, input (3, 8, 8), 20 classes)
    """
    if classes < 2 or classes % 2:
        raise DataError(
            f"data 'colour_patches': classes must be an even number, as each of two photos gives half of them, "
            f"found {classes}."
        )
    if not 0 <= jitter < 1:
        raise DataError(f"data 'colour_patches': jitter must lie in [0, 1), found {jitter}.")
    if size < 1 or min(n_train, n_test) < classes:
        raise DataError(
            f"data 'colour_patches' needs size of 1 or more, and n_train and n_test of at least the {classes} classes, "
            f"found size={size}, n_train={n_train}, n_test={n_test}."
        )
    names, blocks = [], []
    for photo, pixels in photos().items():
        for (row, column), box in blocks_of(pixels.shape[0], pixels.shape[1], classes // 2).items():
            names.append(f"{photo} {row},{column}")
            blocks.append((pixels, box))
    splits = []
    for kind, total in (("train", n_train), ("test", n_test)):
        x, y = [], []
        for label, (pixels, box) in enumerate(blocks):
            wanted = total // classes + (label < total % classes)
            patches = patches_of(
                pixels, parts_of(box, size, classes, seed, label)[kind], size, wanted, names[label], kind, seed
            )
            x.append(patches)
            y += [label] * wanted
        light = torch.rand(total, 3, 1, 1, generator=generator("patch light", kind, seed)) * 2 - 1
        images = torch.from_numpy(np.concatenate(x)).permute(0, 3, 1, 2).float() / 255  # (N, 3, size, size)
        order = torch.randperm(total, generator=generator("patch order", kind, seed))
        splits.append(Split((images * (1 + jitter * light))[order].contiguous(), torch.tensor(y)[order]))
    train, test = splits
    if normalize:
        mean = train.x.mean((0, 2, 3), keepdim=True)
        sd = train.x.std((0, 2, 3), keepdim=True)
        train, test = Split((train.x - mean) / sd, train.y), Split((test.x - mean) / sd, test.y)
    return Dataset("colour_patches", train, test, "classification", classes, tuple(names))


def photos() -> dict[str, np.ndarray]:
    """Scikit-learn's two photographs, (height, width, 3) bytes each."""
    require("PIL", "data", "the data set 'colour_patches'")
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    return dict(zip(("china", "flower"), images, strict=True))


def blocks_of(height: int, width: int, count: int) -> dict[tuple[int, int], Box]:
    """The picture in `count` blocks, as square as rows times columns allow."""
    divisors = [rows for rows in range(1, count + 1) if count % rows == 0]
    rows = min(divisors, key=lambda r: abs(math.log((height / r) / (width / (count // r)))))
    high, wide = height // rows, width // (count // rows)
    return {(r, c): (r * high, c * wide, high, wide) for r in range(rows) for c in range(count // rows)}


def parts_of(box: Box, size: int, classes: int, seed: int, label: int) -> dict[str, list[Box]]:
    """The block's parts for training (two thirds, where a patch still fits the rest) and for testing."""
    top, left, height, width = box
    length, other = max(height, width), min(height, width)
    if length < 2 * size or other < size:
        raise DataError(
            f"data 'colour_patches': with classes={classes} a block has {height} x {width} pixels, too few for a "
            f"training and a test patch of size={size} side by side; take fewer classes or smaller patches."
        )
    periods = max(1, int(length // (4.5 * size)))
    test_first = torch.rand((), generator=generator("patch parts", seed, label)) < 0.5
    parts: dict[str, list[Box]] = {"train": [], "test": []}
    for period in range(periods):
        start, stop = length * period // periods, length * (period + 1) // periods
        held = max(size, (stop - start) // 3)
        cut = start + held if test_first else stop - held
        ends = (
            {"test": (start, cut), "train": (cut, stop)} if test_first else {"train": (start, cut), "test": (cut, stop)}
        )
        for kind, (low, high) in ends.items():
            along_rows = (top + low, left, high - low, width)
            parts[kind].append(along_rows if height >= width else (top, left + low, height, high - low))
    return parts


def patches_of(
    pixels: np.ndarray, parts: list[Box], size: int, wanted: int, name: str, kind: str, seed: int
) -> np.ndarray:
    """`wanted` different patches inside some parts, (wanted, size, size, 3)."""
    grids = (np.mgrid[t : t + h - size + 1, left : left + w - size + 1].reshape(2, -1).T for t, left, h, w in parts)
    corners = np.concatenate(list(grids))  # (m, 2): top and left of every patch there is
    if wanted > len(corners):
        raise DataError(
            f"data 'colour_patches': block {name!r} has {len(corners)} different {kind} patches of size={size}, but "
            f"n_{kind} asks for {wanted} of it; ask for fewer, or take fewer classes."
        )
    drawn = torch.randperm(len(corners), generator=generator("patches", kind, seed, name))[:wanted].numpy()
    return np.stack([pixels[t : t + size, left : left + size] for t, left in corners[drawn]])
