"""CIFAR-10 and CIFAR-100, from their binary archives: bytes in a fixed layout, never the pickled version.

A record is the label (for CIFAR-100 two, coarse and fine) and 3,072 bytes: the red, green and blue plane of 32 x 32
pixels, row by row. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium.data.archives import read_tar
from zoarium.data.dataset import Dataset
from zoarium.data.download import Published, folders, published
from zoarium.data.published import Channels, image_task
from zoarium.data.registry import dataset

PIXELS = 3 * 32 * 32
CIFAR10 = Published(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", "c32a1d4ab5d03f1284b67883e8d87530",
)  # fmt: skip
CIFAR100 = Published(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", 168_513_733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", "03b5dce01913d631647c71ecec9e9cb8",
)  # fmt: skip
CIFAR10_CHANNELS = Channels((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_CHANNELS = Channels((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDS = {"data_batch": 10_000, "test_batch": 10_000, "train": 50_000, "test": 10_000}  # in a file of that name


@dataset(
    "cifar10",
    reference="Krizhevsky 2009, Learning multiple layers of features from tiny images",
    download="170 MB",
    licence="none stated; cite Krizhevsky 2009",
)
def cifar10(
    *, n_train: int = 50_000, n_test: int = 10_000, normalize: bool = True, seed: int = 0, root: str = ""
) -> Dataset:
    """CIFAR-10: 50,000 colour photographs of 32 x 32 pixels to train on, 10,000 to test, 10 classes.

    Downloads cifar-10-binary.tar.gz unless it, or the folder cifar-10-batches-bin, is there. Held as float32, the whole
    takes 740 MB, and twice that while it is loaded.

    Parameters
    ----------
    n_train, n_test : int
        Images to keep of each split, classes in proportion.
    normalize : bool, default True
        Channels shifted and scaled by the training set's mean and standard deviation; otherwise values in [0, 1].
    seed : int, default 0
        Draws which are kept, if not all.
    root : str, optional
        Folder of data sets, by default ``$ZOARIUM_DATA`` or the user's cache. It is no part of the name.

    Returns
    -------
    Dataset
        Inputs (3, 32, 32).

    Raises
    ------
    DataError
        If the archive is not there and cannot be downloaded, or is not the published one.
    """
    files = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    contents = _contents("cifar10", CIFAR10, "cifar-10-batches-bin", {name: _size(name, 1) for name in files}, root)
    parts = [_records("cifar10", name, contents[name], labels=1, classes=10) for name in files]
    train = torch.cat([images for images, _ in parts[:5]]), torch.cat([labels for _, labels in parts[:5]])
    return image_task(
        "cifar10", train, parts[5], CIFAR10_CLASSES, CIFAR10_CHANNELS, n_train=n_train, n_test=n_test,
        normalize=normalize, seed=seed,
    )  # fmt: skip


@dataset(
    "cifar100",
    reference="Krizhevsky 2009, Learning multiple layers of features from tiny images",
    download="169 MB",
    licence="none stated; cite Krizhevsky 2009",
)
def cifar100(
    *, n_train: int = 50_000, n_test: int = 10_000, normalize: bool = True, seed: int = 0, root: str = ""
) -> Dataset:
    """CIFAR-100: 50,000 colour photographs of 32 x 32 pixels to train on, 10,000 to test, 100 (fine) classes.

    Downloads cifar-100-binary.tar.gz unless it, or the folder cifar-100-binary, is there. Held as float32, the whole
    takes 740 MB, and twice that while it is loaded.

    Parameters
    ----------
    n_train, n_test : int
        Images to keep of each split, classes in proportion.
    normalize : bool, default True
        Channels shifted and scaled by the training set's mean and standard deviation; otherwise values in [0, 1].
    seed : int, default 0
        Draws which are kept, if not all.
    root : str, optional
        Folder of data sets, by default ``$ZOARIUM_DATA`` or the user's cache. It is no part of the name.

    Returns
    -------
    Dataset
        Inputs (3, 32, 32).

    Raises
    ------
    DataError
        If the archive is not there and cannot be downloaded, or is not the published one.
    """
    names, files = "fine_label_names.txt", ("train.bin", "test.bin")
    sizes = {**{name: _size(name, 2) for name in files}, names: 10_000}
    contents = _contents("cifar100", CIFAR100, "cifar-100-binary", sizes, root)
    train, test = (_records("cifar100", name, contents[name], labels=2, classes=100) for name in files)
    text = contents[names]
    classes = tuple(line.strip() for line in text.decode("ascii", "replace").splitlines() if line.strip())
    if len(classes) != 100:
        raise DataError(f"data 'cifar100': {names} must name 100 classes, found {len(classes)}; download it again.")
    return image_task(
        "cifar100", train, test, classes, CIFAR100_CHANNELS, n_train=n_train, n_test=n_test, normalize=normalize,
        seed=seed,
    )  # fmt: skip


def _size(name: str, labels: int) -> int:
    return (labels + PIXELS) * RECORDS[name.removesuffix(".bin").rstrip("_12345")]


def _records(data: str, name: str, content: bytes, *, labels: int, classes: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and (fine) labels of a file."""
    length = labels + PIXELS
    if len(content) != _size(name, labels):
        raise DataError(
            f"data {data!r}: {name} must have {_size(name, labels):,} bytes, records of {length:,}, found "
            f"{len(content):,}{' or more' if len(content) > _size(name, labels) else ''}; download it again."
        )
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, length).copy())
    label = records[:, labels - 1]
    if int(label.max()) >= classes:
        row = int((label >= classes).nonzero()[0])
        raise DataError(
            f"data {data!r}: record {row} of {name} has label {int(label[row])}, but there are {classes} classes; "
            "download it again."
        )
    return records[:, labels:].reshape(-1, 3, 32, 32), label


def _contents(data: str, archive: Published, folder: str, sizes: dict[str, int], root: str) -> dict[str, bytes]:
    """Files by name, in order: of an unpacked folder if there is one, otherwise of the archive."""
    for base in folders(data, root):
        for unpacked in (base / folder, base):
            if all((unpacked / name).is_file() for name in sizes):
                return {name: _bounded(unpacked / name, limit) for name, limit in sizes.items()}
    path = published(archive, data, root)
    found = read_tar(path, {f"{folder}/{name}": limit for name, limit in sizes.items()})
    return {name: found[f"{folder}/{name}"] for name in sizes}


def _bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)
