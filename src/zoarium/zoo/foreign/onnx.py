"""ONNX: the initialisers and constants of a graph, by a reader of just the fields that hold them.

A protobuf message is a row of fields, each a number, a wire type and a value; unknown ones are skipped. Field numbers
are those of ``onnx.proto``. The graph is never run or built. Constants inside branches of the graph are found too.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.model import ForeignModel, TensorInfo
from zoarium.zoo.foreign.source import (
    AGAIN,
    ITEM_BYTES,
    MAX_DIMS,
    MAX_TENSORS,
    SourceFile,
    check_name,
    check_shape,
    count,
    shown,
    to_tensor,
)

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
STRING, EXTERNAL = 8, 1
MAX_DEPTH = 32  # of graphs in graphs
FLOATS, INTEGERS = (4, 10), (5, 7, 11)  # float_data, double_data; int32_data, int64_data, uint64_data


class _Fields:
    """Walks the fields of a message between two offsets of an open file."""

    def __init__(self, source: SourceFile, file: Any):
        self.source, self.file = source, file

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            (byte,) = self.file.read(1)
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value & (2**64 - 1), at
        raise DamagedError(f"{self.source.path}: a number at byte {at} has no end; {AGAIN}.")

    def walk(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field, wire type, value or offset, length) of each field."""
        at = start
        while at < end:
            self.file.seek(at)
            tag, at = self._varint(at, end)
            kind, value, length = tag & 7, at, 0
            if kind == 0:
                value, at = self._varint(at, end)
            elif kind == 2:
                length, at = self._varint(at, end)
                value = at
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise DamagedError(f"{self.source.path}: wire type {kind} at byte {at} is none of protobuf's; {AGAIN}.")
            at += length
            if at > end:
                raise DamagedError(
                    f"{self.source.path}: a field at byte {value} claims {length} bytes, {at - end} more than its "
                    f"message has; {AGAIN}."
                )
            yield tag >> 3, kind, value, length

    def text(self, at: int, length: int, limit: int = 4096) -> str:
        self.file.seek(at)
        return self.file.read(min(length, limit)).decode("utf-8", "replace")

    def varints(self, at: int, length: int) -> Iterator[int]:
        """The numbers of a packed field."""
        self.file.seek(at)
        end = at + length
        while at < end:
            value, at = self._varint(at, end)
            yield value


@dataclass
class _Tensor:
    """Where one TensorProto lies and what it says of itself."""

    start: int
    end: int
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    name: str = ""
    raw: tuple[int, int] | None = None
    external: dict[str, str] = field(default_factory=dict)
    outside: bool = False


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _read_tensor(fields: _Fields, start: int, end: int) -> _Tensor:
    found = _Tensor(start, end)
    for number, wire, value, length in fields.walk(start, end):
        if number == 1:
            if len(found.dims) > MAX_DIMS or length > 10 * MAX_DIMS:
                raise DamagedError(f"{fields.source.path}: a tensor claims more than {MAX_DIMS} axes; {AGAIN}.")
            found.dims += [_signed(v) for v in ([value] if wire == 0 else fields.varints(value, length))]
        elif number == 2 and wire == 0:
            found.kind = value
        elif number == 8 and wire == 2:
            found.name = fields.text(value, length)
        elif number == 9 and wire == 2:
            found.raw = (value, length)
        elif number == 13 and wire == 2:
            pair = {n: fields.text(v, size) for n, w, v, size in fields.walk(value, value + length) if w == 2}
            found.external[pair.get(1, "")[:64]] = pair.get(2, "")
        elif number == 14 and wire == 0:
            found.outside = value == EXTERNAL
    return found


def _graph(fields: _Fields, start: int, end: int, depth: int, found: list[_Tensor]) -> None:
    """Collect initialisers (5) and, in nodes (1), tensors of attributes (5: t = 5, g = 6, graphs = 11)."""
    path = fields.source.path
    if depth > MAX_DEPTH:
        raise DamagedError(f"{path}: its graphs nest more than {MAX_DEPTH} deep; {AGAIN}.")
    for number, wire, at, length in fields.walk(start, end):
        if number == 5 and wire == 2:
            found.append(_read_tensor(fields, at, at + length))
        elif number == 1 and wire == 2:
            outputs: list[str] = []
            held: list[_Tensor] = []
            for part, kind, place, size in fields.walk(at, at + length):
                if part == 2 and kind == 2 and not outputs:
                    outputs.append(fields.text(place, size))
                elif part == 5 and kind == 2:
                    for inner, w, spot, extent in fields.walk(place, place + size):
                        if inner == 5 and w == 2:
                            held.append(_read_tensor(fields, spot, spot + extent))
                        elif inner in (6, 11) and w == 2:
                            _graph(fields, spot, spot + extent, depth + 1, found)
            for tensor in held:
                tensor.name = outputs[0] if outputs else tensor.name
            found += held
        if len(found) > MAX_TENSORS:
            raise DamagedError(f"{path}: its graph names more than {MAX_TENSORS} tensors; split the file.")


