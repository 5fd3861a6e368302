"""A second copy of what nothing else can give back: `zoo.json` and the tables of models, checkpoints and history.

The copies lie in ``backup/`` and are named after what they hold: ``zoo-GENERATION.json`` and ``TABLE-SHA256.parquet``
(the first 16 digits). Those of the next commit are therefore written beside those of the last and before `zoo.json` is
replaced, so that at whatever moment a process dies, the commit that counts has its copies. They are not forced to the
disk: that would double the cost of a commit, and what they are copies of has been. Readers never look at them; `zoarium
check --repair` does, and believes a copy only if it is, byte for byte, what `zoo.json` lists.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from zoarium._core.errors import StoreError
from zoarium.zoo.manifest import BACKUP, FileInfo, Manifest, parse_manifest

KEPT = ("models.parquet", "checkpoints.parquet", "history.parquet")
COPY_NAME = re.compile(r"zoo-\d+\.json|(models|checkpoints|history)-[0-9a-f]{16}\.parquet")


def table_copy(file: str, info: FileInfo) -> str:
    """Name of the copy of a table, e.g. ``backup/models-0123456789abcdef.parquet``."""
    return f"{BACKUP}/{file.removesuffix('.parquet')}-{info.sha256[:16]}.parquet"


def manifest_copy(manifest: Manifest) -> str:
    """Name of the copy of `zoo.json`, e.g. ``backup/zoo-7.json``."""
    return f"{BACKUP}/zoo-{manifest.generation}.json"


def copies_of(manifest: Manifest) -> dict[str, str]:
    """Names of the copies a commit has, each with the name of the file it is a copy of."""
    tables = {table_copy(file, manifest.files[file]): file for file in KEPT if file in manifest.files}
    return {**tables, manifest_copy(manifest): "zoo.json"}


def write_copies(
    root: Path, manifest: Manifest, contents: Mapping[str, bytes], read: Callable[[str], bytes | None]
) -> None:
    """Write the copies of a commit that are not there yet; the others are not touched.

    Parameters
    ----------
    contents : mapping
        Changed tables.
    read : callable
        Gives the verified content of a table that has not changed; None if it is damaged.
    """
    wanted = copies_of(manifest)
    (root / BACKUP).mkdir(exist_ok=True)
    for copy, file in wanted.items():
        if file == "zoo.json":
            (root / copy).write_bytes(manifest.to_bytes())
        elif not _has_size(root / copy, manifest.files[file].size):
            content = contents[file] if file in contents else read(file)
            if content is not None:
                (root / copy).write_bytes(content)


def prune_copies(root: Path, manifest: Manifest) -> None:
    """Remove copies of other commits."""
    wanted = copies_of(manifest)
    with contextlib.suppress(OSError), os.scandir(root / BACKUP) as entries:
        for entry in list(entries):
            if COPY_NAME.fullmatch(entry.name) and f"{BACKUP}/{entry.name}" not in wanted:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def bad_copies(root: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Copies of a commit that are not what they should be, each with what is wrong; none where no copies are kept."""
    if not (root / BACKUP).is_dir():  # a zoo from before there were copies gets them with its next commit
        return
    for copy, file in copies_of(manifest).items():
        if file == "zoo.json":
            good = _parsed(root / copy) == manifest
        else:
            good = read_copy(root, file, manifest.files[file]) is not None
        if not good:
            there = os.path.lexists(root / copy)
            yield copy, f"{root / copy} is {'not what was written' if there else 'missing'}; it is a copy of {file}."


def read_copy(root: Path, file: str, info: FileInfo) -> bytes | None:
    """The copy of a table, if it is what `zoo.json` lists."""
    content = read_regular(root / table_copy(file, info)) if file in KEPT else None
    good = content is not None and len(content) == info.size and hashlib.sha256(content).hexdigest() == info.sha256
    return content if good else None


def newest_manifest(root: Path) -> Manifest | None:
    """The newest copy of `zoo.json` whose files are all there; else the newest that is sound; else None."""
    found: list[Manifest] = []
    with contextlib.suppress(OSError):
        for path in (root / BACKUP).glob("zoo-*.json"):
            manifest = _parsed(path)
            if manifest is not None:
                found.append(manifest)
    found.sort(key=lambda manifest: -manifest.generation)
    return next((manifest for manifest in found if complete(root, manifest)), found[0] if found else None)


def complete(root: Path, manifest: Manifest) -> bool:
    """Whether every file of a commit is there, to judge by sizes: in its place, pending, or as a copy."""
    for file, info in manifest.files.items():
        places = [file, file + ".pending", *([table_copy(file, info)] if file in KEPT else [])]
        if not any(_has_size(root / place, info.size) for place in places):
            return False
    return True


def _parsed(path: Path) -> Manifest | None:
    content = read_regular(path)
    with contextlib.suppress(StoreError):
        return None if content is None else parse_manifest(content, path)
    return None


def read_regular(path: Path) -> bytes | None:
    """Content of a file; None if it cannot be read or is something else."""
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError:
        return None


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size and path.is_file()
    except OSError:
        return False
