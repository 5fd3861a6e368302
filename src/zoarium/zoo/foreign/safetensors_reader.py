"""Safetensors: eight bytes of header length, a JSON header, tensors side by side.

The header is read by our own code, since a zoo must say which tensor is wrong and why, and hold no file open.
Format: https://huggingface.co/docs/safetensors (no overlaps, no gaps, offsets relative to the end of the header).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.model import ForeignModel, TensorInfo
from zoarium.zoo.foreign.source import (
    AGAIN,
    ITEM_BYTES,
    MAX_JSON,
    SourceFile,
    check_apart,
    check_name,
    check_shape,
    count,
    parse_json,
    shown,
    to_tensor,
)

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


def read_safetensors(source: SourceFile) -> ForeignModel:
    """The model in one safetensors file; the header is read and checked, no tensor is.

    Raises
    ------
    DamagedError
        If lengths, offsets, shapes or types of the header do not fit each other or the file.
    StoreError
        For a type of number that torch does not have.
    """
    path = source.path
    length = int.from_bytes(source.read(0, 8, "the length of the header"), "little")
    if length > MAX_JSON or 8 + length > source.size:
        raise DamagedError(f"{path}: its header claims {length} bytes in a file of {source.size}; {AGAIN}.")
    header = parse_json(path, source.read(8, length), "its header")
    if not isinstance(header, dict):
        raise DamagedError(f"{path}: its header is not a table of tensors; {AGAIN}.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise DamagedError(f"{path}: its __metadata__ is not a table; {AGAIN}.")

    base = 8 + length
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, tuple[int, int]] = {}
    for name, entry in header.items():
        check_name(path, name)
        try:
            stored, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise DamagedError(f"{path}: tensor {shown(name)} lacks dtype, shape or data_offsets; {AGAIN}.") from error
        if not isinstance(stored, str) or not isinstance(shape, list) or {type(start), type(end)} != {int}:
            raise DamagedError(f"{path}: tensor {shown(name)} has no usable dtype, shape or offsets; {AGAIN}.")
        if stored not in DTYPES:
            raise StoreError(
                f"{path}: tensor {shown(name)} is of type {shown(stored)}; convert it to one of {', '.join(DTYPES)}."
            )
        sizes = check_shape(path, name, shape)
        needed = count(sizes) * ITEM_BYTES[DTYPES[stored]]
        if start < 0 or end - start != needed or base + end > source.size:
            raise DamagedError(
                f"{path}: tensor {shown(name)} of shape {sizes} needs {needed} bytes but claims {start} to {end} "
                f"of {source.size - base}; {AGAIN}."
            )
        tensors[name] = TensorInfo(DTYPES[stored], sizes, stored)
        places[name] = (base + start, needed)
    check_apart(path, [(start, start + size, name) for name, (start, size) in places.items()])
    held = sum(size for _, size in places.values())
    if held != source.size - base:
        raise DamagedError(
            f"{path}: its tensors take {held} bytes, but {source.size - base} follow the header; {AGAIN}."
        )

    def load(name: str) -> Tensor:
        start, size = places[name]
        info = tensors[name]
        return to_tensor(source.read(start, size, f"tensor {shown(name)}"), info.dtype, info.shape)

    def load_part(name: str, first: int, last: int) -> Tensor:
        item = ITEM_BYTES[tensors[name].dtype]
        content = source.read(places[name][0] + first * item, (last - first) * item, f"tensor {shown(name)}")
        return to_tensor(content, tensors[name].dtype, (last - first,))

    facts = {"header": metadata} if metadata else {}
    return ForeignModel(path.name, "safetensors", (source,), tensors, load, facts, load_part)
