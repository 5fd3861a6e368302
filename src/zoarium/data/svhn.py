"""Street View House Numbers, cropped digits.

Two MATLAB files (level 5, not HDF5) with `X` (32, 32, 3, N) bytes and `y` (N, 1), where 10 stands for the digit 0. They
are verified before they are read, and SciPy's reader builds arrays only: it has no way to call anything.
Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium.data.dataset import Dataset
from zoarium.data.download import Published, published
from zoarium.data.published import Channels, image_task
from zoarium.data.registry import dataset

TRAIN = Published(
    "http://ufldl.stanford.edu/housenumbers/train_32x32.mat", 182_040_794,
    "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8", "e26dedcc434d2e4c54c9b2d4a06d8373",
)  # fmt: skip
TEST = Published(
    "http://ufldl.stanford.edu/housenumbers/test_32x32.mat", 64_275_384,
    "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b", "eb5a983be6a315427106f1b164d9cef3",
)  # fmt: skip
CHANNELS = Channels((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


@dataset(
    "svhn",
    reference="Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning",
    download="246 MB",
    licence="non-commercial use only",
)
def svhn(
    *, n_train: int = 73_257, n_test: int = 26_032, normalize: bool = True, seed: int = 0, root: str = ""
) -> Dataset:
    """House numbers: 73,257 colour photographs of digits of 32 x 32 pixels to train on, 26,032 to test.

    Downloads train_32x32.mat and test_32x32.mat unless they are there. Held as float32, the whole takes 1.2 GB.

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
        Inputs (3, 32, 32), 10 classes.

    Raises
    ------
    DataError
        If a file is not there and cannot be downloaded, or is not the published one.
    """
    train, test = (_read(published(file, "svhn", root)) for file in (TRAIN, TEST))
    return image_task(
        "svhn", train, test, tuple("0123456789"), CHANNELS, n_train=n_train, n_test=n_test, normalize=normalize,
        seed=seed,
    )  # fmt: skip


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and digits."""
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            content = loadmat(path, appendmat=False, variable_names=["X", "y"])
        x, y = content["X"], content["y"]
    except Exception as error:  # SciPy raises many kinds for files that are no MATLAB files
        raise DataError(
            f"{path} cannot be read as a MATLAB file with X and y: {str(error) or type(error).__name__}."
        ) from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X must be bytes of shape (32, 32, 3, N), found {x.dtype} of shape {x.shape}.")
    n = x.shape[3]
    if y.dtype.kind not in "iu" or y.size != n or n == 0 or y.min() < 1 or y.max() > 10:
        raise DataError(f"{path}: y must hold {n} whole numbers from 1 to 10, found {y.dtype} of shape {y.shape}.")
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1)))
    return images, torch.from_numpy(y.astype(np.int64).ravel() % 10)
