"""Zip archives as torch writes them: members are found by name, checked against the file, and read by range.

Nothing is ever unpacked to disk, so a member's name cannot lead anywhere; names that try are refused all the same.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import PurePosixPath

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.source import AGAIN, BLOCK, SourceFile, check_apart, crc32, faults_named, shown

# Weights compress by a few per cent, zeros a thousandfold: what counts is the sum.
MAX_RATIO, FREE = 20, 64 << 20  # bytes of all members for each of the file, and bytes that any file may unfold to
CACHE = 64 << 20  # bytes of an inflated member that is kept for the next view of it
LOCAL_HEADER = 30
MAX_MEMBERS = 1_000_000


class Archive:
    """The members of one zip file.

    Raises
    ------
    DamagedError
        If the directory does not fit the file: sizes, overlaps, names that lead out of the archive, members that
        unfold to more than 20 times the file and 64 MiB.
    StoreError
        For encrypted members, or compressions other than stored and deflate.
    """

    def __init__(self, source: SourceFile):
        self.source = source
        path = source.path
        with faults_named(path, "a zip archive"), source.open() as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise DamagedError(f"{path}: the archive lists {len(entries)} members, more than {MAX_MEMBERS}; {AGAIN}.")
        self.members: dict[str, zipfile.ZipInfo] = {}
        self._starts: dict[str, int] = {}
        self._verified: set[str] = set()
        self._kept: tuple[str, bytearray] | None = None
        unfolded = 0
        for entry in entries:
            name = entry.filename
            parts = PurePosixPath(name).parts
            if ".." in parts or name.startswith("/") or "\\" in name or ":" in name.partition("/")[0]:
                raise DamagedError(f"{path}: member {shown(name)} leads out of the archive; do not trust this file.")
            if name in self.members:
                raise DamagedError(f"{path}: member {shown(name)} stands twice in the archive; {AGAIN}.")
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise StoreError(
                    f"{path}: member {shown(name)} is encrypted or compressed in a way we do not read; save it again."
                )
            stored = entry.compress_type == zipfile.ZIP_STORED
            unfolded += entry.file_size
            if unfolded > MAX_RATIO * source.size + FREE or (stored and entry.file_size != entry.compress_size):
                raise DamagedError(
                    f"{path}: member {shown(name)} claims {entry.file_size} bytes from {entry.compress_size}, and all "
                    f"so far {unfolded} of a file of {source.size}, more than weights ever compress; do not trust this "
                    "file."
                )
            if entry.header_offset < 0 or entry.header_offset + LOCAL_HEADER + entry.compress_size > source.size:
                raise DamagedError(f"{path}: member {shown(name)} reaches beyond the file of {source.size}; {AGAIN}.")
            self.members[name] = entry
        check_apart(
            path,
            [(e.header_offset, e.header_offset + LOCAL_HEADER + e.compress_size, e.filename) for e in entries],
        )

    def _start(self, name: str) -> int:
        """Where the bytes of a member begin: its own header repeats its name and may be padded."""
        if name not in self._starts:
            offset = self.members[name].header_offset
            header = self.source.read(offset, LOCAL_HEADER, f"member {shown(name)}")
            if header[:4] != b"PK\x03\x04":
                raise DamagedError(f"{self.source.path}: member {shown(name)} is not where it should be; {AGAIN}.")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            self._starts[name] = offset + LOCAL_HEADER + name_length + extra_length
        return self._starts[name]

    def _bad_sum(self, name: str) -> DamagedError:
        return DamagedError(
            f"{self.source.path}: member {shown(name)} does not have the checksum it was written with; {AGAIN}, or "
            "save it again if it was written with checksums switched off."
        )

    def is_stored(self, name: str) -> bool:
        """Whether a member is not compressed."""
        return self.members[name].compress_type == zipfile.ZIP_STORED

    def verify(self, name: str) -> None:
        """Check a stored member against its checksum, once, a block at a time."""
        if name in self._verified:
            return
        entry, total, start = self.members[name], 0, self._start(name)
        for at in range(0, entry.file_size, BLOCK):
            total = crc32(
                self.source.read(start + at, min(BLOCK, entry.file_size - at), f"member {shown(name)}"), total
            )
        if total != entry.CRC:
            raise self._bad_sum(name)
        self._verified.add(name)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytearray:
        """Bytes of a member from `start`; the whole member is verified before any are returned.

        Raises
        ------
        DamagedError
            If the range is not in the member, or the checksum does not match.
        """
        entry = self.members[name]
        length = entry.file_size - start if length is None else length
        if start < 0 or length < 0 or start + length > entry.file_size:
            raise DamagedError(
                f"{self.source.path}: {length} bytes from {start} are asked of member {shown(name)}, which has "
                f"{entry.file_size}; {AGAIN}."
            )
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            if entry.file_size > CACHE:
                return self._inflate(name, start, length)
            if self._kept is None or self._kept[0] != name:  # or each of many views would inflate it again
                self._kept = name, self._inflate(name, 0, entry.file_size)
            return self._kept[1][start : start + length]
        if length == entry.file_size:
            content = self.source.read(self._start(name), length, f"member {shown(name)}")
            if crc32(content) != entry.CRC:
                raise self._bad_sum(name)
            self._verified.add(name)
            return content
        self.verify(name)
        return self.source.read(self._start(name) + start, length, f"member {shown(name)}")

    def _inflate(self, name: str, start: int, length: int) -> bytearray:
        entry, begin = self.members[name], self._start(name)
        engine = zlib.decompressobj(-15)
        out, total, seen, at = bytearray(), 0, 0, 0
        pending = b""
        while seen < entry.file_size:
            if not pending:
                if at >= entry.compress_size:
                    break
                step = min(BLOCK, entry.compress_size - at)
                pending = bytes(self.source.read(begin + at, step, f"member {shown(name)}"))
                at += step
            piece = engine.decompress(pending, BLOCK)
            pending = engine.unconsumed_tail
            if not piece and (engine.eof or not pending):
                if engine.eof:
                    break
                continue
            total = crc32(piece, total)
            out += piece[max(0, start - seen) : max(0, start + length - seen)]
            seen += len(piece)
        if seen != entry.file_size or total != entry.CRC or len(out) != length:
            raise self._bad_sum(name)
        return out
