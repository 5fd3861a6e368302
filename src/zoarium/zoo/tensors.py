"""The tensors of one model of a zoo, one at a time, wherever they lie: in the zoo's own weights or in foreign files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import DamagedError, StoreError, unknown_name
from zoarium.zoo.foreign.facts import tensor_bytes
from zoarium.zoo.foreign.model import ForeignModel, TensorInfo
from zoarium.zoo.foreign.reference import is_reference, open_reference
from zoarium.zoo.foreign.safetensors_reader import read_safetensors
from zoarium.zoo.foreign.source import SourceFile, faults_named

if TYPE_CHECKING:
    from torch import Tensor

    from zoarium.zoo.store import Store

KEPT = 64  # headers of weights files held


def stored_tensors(store: Store, row: Mapping[str, Any]) -> Mapping[str, TensorInfo]:
    """Type and shape of every tensor of a checkpoint, given as a row of ``checkpoints``; nothing is read but a header.

    Raises
    ------
    StoreError
        If a foreign file is not there.
    DamagedError
        If a file is not what was written or added.
    """
    if is_reference(row["file"]):
        return open_reference(store, row).tensors
    return {
        name: TensorInfo(info.dtype, info.shape[1:], info.stored)
        for name, info in _header(store, row["file"]).tensors.items()
    }


def stored_tensor(store: Store, row: Mapping[str, Any], name: str) -> Tensor:
    """One tensor of a checkpoint; the checkpoint is verified before its first one is handed out.

    Raises
    ------
    StoreError
        For a name the model does not have.
    DamagedError
        If the weights are not what was written or added.
    """
    known = stored_tensors(store, row)
    if name not in known:
        raise StoreError(f"model {row['id']!r}: " + unknown_name("tensor", name, sorted(known)[:20]))
    if is_reference(row["file"]):
        return open_reference(store, row).tensor(name)
    _verify_row(store, row, known)
    return _slice(store, row, name)


def _header(store: Store, file: str) -> ForeignModel:
    """The whole weights file, its header read."""
    path = store.verified_path(file)
    kept: dict[str, ForeignModel] = store.attached.setdefault("headers", {})
    stamp = SourceFile(path).stamp
    if file not in kept or kept[file].sources[0].stamp != stamp:
        with faults_named(path, "safetensors"):
            opened = read_safetensors(SourceFile(path))
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[file] = opened
    return kept[file]


def _slice(store: Store, row: Mapping[str, Any], name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    path, n = store.verified_path(row["file"]), row["row"]
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name)[n : n + 1][0]
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}.") from error


def _verify_row(store: Store, row: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Compare a row with its digest, a tensor at a time; once for a file nobody has written to since."""
    done: dict[Any, Any] = store.attached.setdefault("verified_rows", {})
    key, stamp = (row["file"], row["row"], row["digest"]), _header(store, row["file"]).sources[0].stamp
    if done.get(key) == stamp:
        return
    facts = [[name, tensors[name].dtype, list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.blake2b(json.dumps(facts, separators=(",", ":")).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(tensor_bytes(_slice(store, row, name)))
    if digest.hexdigest() != row["digest"]:
        raise DamagedError(
            f"{store.root / row['file']}: the weights of model {row['id']!r} at epoch {row['epoch']} are not what was "
            f"written (row {row['row']}); restore the file from a copy, or set the model aside with: "
            f"zoarium check {store.root} --repair."
        )
    done[key] = stamp
