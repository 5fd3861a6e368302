"""Bytes of a file from elsewhere: every length is checked against the file before memory is taken."""

from __future__ import annotations

import binascii
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoarium._core.digest import sha256_file
from zoarium._core.errors import DamagedError, StoreError, ZoariumError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**20  # bytes read at once where only a checksum is wanted
MAX_NAME = 1024  # characters of a tensor's name
MAX_DIMS = 64
MAX_TENSORS = 1_000_000
MAX_JSON = 100 * 2**20  # bytes of a header or an index; the safetensors library sets the same limit
AGAIN = "copy or download the file again"

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip

# What the standard library and torch raise when bytes are not what they claim to be.
FOREIGN_FAULTS = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, MemoryError, OSError, EOFError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


class SourceFile:
    """One file that tensors are read from.

    Parameters
    ----------
    path : path
        A regular file; pipes, devices and folders are refused.

    Attributes
    ----------
    size : int
        Bytes, when it was opened.

    Raises
    ------
    StoreError
        If the path is not a readable regular file.
    """

    def __init__(self, path: Path):
        self.path = path
        with self.open() as file:
            found = os.fstat(file.fileno())
        self.size = found.st_size
        self._stamp = (found.st_ino, found.st_size, found.st_mtime_ns)

    def __repr__(self) -> str:
        return f"SourceFile({str(self.path)!r}, {self.size} bytes)"

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Inode, size and time of change when it was opened: equal for a file that nobody has written to since."""
        return self._stamp

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file, read in pieces at first use."""
        with self.open():  # a file replaced since would be hashed for another
            return sha256_file(self.path)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file, open for reading, after a check that it is still the one first seen."""
        try:
            # not blocking: opening a pipe would wait for its writer for ever
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}; give a file you may read.") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise StoreError(f"{self.path} is not a regular file; give a file of weights or a folder that holds some.")
        with os.fdopen(descriptor, "rb") as file:
            if getattr(self, "_stamp", None) not in (None, (found.st_ino, found.st_size, found.st_mtime_ns)):
                raise StoreError(f"{self.path} has changed since it was opened; read the model again.")
            yield file

    def read(self, offset: int, length: int, what: str = "content") -> bytearray:
        """`length` bytes from `offset`, all of them or an error.

        Raises
        ------
        DamagedError
            If the file does not hold them.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DamagedError(
                f"{self.path}: {what} lies at bytes {offset} to {offset + length} of a file of {self.size}; {AGAIN}."
            )
        content = bytearray(length)
        with self.open() as file:
            file.seek(offset)
            got = file.readinto(content)  # type: ignore[attr-defined]
        if got != length:
            raise DamagedError(f"{self.path}: {what} has {got} of {length} bytes; {AGAIN}.")
        return content


@contextmanager
def faults_named(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever hostile bytes raise in a library below us into one sentence about the file."""
    try:
        yield
    except ZoariumError:
        raise
    except FOREIGN_FAULTS as error:
        said = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise DamagedError(
            f"{path} cannot be read as {kind}: {said}; {AGAIN}, or name its format by its suffix."
        ) from (error)


def shown(value: object, limit: int = 80) -> str:
    """A value from a file, cut for a message; containers by their first items, since hostile ones print for ever."""
    if isinstance(value, (list, tuple)):
        few = ", ".join(shown(item, 20) if isinstance(item, (int, str)) else type(item).__name__ for item in value[:6])
        return f"[{few}{', …' if len(value) > 6 else ''}]"
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of {value.bit_length()} bits"
    if not isinstance(value, (str, bytes, int, float, bool, type(None))):
        return f"({type(value).__name__})"
    said = repr(value[: limit - 1] + "…" if isinstance(value, str) and len(value) > limit else value)
    return said if len(said) <= 2 * limit else said[: 2 * limit] + "…"


def check_name(path: Path, name: object) -> str:
    """`name` as the name of a tensor: text of at most `MAX_NAME` characters that UTF-8 can write."""
    try:
        sound = isinstance(name, str) and len(name) <= MAX_NAME and name.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        sound = False
    if not isinstance(name, str) or not sound:
        raise DamagedError(
            f"{path}: a tensor is named {shown(name)}, which is not text of at most {MAX_NAME} characters; "
            "save it again under plain names."
        )
    return name


def check_shape(path: Path, name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """`shape` as sizes a tensor can have, so that no product of them overflows."""
    product = 1
    whole = len(shape) <= MAX_DIMS
    for size in shape if whole else ():
        whole = whole and type(size) is int and 0 <= size < 2**63
        product *= max(size, 1) if whole else 1
    if not whole or product >= 2**60:
        said = f"{len(shape)} axes" if len(shape) > MAX_DIMS else f"the shape {shown(list(shape))}"
        raise DamagedError(f"{path}: tensor {shown(name)} claims {said}, which no tensor has; {AGAIN}.")
    return tuple(shape)


def count(shape: Sequence[int]) -> int:
    """Elements in a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def check_apart(path: Path, spans: list[tuple[int, int, str]]) -> None:
    """Refuse spans (start, end, name) of a file that overlap: a few bytes could pose as any number of tensors."""
    reach, before = 0, ""
    for start, end, name in sorted(span for span in spans if span[1] > span[0]):
        if start < reach:
            raise DamagedError(
                f"{path}: {shown(before)} and {shown(name)} claim the same bytes (from {start}); {AGAIN}."
            )
        reach, before = end, name


def parse_json(path: Path, content: bytes | bytearray, what: str) -> Any:
    """JSON in `content`; a name given twice, nesting too deep to follow, or little but brackets, is an error."""
    brackets = content.count(b"[") + content.count(b"{")
    if 8 * brackets > len(content) + 2**16:  # each makes an object of 64 bytes; a tensor's entry has three in fifty
        raise DamagedError(f"{path}: {what} opens {brackets} lists in {len(content)} bytes, so is none; {AGAIN}.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        return json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        said = "it nests too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise DamagedError(f"{path}: {what} is not JSON we can read ({said}); {AGAIN}.") from error


def to_tensor(content: bytearray, dtype: str, shape: Sequence[int]) -> Tensor:
    """Little-endian bytes as a tensor of `shape` that owns them."""
    import torch

    kind = getattr(torch, dtype)
    if not content:
        return torch.empty(tuple(shape), dtype=kind)
    if dtype == "bool":  # any other byte than 0 and 1 would be neither true nor false
        return (torch.frombuffer(content, dtype=torch.uint8) != 0).reshape(tuple(shape))
    return torch.frombuffer(content, dtype=kind).reshape(tuple(shape))


def crc32(content: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The checksum of zip archives."""
    return binascii.crc32(content, start)
