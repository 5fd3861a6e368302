"""Data sets kept inside a zoo, so that models grown on a user's own arrays can be measured anywhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zoarium._core.errors import DamagedError
from zoarium._core.files import write_error
from zoarium.zoo.manifest import DataInfo, FileInfo

if TYPE_CHECKING:
    from zoarium.data.dataset import Dataset
    from zoarium.zoo.store import Store

PARTS = ("train.x", "train.y", "test.x", "test.y")


def data_file(fingerprint: str) -> str:
    """File of a stored data set."""
    return f"data/{fingerprint}.safetensors"


def write_data(store: Store, data: Dataset) -> tuple[str, FileInfo | None]:
    """Write a data set under its fingerprint, unless the zoo holds it already (then the info is None)."""
    from safetensors.torch import save

    file = data_file(data.fingerprint)
    if file in store.manifest.files:
        return file, None
    tensors = dict(zip(PARTS, (data.train.x, data.train.y, data.test.x, data.test.y), strict=True))
    content = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
    path = store.root / file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error
    return file, FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_data(path: Path, name: str, info: DataInfo) -> Dataset:
    """Read a stored data set; the caller compares its fingerprint."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from zoarium.data.dataset import Dataset, Split

    try:
        tensors = load_file(path)
        train_x, train_y, test_x, test_y = (tensors[part] for part in PARTS)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path} cannot be read as a stored data set: {str(error).splitlines()[0]}.") from error
    return Dataset(name, Split(train_x, train_y), Split(test_x, test_y), info.task, info.n_outputs, info.classes)