def read_onnx(source: SourceFile) -> ForeignModel:
    """The initialisers and constant tensors of an ONNX file, also where their bytes lie in files beside it.

    Raises
    ------
    DamagedError
        If fields, shapes or amounts of data do not fit each other or the file.
    StoreError
        For types torch does not have, or external data outside the folder.
    """
    path = source.path
    facts: dict[str, Any] = {}
    found: list[_Tensor] = []
    with source.open() as file:
        fields = _Fields(source, file)
        for number, wire, value, length in fields.walk(0, source.size):
            if number == 1 and wire == 0:
                facts["ir_version"] = value
            elif number == 2 and wire == 2:
                facts["producer"] = fields.text(value, length, 200)
            elif number == 7 and wire == 2:
                _graph(fields, value, value + length, 0, found)
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, tuple[_Tensor, SourceFile | None, int]] = {}
        sources = {path.name: source}
        times: Counter[str] = Counter()
        skipped = 0
        for tensor in found:
            if tensor.kind == STRING:
                skipped += 1
                continue
            times[tensor.name] += 1
            name = tensor.name if times[tensor.name] == 1 else f"{tensor.name}~{times[tensor.name]}"
            check_name(path, name)
            if tensor.kind not in DTYPES:
                raise StoreError(
                    f"{path}: tensor {shown(name)} is of ONNX type {tensor.kind}, which torch does not have."
                )
            info = TensorInfo(DTYPES[tensor.kind], check_shape(path, name, tensor.dims), DTYPES[tensor.kind])
            places[name] = (tensor, *_place(source, fields, tensor, name, info, sources))
            tensors[name] = info
    if not tensors:
        raise StoreError(f"{path} holds no initialisers that can be read as ONNX; {AGAIN}, or check that it is ONNX.")
    if skipped:
        facts["left_out"] = {"tensors of text": skipped}

    def load(name: str) -> Tensor:
        tensor, file, offset = places[name]
        info = tensors[name]
        content = file.read(offset, info.nbytes, shown(name)) if file else _listed(source, tensor, name, info)
        return to_tensor(content, info.dtype, info.shape)

    def load_part(name: str, start: int, stop: int) -> Tensor | None:
        _, file, offset = places[name]
        if file is None:  # a list of numbers
            return None
        item = ITEM_BYTES[tensors[name].dtype]
        return to_tensor(
            file.read(offset + start * item, (stop - start) * item, shown(name)), tensors[name].dtype, (stop - start,)
        )

    return ForeignModel(path.name, "onnx", tuple(sources.values()), tensors, load, facts, load_part)


def _place(
    source: SourceFile, fields: _Fields, tensor: _Tensor, name: str, info: TensorInfo, sources: dict[str, SourceFile]
) -> tuple[SourceFile | None, int]:
    """The file and offset of a tensor's bytes, or no file where it is a list of numbers."""
    path = source.path
    if tensor.outside:
        location = tensor.external.get("location", "")
        offset, length = tensor.external.get("offset", "0"), tensor.external.get("length", str(info.nbytes))
        if not (offset.isascii() and offset.isdigit() and len(offset) < 20) or length != str(info.nbytes):
            raise DamagedError(
                f"{path}: tensor {shown(name)} lies at {shown(offset)} for {shown(length)} bytes; {AGAIN}."
            )
        other = sources.get(location) or SourceFile(beside(path, location))
        sources[location] = other
        if int(offset) + info.nbytes > other.size:
            raise DamagedError(
                f"{path}: tensor {shown(name)} reaches beyond {other.path} of {other.size} bytes; {AGAIN}."
            )
        return other, int(offset)
    if tensor.raw is not None:
        if tensor.raw[1] != info.nbytes:
            raise DamagedError(
                f"{path}: tensor {shown(name)} of shape {info.shape} needs {info.nbytes} bytes and has "
                f"{tensor.raw[1]}; {AGAIN}."
            )
        return source, tensor.raw[0]
    if info.numel > tensor.end - tensor.start:  # each number in a list takes a byte at least
        raise DamagedError(f"{path}: tensor {shown(name)} claims the shape {info.shape} without the numbers; {AGAIN}.")
    return None, 0


def beside(path: Path, location: str) -> Path:
    """A file named by `path`, in its own folder or below and nowhere else.

    Raises
    ------
    StoreError
        If the name, or a link it stands for, leads elsewhere.
    """
    folder = path.parent.resolve()
    parts = PurePosixPath(location).parts
    plain = (
        parts and ".." not in parts and not location.startswith("/") and "\\" not in location and "\0" not in location
    )
    target = (folder / location).resolve() if plain and ":" not in location else None
    # a cache of the Hugging Face hub keeps files as links from snapshots/REVISION into its own folder of blobs
    homes = [folder]
    homes += [parent.parent / "blobs" for parent in (folder, *folder.parents) if parent.name == "snapshots"][:1]
    if target is None or not any(target.is_relative_to(home) for home in homes):
        raise StoreError(f"{path} refers to {shown(location)}, which is not in its own folder; move the file there.")
    return folder / location


def _listed(source: SourceFile, tensor: _Tensor, name: str, info: TensorInfo) -> bytearray:
    """The bytes of a tensor written as a list of numbers, packed or one by one."""
    out = bytearray()
    item = ITEM_BYTES[info.dtype]
    with source.open() as file:
        fields = _Fields(source, file)
        for number, wire, at, length in fields.walk(tensor.start, tensor.end):
            if number in FLOATS and wire in (1, 2, 5):
                file.seek(at)
                out += file.read(length)
            elif number in INTEGERS and wire in (0, 2):
                numbers = [at] if wire == 0 else fields.varints(at, length)
                for value in numbers:
                    out += struct.pack("<Q", value)[:item]
    if len(out) != count(info.shape) * item:
        raise DamagedError(
            f"{source.path}: tensor {shown(name)} of shape {info.shape} lists {len(out)} bytes of numbers; {AGAIN}."
        )
    return out
