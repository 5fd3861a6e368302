"""GGUF: typed keys and values, a table of tensors, blocks of quantised numbers.

Layouts of blocks follow the format of the ggml library (`ggml-common.h`); with scale d and minimum m in float16:

    Q4_0  d (q - 8)      Q4_1  d q + m      Q5_0  d (q - 16)      Q5_1  d q + m      Q8_0  d q       (32 numbers each)
    IQ4_NL  d v[q]       MXFP4  2^(e - 128) v[q]                                                      (32 numbers each)
    Q2_K, Q4_K, Q5_K  d s q - m t      Q3_K  d (s - 32) (q - 4)      Q6_K  d s (q - 32)
    IQ4_XS  d (s - 32) v[q]                                                                          (256 numbers each)

where s and t are small integer scales of sub-blocks, and v a table of 16 values. Everything is read as float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.model import ForeignModel, TensorInfo
from zoarium.zoo.foreign.source import (
    AGAIN,
    MAX_TENSORS,
    SourceFile,
    check_apart,
    check_name,
    check_shape,
    count,
    shown,
    to_tensor,
)

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray
PLAIN = {0: ("F32", "float32", 4), 1: ("F16", "float16", 2), 24: ("I8", "int8", 1), 25: ("I16", "int16", 2),
         26: ("I32", "int32", 4), 27: ("I64", "int64", 8), 28: ("F64", "float64", 8),
         30: ("BF16", "bfloat16", 2)}  # fmt: skip
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_KEYS, MAX_SHOWN, MAX_NESTING, MAX_TEXT = 100_000, 64, 4, 16 * 2**20
CHUNK = 2**20  # numbers dequantised at once


def _half(blocks: Array, at: int) -> Array:
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)  # (blocks, 1)


def _nibbles(q: Array) -> Array:
    return np.concatenate([q & 15, q >> 4], axis=1)


def _fifth_bits(blocks: Array, at: int) -> Array:
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q8_0(b: Array) -> Array:
    return _half(b, 0) * b[:, 2:34].view(np.int8)


def _q4_0(b: Array) -> Array:
    return _half(b, 0) * (_nibbles(b[:, 2:18]).astype(np.float32) - 8)


def _q4_1(b: Array) -> Array:
    return _half(b, 0) * _nibbles(b[:, 4:20]) + _half(b, 2)


def _q5_0(b: Array) -> Array:
    return _half(b, 0) * ((_nibbles(b[:, 6:22]) | _fifth_bits(b, 2)).astype(np.float32) - 16)


def _q5_1(b: Array) -> Array:
    return _half(b, 0) * (_nibbles(b[:, 8:24]) | _fifth_bits(b, 4)) + _half(b, 2)


def _scales_of_k(b: Array, at: int) -> tuple[Array, Array]:
    """Twelve bytes: eight 6-bit scales and eight 6-bit minima."""
    low, mid, high = b[:, at : at + 4], b[:, at + 4 : at + 8], b[:, at + 8 : at + 12]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    least = np.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=1)
    return _half(b, 0) * scale, _half(b, 2) * least  # (blocks, 8) each


def _nibbles_of_k(b: Array, at: int) -> Array:
    """128 bytes as 8 sub-blocks of 32: the low halves of 32 bytes, then their high halves."""
    q = b[:, at : at + 128].reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, 8, 32)


def _shifted(b: Array, shifts: tuple[int, ...]) -> Array:
    """Each run of 32 bytes shifted by each amount: (blocks, runs * shifts, 32)."""
    runs = b.reshape(len(b), -1, 1, 32)
    return np.concatenate([runs >> shift for shift in shifts], axis=2).reshape(len(b), -1, 32)


def _q2_k(b: Array) -> Array:
    scale, least = _half(b, 80) * (b[:, :16] & 15), _half(b, 82) * (b[:, :16] >> 4)  # (blocks, 16)
    q = (_shifted(b[:, 16:80], (0, 2, 4, 6)) & 3).reshape(-1, 16, 16)
    return (scale[:, :, None] * q - least[:, :, None]).reshape(-1, 256)


def _q3_k(b: Array) -> Array:
    low, high = b[:, 96:104], b[:, 104:108]  # sixteen 6-bit scales: nibbles, then pairs of bits
    low = np.concatenate([low & 15, low >> 4], axis=1)
    high = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = _half(b, 108) * ((low | high << 4).astype(np.float32) - 32)
    q = (_shifted(b[:, 32:96], (0, 2, 4, 6)) & 3) | (_shifted(b[:, :32], tuple(range(8))) & 1) << 2
    return (scale[:, :, None] * (q.reshape(-1, 16, 16).astype(np.float32) - 4)).reshape(-1, 256)


def _q4_k(b: Array) -> Array:
    scale, least = _scales_of_k(b, 4)
    return (scale[:, :, None] * _nibbles_of_k(b, 16) - least[:, :, None]).reshape(-1, 256)


def _q5_k(b: Array) -> Array:
    scale, least = _scales_of_k(b, 4)
    q = _nibbles_of_k(b, 48) | (_shifted(b[:, 16:48], tuple(range(8))) & 1) << 4
    return (scale[:, :, None] * q - least[:, :, None]).reshape(-1, 256)


def _q6_k(b: Array) -> Array:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    high = b[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 8, 32)
    high = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 8, 32)
    q = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scale = _half(b, 208) * b[:, 192:208].view(np.int8)
    return (scale[:, :, None] * q).reshape(-1, 256)


LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # twice its values


def _iq4_nl(b: Array) -> Array:
    return _half(b, 0) * LEVELS[_nibbles(b[:, 2:18])]


def _iq4_xs(b: Array) -> Array:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = np.stack([b[:, 2 + n // 4] >> 2 * (n % 4) & 3 for n in range(8)], axis=1)
    scale = _half(b, 0) * ((low | high << 4).astype(np.float32) - 32)  # (blocks, 8)
    q = b[:, 8:136].reshape(-1, 8, 16)
    return (scale[:, :, None] * LEVELS[np.concatenate([q & 15, q >> 4], axis=2)]).reshape(-1, 256)


def _mxfp4(b: Array) -> Array:
    return np.ldexp(FP4[_nibbles(b[:, 1:17])], b[:, :1].astype(np.int32) - 128)


BLOCKS: dict[int, tuple[str, int, int, Callable[[Array], Array]]] = {  # type: name, numbers, bytes, dequantise
    2: ("Q4_0", 32, 18, _q4_0), 3: ("Q4_1", 32, 20, _q4_1), 6: ("Q5_0", 32, 22, _q5_0), 7: ("Q5_1", 32, 24, _q5_1),
    8: ("Q8_0", 32, 34, _q8_0), 10: ("Q2_K", 256, 84, _q2_k), 11: ("Q3_K", 256, 110, _q3_k),
    12: ("Q4_K", 256, 144, _q4_k), 13: ("Q5_K", 256, 176, _q5_k), 14: ("Q6_K", 256, 210, _q6_k),
    20: ("IQ4_NL", 32, 18, _iq4_nl), 23: ("IQ4_XS", 256, 136, _iq4_xs), 39: ("MXFP4", 32, 17, _mxfp4),
}  # fmt: skip


class _Cursor:
    """Reads numbers and text from an open file, never past its end."""

    def __init__(self, source: SourceFile, file: Any):
        self.source, self.file, self.at = source, file, 0

    def take(self, length: int) -> bytes:
        if length > self.source.size - self.at:
            raise DamagedError(
                f"{self.source.path}: its header asks for {length} bytes at {self.at} of {self.source.size}; {AGAIN}."
            )
        content = self.file.read(length)
        self.at += length
        return content

    def skip(self, length: int) -> None:
        if length > self.source.size - self.at:
            raise DamagedError(f"{self.source.path}: a list in its header ends beyond the file; {AGAIN}.")
        self.at += length
        self.file.seek(self.at)

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_TEXT:
            raise DamagedError(f"{self.source.path}: its header holds a text of {length} bytes; {AGAIN}.")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """One value; a long array is followed to its end but kept as its first items."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth >= MAX_NESTING:
            raise DamagedError(f"{self.source.path}: its header holds a value of type {kind}; {AGAIN}.")
        inner, length = self.number("<I"), self.number("<Q")
        if length > self.source.size - self.at:  # any item takes a byte at least
            raise DamagedError(f"{self.source.path}: its header holds a list of {length} values; {AGAIN}.")
        kept = [self.value(inner, depth + 1) for _ in range(min(length, MAX_SHOWN))]
        if inner in SCALARS:
            self.skip((length - len(kept)) * struct.calcsize(SCALARS[inner]))
        else:
            for _ in range(length - len(kept)):
                self.value(inner, depth + 1)
        return kept if len(kept) == length else {"length": length, "first": kept}


