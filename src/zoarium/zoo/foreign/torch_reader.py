"""Files of ``torch.save`` (zip archives since 1.6, a stream before) and TorchScript archives, without running them.

A zip holds ``NAME/data.pkl`` and one member a storage, ``NAME/data/KEY``; TorchScript adds ``constants.pkl`` with
``NAME/constants/KEY`` and source code, which is ignored. The older format is five pickles in a row (magic number,
version, machine, object, keys of storages), then for each key a count and its numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.archive import Archive
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.source import AGAIN, ITEM_BYTES, MAX_TENSORS, SourceFile, shown, to_tensor
from zoarium.zoo.foreign.torch_pickle import ReadSpan, TensorRef, TorchPickle, choose_weights, tensors_in

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE = 64 * 2**20  # a checkpoint of 400,000 tensors; objects may take 32 times as much (`MEMORY_FACTOR`)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _loader(refs: dict[str, TensorRef], places: Callable[[str], ReadSpan]) -> Callable[[str], Tensor]:
    def load(name: str) -> Tensor:
        ref = refs[name]
        start, length = ref.span
        return ref.view(places(name)(ref.storage.key, start, length))

    return load


def _part_loader(
    refs: dict[str, TensorRef], places: Callable[[str], ReadSpan | None]
) -> Callable[[str, int, int], Tensor | None]:
    """Ranges of tensors that lie in one piece in their storage; None for others."""

    def load_part(name: str, start: int, stop: int) -> Tensor | None:
        ref, read = refs[name], places(name)
        if not ref.contiguous or read is None:
            return None
        item = ITEM_BYTES[ref.dtype]
        content = read(ref.storage.key, (ref.offset + start) * item, (stop - start) * item)
        return to_tensor(content, ref.dtype, (stop - start,))

    return load_part


def read_torch_zip(source: SourceFile) -> ForeignModel:
    """The tensors of a zip that ``torch.save`` or ``torch.jit.save`` wrote.

    Raises
    ------
    DamagedError
        If members, pickles or sizes do not fit each other.
    StoreError
        If the archive is no such file, or was written on a big-endian machine.
    """
    archive = Archive(source)
    path = source.path
    roots = [name[: -len("data.pkl")] for name in archive.members if name.rpartition("/")[2] == "data.pkl"]
    roots = [root for root in roots if root.count("/") <= 1]
    if len(roots) != 1:
        raise StoreError(
            f"{path} is a zip archive with {len(roots)} members data.pkl, so not one of torch.save; "
            "unpack it and give the file of weights inside."
        )
    (root,) = roots
    order = (
        bytes(archive.read(root + "byteorder", 0, None)[:16]) if root + "byteorder" in archive.members else b"little"
    )
    if order.strip() != b"little":
        raise StoreError(f"{path} says its byte order is {shown(order)}; save it again on a little-endian machine.")

    script = root + "constants.pkl" in archive.members
    pickles = {"data": TorchPickle(path, source.size)}
    loaded = {"data": _load_pickle(archive, pickles["data"], root + "data.pkl")}
    if script:
        pickles["constants"] = TorchPickle(path, source.size)
        loaded["constants"] = _load_pickle(archive, pickles["constants"], root + "constants.pkl")
    for part, pickle in pickles.items():
        for key, storage in pickle.storages.items():
            member = archive.members.get(f"{root}{part}/{key}")
            if member is None or member.file_size != storage.nbytes:
                held = "nothing" if member is None else f"{member.file_size} bytes"
                raise DamagedError(
                    f"{path}: storage {shown(key)} should have {storage.nbytes} bytes and has {held}; {AGAIN}."
                )

    if script:
        refs, facts = tensors_in(path, loaded["data"]), {}
    else:
        refs, facts = choose_weights(path, loaded["data"])
    of = dict.fromkeys(refs, "data")
    for name, ref in tensors_in(path, loaded.get("constants", ())).items():
        refs[f"CONSTANTS.c{name}"], of[f"CONSTANTS.c{name}"] = ref, "constants"

    def place(name: str) -> ReadSpan:
        part = of[name]
        return lambda key, start, length: archive.read(f"{root}{part}/{key}", start, length)

    def place_of_part(name: str) -> ReadSpan | None:  # a deflated storage would be inflated for every part of it
        return place(name) if archive.is_stored(f"{root}{of[name]}/{refs[name].storage.key}") else None

    stubs = {k: v for pickle in pickles.values() for k, v in pickle.stubs.items()}
    kind = "torchscript" if script else "torch"
    return _model(source, kind, refs, _loader(refs, place), _part_loader(refs, place_of_part), facts, stubs)


def _load_pickle(archive: Archive, pickle: TorchPickle, member: str) -> Any:
    size = archive.members[member].file_size
    if size > MAX_PICKLE:
        raise DamagedError(
            f"{archive.source.path}: member {shown(member)} is a pickle of {size} bytes, more than {MAX_PICKLE}; "
            "save the weights as safetensors."
        )
    return pickle.load(io.BytesIO(archive.read(member)), size)


def _model(
    source: SourceFile,
    kind: str,
    refs: dict[str, TensorRef],
    load: Callable[[str], Tensor],
    load_part: Callable[[str, int, int], Tensor | None],
    facts: dict[str, Any],
    stubs: dict[str, int],
) -> ForeignModel:
    if not refs:
        seen = f" (it names {', '.join(sorted(stubs)[:5])})" if stubs else ""
        raise StoreError(f"{source.path} holds no tensor that can be read safely{seen}; save its state_dict().")
    if stubs:
        facts["stubs"] = stubs
    tensors = {k: ref.info for k, ref in refs.items()}
    return ForeignModel(source.path.name, kind, (source,), tensors, load, facts, load_part)


def read_torch_legacy(source: SourceFile) -> ForeignModel:
    """The tensors of a file that ``torch.save`` wrote before version 1.6.

    Raises
    ------
    DamagedError
        If its five pickles and its storages do not fit each other or the file.
    StoreError
        If it is another pickle than one of torch's.
    """
    path = source.path
    pickle = TorchPickle(path, source.size)
    with source.open() as file:

        def following() -> Any:
            return pickle.load(file, min(MAX_PICKLE, source.size - file.tell()))

        if (magic := following()) != LEGACY_MAGIC or type(magic) is not int:
            raise StoreError(f"{path} is a pickle, but not one of torch.save; save its tensors as safetensors.")
        _version, machine = following(), following()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise StoreError(f"{path} was not written on a little-endian machine; save it again on one.")
        root, keys = following(), following()
        if not isinstance(keys, list) or len(keys) > MAX_TENSORS or not all(isinstance(key, str) for key in keys):
            raise DamagedError(f"{path}: its list of storages is none; {AGAIN}.")
        places = _storage_places(path, source, file.tell(), keys, pickle)
    missing = sorted(set(pickle.storages) - set(places))
    if missing:
        raise DamagedError(f"{path}: storage {shown(missing[0])} is used but not in the file; {AGAIN}.")
    refs, facts = choose_weights(path, root)

    def span(key: str, start: int, length: int) -> bytearray:
        return source.read(places[key] + start, length, f"storage {shown(key)}")

    load, load_part = _loader(refs, lambda _: span), _part_loader(refs, lambda _: span)
    return _model(source, "torch-legacy", refs, load, load_part, facts, dict(pickle.stubs))


def _storage_places(path: Path, source: SourceFile, at: int, keys: list[str], pickle: TorchPickle) -> dict[str, int]:
    """Where each storage begins: after its count, one behind the other."""
    places: dict[str, int] = {}
    for key in keys:
        storage = pickle.storages.get(key)
        items = int.from_bytes(source.read(at, 8, f"storage {shown(key)}"), "little", signed=True)
        if storage is None or key in places or items != storage.items or at + 8 + storage.nbytes > source.size:
            told = "none" if storage is None else storage.items
            raise DamagedError(
                f"{path}: storage {shown(key)} holds {items} numbers where {told} are told, in a file of {source.size} "
                f"bytes; {AGAIN}."
            )
        places[key] = at + 8
        at += 8 + storage.nbytes
    return places
