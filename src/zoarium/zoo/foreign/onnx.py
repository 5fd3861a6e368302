"""ONNX: the initialisers and constants of a graph, by a reader of just the fields that hold them.

A protobuf message is a row of fields, each a number, a wire type and a value; unknown ones are skipped. Field numbers
are those of ``onnx.proto``. The graph is never run or built. Constants inside branches of the graph and in the model's
functions are found too. Sparse tensors are read dense; numbers of 2 and 4 bits as int8, uint8 or float32.

Values are those of the file. An exporter may have changed them: LSTM weights are (1, 4 h, in) with the gates in the
order i, o, f, c where torch has i, f, g, o, and matrices of linear layers may be transposed.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
# Numbers of less than a byte, lowest bits first: what they are read as, how they are called, their bits.
PACKED = {
    21: ("uint8", "uint4", 4), 22: ("int8", "int4", 4), 23: ("float32", "float4e2m1", 4), 25: ("uint8", "uint2", 2),
    26: ("int8", "int2", 2),
}  # fmt: skip
FLOAT4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)
STRING, EXTERNAL = 8, 1
INT64 = 7
MAX_DEPTH = 32  # of graphs in graphs
LEAST = 32  # bytes of a file for each tensor in it; a constant with its node takes more
MAX_DENSE, FREE = 64, 64 << 20  # bytes of a sparse tensor once dense, for each of its file, and for any file
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


@dataclass(slots=True)
class _Tensor:
    """Where one TensorProto lies and what it says of itself."""

    start: int
    end: int
    dims: tuple[int, ...] = ()
    kind: int = 0
    name: str = ""
    raw: tuple[int, int] | None = None
    external: dict[str, str] | None = None
    outside: bool = False
    indices: _Tensor | None = None  # of a sparse tensor, whose `dims` are then those of the dense one

    @property
    def info(self) -> TensorInfo:
        """Type as read; the shape is not checked yet."""
        dtype, stored, _ = PACKED.get(self.kind) or (DTYPES[self.kind], DTYPES[self.kind], 0)
        return TensorInfo(dtype, self.dims, f"sparse {stored}" if self.indices else stored)

    def nbytes(self, numel: int) -> int:
        """Bytes that `numel` numbers take in the file."""
        if self.kind in PACKED:
            return -(-numel * PACKED[self.kind][2] // 8)
        return numel * ITEM_BYTES[DTYPES[self.kind]]


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _read_tensor(fields: _Fields, start: int, end: int) -> _Tensor:
    found = _Tensor(start, end)
    for number, wire, value, length in fields.walk(start, end):
        if number == 1:
            found.dims += _dims(fields, found.dims, wire, value, length)
        elif number == 2 and wire == 0:
            found.kind = value
        elif number == 8 and wire == 2:
            found.name = fields.text(value, length)
        elif number == 9 and wire == 2:
            found.raw = (value, length)
        elif number == 13 and wire == 2:
            pair = {n: fields.text(v, size) for n, w, v, size in fields.walk(value, value + length) if w == 2}
            found.external = (found.external or {}) | {pair.get(1, "")[:64]: pair.get(2, "")}
            if len(found.external) > MAX_DIMS:
                raise DamagedError(f"{fields.source.path}: a tensor says too much of its place; {AGAIN}.")
        elif number == 14 and wire == 0:
            found.outside = value == EXTERNAL
    if found.kind not in DTYPES and found.kind not in PACKED and found.kind != STRING:
        raise StoreError(
            f"{fields.source.path}: tensor {shown(found.name)} is of ONNX type {found.kind}, which torch does not have."
        )
    return found


def _dims(fields: _Fields, so_far: tuple[int, ...], wire: int, value: int, length: int) -> tuple[int, ...]:
    if len(so_far) > MAX_DIMS or length > 10 * MAX_DIMS:
        raise DamagedError(f"{fields.source.path}: a tensor claims more than {MAX_DIMS} axes; {AGAIN}.")
    return tuple(_signed(v) for v in ([value] if wire == 0 else fields.varints(value, length)))


def _read_sparse(fields: _Fields, start: int, end: int) -> _Tensor:
    """A SparseTensorProto: values (1), indices (2), dims (3)."""
    parts: dict[int, _Tensor] = {}
    dims: tuple[int, ...] = ()
    for number, wire, value, length in fields.walk(start, end):
        if number in (1, 2) and wire == 2:
            parts[number] = _read_tensor(fields, value, value + length)
        elif number == 3:
            dims += _dims(fields, dims, wire, value, length)
    if 1 not in parts or 2 not in parts or parts[2].kind != INT64 or parts[1].kind in (*PACKED, STRING):
        raise DamagedError(f"{fields.source.path}: a sparse tensor lacks values or indices of int64; {AGAIN}.")
    values, indices = parts[1], parts[2]
    indices.name = values.name
    values.indices, values.dims = indices, dims
    return values


def _node(fields: _Fields, start: int, end: int, depth: int, found: _Found) -> None:
    """Tensors in the attributes (5) of a node: t = 5, g = 6, tensors = 10, graphs = 11, sparse = 22 and 23."""
    output = ""
    held: list[_Tensor] = []
    for part, kind, place, size in fields.walk(start, end):
        if part == 2 and kind == 2 and not output:
            output = fields.text(place, size)
        elif part == 5 and kind == 2:
            for inner, w, spot, extent in fields.walk(place, place + size):
                if inner in (5, 10) and w == 2:
                    held.append(found.add(_read_tensor(fields, spot, spot + extent)))
                elif inner in (22, 23) and w == 2:
                    held.append(found.add(_read_sparse(fields, spot, spot + extent)))
                elif inner in (6, 11) and w == 2:
                    _graph(fields, spot, spot + extent, depth + 1, found)
    for tensor in held:
        tensor.name = output or tensor.name


def _graph(fields: _Fields, start: int, end: int, depth: int, found: _Found) -> None:
    """Collect initialisers (5, sparse 15) and what the nodes (1) hold."""
    if depth > MAX_DEPTH:
        raise DamagedError(f"{fields.source.path}: its graphs nest more than {MAX_DEPTH} deep; {AGAIN}.")
    for number, wire, at, length in fields.walk(start, end):
        if number == 5 and wire == 2:
            found.add(_read_tensor(fields, at, at + length))
        elif number == 15 and wire == 2:
            found.add(_read_sparse(fields, at, at + length))
        elif number == 1 and wire == 2:
            _node(fields, at, at + length, depth, found)


class _Found:
    """The tensors met so far; no more than a file of this size can name."""

    def __init__(self, source: SourceFile):
        self.path, self.limit = source.path, min(MAX_TENSORS, source.size // LEAST + 1000)
        self.tensors: list[_Tensor] = []

    def add(self, tensor: _Tensor) -> _Tensor:
        self.tensors.append(tensor)
        if len(self.tensors) > self.limit:
            raise DamagedError(
                f"{self.path}: its graph names more than {self.limit} tensors, too many for its size; split the file."
            )
        return tensor


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
    found = _Found(source)
    with source.open() as file:
        fields = _Fields(source, file)
        for number, wire, value, length in fields.walk(0, source.size):
            if number == 1 and wire == 0:
                facts["ir_version"] = value
            elif number == 2 and wire == 2:
                facts["producer"] = fields.text(value, length, 200)
            elif number == 7 and wire == 2:
                _graph(fields, value, value + length, 0, found)
            elif number == 25 and wire == 2:  # functions
                for part, kind, at, size in fields.walk(value, value + length):
                    if part == 7 and kind == 2:
                        _node(fields, at, at + size, 1, found)
    tensors: dict[str, TensorInfo] = {}
    held: dict[str, _Tensor] = {}
    places: dict[int, tuple[SourceFile | None, int]] = {}  # by the start of the TensorProto
    sources = {path.name: source}
    times: Counter[str] = Counter()
    skipped = 0
    for tensor in found.tensors:
        if tensor.kind == STRING:
            skipped += 1
            continue
        times[tensor.name] += 1
        name = tensor.name if times[tensor.name] == 1 else f"{tensor.name}~{times[tensor.name]}"
        check_name(path, name)
        check_shape(path, name, tensor.dims)
        if tensor.indices:
            _check_sparse(path, source, tensor, name)
            places[tensor.indices.start] = _place(source, tensor.indices, name, sources, tensor.indices.dims)
        places[tensor.start] = _place(source, tensor, name, sources, _stored_shape(tensor))
        tensors[name], held[name] = tensor.info, tensor
    if not tensors:
        raise StoreError(f"{path} holds no initialisers that can be read as ONNX; {AGAIN}, or check that it is ONNX.")
    if skipped:
        facts["left_out"] = {"tensors of text": skipped}

    def content(tensor: _Tensor, name: str, numel: int) -> bytearray:
        file, offset = places[tensor.start]
        size = tensor.nbytes(numel)
        return file.read(offset, size, shown(name)) if file else _listed(source, tensor, name, size)

    def load(name: str) -> Tensor:
        tensor = held[name]
        flat = _numbers(tensor, content(tensor, name, count(_stored_shape(tensor))), count(_stored_shape(tensor)))
        if tensor.indices:
            places_of = to_tensor(
                content(tensor.indices, name, count(tensor.indices.dims)), "int64", tensor.indices.dims
            )
            flat = _dense(path, name, flat, places_of, tensor.dims)
        return flat.reshape(tensor.dims)

    def load_part(name: str, start: int, stop: int) -> Tensor | None:
        tensor = held[name]
        file, offset = places[tensor.start]
        if file is None or tensor.indices or tensor.kind in PACKED:
            return None
        item = ITEM_BYTES[tensors[name].dtype]
        part = file.read(offset + start * item, (stop - start) * item, shown(name))
        return to_tensor(part, tensors[name].dtype, (stop - start,))

    return ForeignModel(path.name, "onnx", tuple(sources.values()), tensors, load, facts, load_part)


def _stored_shape(tensor: _Tensor) -> tuple[int, ...]:
    """Shape of the numbers in the file: those of a sparse tensor are one an index."""
    return tensor.indices.dims[:1] if tensor.indices else tensor.dims


def _check_sparse(path: Path, source: SourceFile, tensor: _Tensor, name: str) -> None:
    assert tensor.indices is not None
    shape = tensor.indices.dims
    check_shape(path, name, shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != len(tensor.dims)):
        raise DamagedError(f"{path}: sparse tensor {shown(name)} has indices of shape {shape}; {AGAIN}.")
    if tensor.info.nbytes > MAX_DENSE * source.size + FREE:
        raise StoreError(
            f"{path}: sparse tensor {shown(name)} of shape {tensor.dims} would take {tensor.info.nbytes} bytes, more "
            f"than {MAX_DENSE} times its file; save it dense if it is meant so."
        )


def _numbers(tensor: _Tensor, content: bytearray, numel: int) -> Tensor:
    """Bytes of the file as a flat tensor."""
    if tensor.kind not in PACKED:
        return to_tensor(content, DTYPES[tensor.kind], (numel,))
    import torch

    dtype, _, bits = PACKED[tensor.kind]
    packed = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    flat = torch.stack(parts, 1).flatten()[:numel]
    if dtype == "float32":
        return torch.tensor(FLOAT4, dtype=torch.float32)[flat.long()]
    if dtype == "int8":  # two's complement of so many bits
        flat = flat.to(torch.int8)
        return torch.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat)
    return flat.clone()


def _dense(path: Path, name: str, values: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    import torch

    if indices.dim() == 2:
        sizes = torch.tensor(shape, dtype=torch.int64)
        inside = bool(((indices >= 0) & (indices < sizes)).all())
        steps = [count(shape[axis + 1 :]) for axis in range(len(shape))]
        indices = (indices * torch.tensor(steps, dtype=torch.int64)).sum(1)
    else:
        inside = bool(((indices >= 0) & (indices < count(shape))).all())
    if not inside:
        raise DamagedError(f"{path}: sparse tensor {shown(name)} has indices outside its shape {shape}; {AGAIN}.")
    dense = torch.zeros(count(shape), dtype=values.dtype)
    dense[indices] = values
    return dense


def _place(
    source: SourceFile, tensor: _Tensor, name: str, sources: dict[str, SourceFile], shape: tuple[int, ...]
) -> tuple[SourceFile | None, int]:
    """The file and offset of a tensor's bytes, or no file where it is a list of numbers."""
    path, size = source.path, tensor.nbytes(count(shape))
    if tensor.outside:
        told = tensor.external or {}
        location = told.get("location", "")
        offset, length = told.get("offset", "0"), told.get("length", str(size))
        if not (offset.isascii() and offset.isdigit() and len(offset) < 20) or length != str(size):
            raise DamagedError(
                f"{path}: tensor {shown(name)} lies at {shown(offset)} for {shown(length)} bytes; {AGAIN}."
            )
        other = sources.get(location) or SourceFile(beside(path, location))
        sources[location] = other
        if int(offset) + size > other.size:
            raise DamagedError(
                f"{path}: tensor {shown(name)} reaches beyond {other.path} of {other.size} bytes; {AGAIN}."
            )
        return other, int(offset)
    if tensor.raw is not None:
        if tensor.raw[1] != size:
            raise DamagedError(
                f"{path}: tensor {shown(name)} of shape {shape} needs {size} bytes and has {tensor.raw[1]}; {AGAIN}."
            )
        return source, tensor.raw[0]
    if size and size > 8 * (tensor.end - tensor.start):  # each number in a list takes a byte at least
        raise DamagedError(f"{path}: tensor {shown(name)} claims the shape {shape} without the numbers; {AGAIN}.")
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


def _listed(source: SourceFile, tensor: _Tensor, name: str, size: int) -> bytearray:
    """The bytes of a tensor written as a list of numbers, packed or one by one."""
    out = bytearray()
    item = 1 if tensor.kind in PACKED else ITEM_BYTES[DTYPES[tensor.kind]]
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
    if len(out) != size:
        raise DamagedError(
            f"{source.path}: tensor {shown(name)} of shape {tensor.dims} lists {len(out)} bytes of numbers; {AGAIN}."
        )
    return out