def read_gguf(source: SourceFile) -> ForeignModel:
    """The tensors of one GGUF file (version 2 or 3); quantised ones are read as float32.

    Raises
    ------
    DamagedError
        If counts, sizes or offsets do not fit each other or the file.
    StoreError
        For another version, or a type of block not listed above.
    """
    path = source.path
    with source.open() as file:
        cursor = _Cursor(source, file)
        if cursor.take(4) != b"GGUF":
            raise DamagedError(f"{path} does not begin with GGUF; {AGAIN}.")
        version = cursor.number("<I")
        if version not in (2, 3):
            raise StoreError(f"{path} is GGUF of version {version}; convert it to version 3 (little-endian).")
        n_tensors, n_keys = cursor.number("<Q"), cursor.number("<Q")
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            raise DamagedError(f"{path}: its header claims {n_tensors} tensors and {n_keys} keys; {AGAIN}.")
        keys: dict[str, Any] = {}
        for _ in range(n_keys):
            name = cursor.text()
            keys[name[:200]] = cursor.value(cursor.number("<I"))
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, tuple[int, int, int]] = {}  # offset, bytes, type
        for _ in range(n_tensors):
            _entry(cursor, tensors, places)
        alignment = keys.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20:
            raise DamagedError(f"{path}: its alignment is {shown(alignment)}; {AGAIN}.")
        base = -(-cursor.at // alignment) * alignment
    for name, (offset, size, _) in places.items():
        if base + offset + size > source.size:
            raise DamagedError(
                f"{path}: tensor {shown(name)} of shape {tensors[name].shape} ends at byte {base + offset + size} of a "
                f"file of {source.size}; {AGAIN}."
            )
    check_apart(path, [(offset, offset + size, name) for name, (offset, size, _) in places.items()])

    def load(name: str) -> Tensor:
        offset, size, kind = places[name]
        if kind in PLAIN:
            content = source.read(base + offset, size, f"tensor {shown(name)}")
            return to_tensor(content, tensors[name].dtype, tensors[name].shape)
        flat = _dequantised(source, base + offset, kind, name, 0, tensors[name].numel)
        return flat.reshape(tensors[name].shape)

    def load_part(name: str, start: int, stop: int) -> Tensor:
        offset, _, kind = places[name]
        if kind not in PLAIN:
            return _dequantised(source, base + offset, kind, name, start, stop)
        item = PLAIN[kind][2]
        content = source.read(base + offset + start * item, (stop - start) * item, f"tensor {shown(name)}")
        return to_tensor(content, tensors[name].dtype, (stop - start,))

    return ForeignModel(path.name, "gguf", (source,), tensors, load, {"header": keys}, load_part)


def _entry(cursor: _Cursor, tensors: dict[str, TensorInfo], places: dict[str, tuple[int, int, int]]) -> None:
    path = cursor.source.path
    name = check_name(path, cursor.text())
    axes = cursor.number("<I")
    if axes > 8:
        raise DamagedError(f"{path}: tensor {shown(name)} claims {axes} axes; {AGAIN}.")
    shape = check_shape(path, name, [cursor.number("<Q") for _ in range(axes)][::-1])  # the fastest axis comes first
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if kind in PLAIN:
        stored, dtype, item = PLAIN[kind]
        size = count(shape) * item
    elif kind in BLOCKS:
        stored, numbers, nbytes, _ = BLOCKS[kind]
        dtype, row = "float32", shape[-1] if shape else 1
        if row % numbers:
            raise DamagedError(f"{path}: tensor {shown(name)} of shape {shape} is no whole number of {stored} blocks.")
        size = count(shape) // numbers * nbytes
    else:
        known = ", ".join(sorted([p[0] for p in PLAIN.values()] + [b[0] for b in BLOCKS.values()]))
        raise StoreError(f"{path}: tensor {shown(name)} is of GGUF type {kind}; convert it to one of {known}.")
    if name in tensors:
        raise DamagedError(f"{path}: tensor {shown(name)} stands twice in the header; {AGAIN}.")
    tensors[name], places[name] = TensorInfo(dtype, shape, stored), (offset, size, kind)


def _dequantised(source: SourceFile, at: int, kind: int, name: str, start: int, stop: int) -> Tensor:
    """Numbers `start` to `stop` of the quantised tensor whose blocks begin at byte `at`."""
    import torch

    _, numbers, nbytes, unpack = BLOCKS[kind]
    out = np.empty(stop - start, np.float32)
    step = CHUNK // numbers
    end = -(-stop // numbers)  # the block after the last
    with np.errstate(over="ignore", invalid="ignore"):  # scales of infinity are the file's own
        for first in range(start // numbers, end, step):
            blocks = min(step, end - first)
            raw = source.read(at + first * nbytes, blocks * nbytes, f"tensor {shown(name)}")
            part = unpack(np.frombuffer(raw, np.uint8).reshape(blocks, nbytes)).reshape(-1)
            begin = first * numbers
            low, high = max(start, begin), min(stop, begin + blocks * numbers)
            out[low - start : high - start] = part[low - begin : high - begin]
    return torch.from_numpy(out)
