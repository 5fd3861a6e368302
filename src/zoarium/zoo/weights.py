"""Weights of many models in one safetensors file: stacked tensors (n, *shape), one digest a model.

A model is read as a slice of each tensor and verified by its own digest, so reading one of a thousand neither reads nor
hashes the other 999.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoarium._core.digest import sha256_file
from zoarium._core.errors import DamagedError, StoreError
from zoarium._core.files import write_error
from zoarium.zoo.manifest import FILE_NAME, ORIGIN, FileInfo, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16 * 2**20  # bytes gathered at once for digests


@dataclass(frozen=True)
class WeightsFile:
    """A weights file that is written but not yet part of the zoo; small, and picklable between processes.

    Parameters
    ----------
    name : str
        Its name inside the zoo, ``weights/NAME@EPOCH.safetensors``.
    info : FileInfo
        Size, SHA-256, number of models and bytes of one model.
    ids, digests : tuple of str
        One a row.
    epoch : int
        The moment of training it holds.
    step : tuple of int
        Optimiser steps each model had taken by then.
    """

    name: str
    info: FileInfo
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    epoch: int
    step: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept beside an unfinished program."""
        return {**asdict(self), "info": self.info.model_dump()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> WeightsFile:
        """The inverse of :meth:`to_dict`."""
        lists = {key: tuple(content[key]) for key in ("ids", "digests", "step")}
        info = FileInfo.model_validate(content["info"])
        return cls(name=str(content["name"]), info=info, epoch=int(content["epoch"]), **lists)


@dataclass(frozen=True)
class PackedWeights:
    """A weights file in memory, on its way to a zoo that may lie on another machine; made by :func:`pack_weights`.

    Parameters
    ----------
    name : str
        What to call the file, usually the cohort.
    content : bytes
        All of it.
    """

    name: str
    content: bytes
    info: FileInfo
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    epoch: int
    step: tuple[int, ...]

    def write(self, folder: str | Path) -> WeightsFile:
        """Write it into the zoo in `folder`, as :func:`write_weights` does."""
        relative = free_name(Path(folder), self.name, self.epoch, self.info)
        path = Path(folder) / relative
        written = WeightsFile(relative, self.info, self.ids, self.digests, self.epoch, self.step)
        if path.exists():
            return written
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                file.write(self.content)
            os.replace(temporary, path)  # synced when it is committed: before that nothing refers to it
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise write_error(path, error) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return written


def row_digests(tensors: Mapping[str, Tensor]) -> list[str]:
    """BLAKE2b-128 of each model in stacked tensors (n, *shape).

    Hashes ``[["name","dtype",[shape of one model]],...]`` as compact JSON in the order of sorted names, then the bytes
    of the model's own tensors in that order.
    """
    import torch

    names = sorted(tensors)
    facts = [[k, str(tensors[k].dtype).removeprefix("torch."), list(tensors[k].shape[1:])] for k in names]
    base = hashlib.blake2b(json.dumps(facts, separators=(",", ":")).encode(), digest_size=16)
    n = len(tensors[names[0]])
    parts = [
        tensors[k].detach().cpu().contiguous().reshape(n, -1).view(torch.uint8).numpy()
        for k in names
        if tensors[k].numel()
    ]
    step = max(1, BLOCK // max(1, sum(part.shape[1] for part in parts)))
    digests: list[str] = []
    for start in range(0, n, step):
        block = np.concatenate([part[start : start + step] for part in parts], axis=1) if parts else []
        for row in range(min(step, n - start)):
            digest = base.copy()
            if len(block):
                digest.update(block[row])
            digests.append(digest.hexdigest())
    return digests


def write_weights(
    folder: str | Path,
    name: str,
    epoch: int,
    step: int | Sequence[int],
    ids: Sequence[str],
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
) -> WeightsFile:
    """Write stacked weights into the zoo in `folder`; they become part of it by `Transaction.add_weights_file`.

    A worker process may call this while its parent holds the zoo (inside ``zoo.growing()`` or ``zoo.writing()``).

    Parameters
    ----------
    folder : path
        The zoo.
    name : str
        What to call the file, usually the cohort; a name in use gets a suffix, no file is ever overwritten.
    epoch : int
        The moment of training.
    step : int or sequence of int
        Optimiser steps taken by then, one number or one a model.
    ids : sequence of str
        One a row.
    params, buffers : mapping of str to Tensor
        Stacked tensors, each (n, *shape), any dtype.

    Raises
    ------
    StoreError
        For tensors that do not have one row a model, or a disk that cannot be written.
    """
    return pack_weights(name, epoch, step, ids, params, buffers).write(folder)


def pack_weights(
    name: str,
    epoch: int,
    step: int | Sequence[int],
    ids: Sequence[str],
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
) -> PackedWeights:
    """The file that :func:`write_weights` writes, in memory."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in {**params, **(buffers or {})}.items():
        if value.ndim == 0 or len(value) != len(ids):
            raise StoreError(
                f"tensor {key!r} is {tuple(value.shape)} for {len(ids)} models; stack it to ({len(ids)}, ...)."
            )
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen:
            tensor = tensor.clone()  # safetensors refuses tensors that share memory
        seen.add(tensor.data_ptr())
        tensors[key] = tensor
    if not tensors or not len(ids):
        raise StoreError(f"no weights to write for {name!r}; give at least one model with one tensor.")

    steps = tuple(int(s) for s in np.broadcast_to(np.asarray(step), (len(ids),)))
    content = save(tensors, metadata={"format": "pt"})
    info = FileInfo(
        size=len(content), sha256=hashlib.sha256(content).hexdigest(), rows=len(ids),
        row_bytes=sum(t.nbytes for t in tensors.values()) // len(ids),
    )  # fmt: skip
    digests = tuple(row_digests(tensors))
    return PackedWeights(name, content, info, tuple(ids), digests, int(epoch), steps)


def free_name(folder: Path, name: str, epoch: int, info: FileInfo) -> str:
    """A name not in use, or in use by a file of the same bytes, as a killed run leaves to the one that resumes it."""
    tried = f"weights/{name}@{epoch}.safetensors"
    if not FILE_NAME.fullmatch(tried):
        raise StoreError(f"cannot name a weights file {name!r}; use letters, digits and any of _ . @ ~ + = -.")
    count = 1
    there = _on_hub(folder)
    while (path := folder / tried).exists() or tried in there:
        size = path.stat().st_size if path.exists() else there[tried].size
        if size == info.size and (sha256_file(path) if path.exists() else there[tried].sha256) == info.sha256:
            break
        count += 1
        tried = f"weights/{name}~{count}@{epoch}.safetensors"
    return tried


def _on_hub(folder: Path) -> Mapping[str, FileInfo]:
    """Files that a zoo pulled from the hub lists and may not hold yet: their names are in use too."""
    return read_manifest(folder).files if (folder / ORIGIN).is_file() else {}


def read_rows(path: Path, rows: Sequence[int]) -> dict[str, Tensor]:
    """Stacked tensors (len(rows), *shape) of some rows of a weights file; only those rows are read.

    Raises
    ------
    DamagedError
        If the file is not safetensors, or has no such row.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    order = sorted(set(rows))
    runs: list[list[int]] = []  # [first, last] of neighbouring rows: one read each
    for row in order:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    place = {row: n for n, row in enumerate(order)}
    index = None if list(rows) == order else torch.tensor([place[row] for row in rows])
    out: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(name)
                shape = part.get_shape()
                if not shape or order[0] < 0 or order[-1] >= shape[0]:
                    raise DamagedError(f"{path}: tensor {name!r} has no row {order[-1]}.")
                pieces = [part[first : last + 1] for first, last in runs]
                tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                out[name] = tensor if index is None else tensor[index]
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}.") from error
    return out
