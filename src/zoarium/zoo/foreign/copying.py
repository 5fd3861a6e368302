"""Write a foreign model into a zoo's weights, one tensor at a time: memory for the largest tensor, types kept."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from zoarium._core.errors import StoreError
from zoarium._core.files import write_error
from zoarium.zoo.foreign.facts import tensor_bytes
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.safetensors_reader import DTYPES
from zoarium.zoo.foreign.source import ITEM_BYTES, shown
from zoarium.zoo.manifest import FileInfo
from zoarium.zoo.weights import WeightsFile, free_name

STORED = {torch: name for name, torch in DTYPES.items()}


def check_storable(model: ForeignModel) -> None:
    """Refuse a model with a type of number that safetensors lacks."""
    for tensor, info in model.tensors.items():
        if info.dtype not in STORED:
            raise StoreError(
                f"{model.sources[0].path}: tensor {shown(tensor)} is {info.dtype}, which safetensors cannot hold; add "
                "the model without copying it."
            )


def copy_weights(
    folder: Path, name: str, epoch: int, step: int, id: str, model: ForeignModel, digest: str
) -> WeightsFile:
    """Write `model` as a weights file of one row; see :func:`zoarium.zoo.weights.write_weights`.

    Parameters
    ----------
    folder : Path
        The zoo.
    name : str
        What to call the file.
    epoch, step : int
        The moment of training.
    id : str
        The model's id.
    model : ForeignModel
        Where tensors are read from.
    digest : str
        Of its content, as :func:`content_digest` gives it; a copy that went wrong is found by it when it is read.

    Raises
    ------
    StoreError
        For a type of number that safetensors lacks, or a disk that cannot be written.
    """
    check_storable(model)
    # the widest numbers first, so that every tensor begins at a multiple of its own item
    names = sorted(model.tensors, key=lambda n: (-ITEM_BYTES[model.tensors[n].dtype], n))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in names:
        info = model.tensors[tensor]
        end = at + info.nbytes
        header[tensor] = {"dtype": STORED[info.dtype], "shape": [1, *info.shape], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text

    temporary = folder / "weights" / f".{name}@{epoch}.{os.getpid()}.tmp"
    sha = hashlib.sha256(head)
    try:
        temporary.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            file.write(head)
            for tensor in names:
                content = tensor_bytes(model.tensor(tensor))
                sha.update(content)
                file.write(content)
        info = FileInfo(size=len(head) + at, sha256=sha.hexdigest(), rows=1, row_bytes=at)
        relative = free_name(folder, name, epoch, info)
        if (folder / relative).exists():  # the same bytes, left there by a run that was killed
            temporary.unlink()
        else:
            os.replace(temporary, folder / relative)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(folder / "weights" / f"{name}@{epoch}.safetensors", error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return WeightsFile(relative, info, (id,), (digest,), epoch, (step,))
