"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoarium._core.errors import StoreError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over it, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` atomically; bytes of a file name that are no UTF-8 show as escapes."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_synced(path: Path, content: bytes) -> None:
    """Write `content` to `path` and force it to the disk; not atomic, for files nobody relies on yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path | None:
    """Rename what lies at `path` to ``NAME.damaged``, or a like name not in use; None if nothing lies there."""
    if not os.path.lexists(path):
        return None
    target, count = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(target):
        count += 1
        target = path.with_name(f"{path.name}.damaged~{count}")
    try:
        os.rename(path, target)
    except OSError as error:
        raise write_error(path, error) from error
    return target


def write_error(path: Path, error: OSError) -> StoreError:
    """Turn an operating-system error while writing into one sentence with a way out."""
    ways_out = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again to resume",
        errno.EDQUOT: "your disk quota is used up; free some space and run the same command again to resume",
        errno.EFBIG: "a file may not grow that large here; raise the limit (ulimit -f), or choose another folder",
        errno.EACCES: "permission denied; choose a folder you can write to",
        errno.EPERM: "permission denied; choose a folder you can write to",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "its folder is gone (moved or deleted?); put it back, or choose another folder",
        errno.ENOTDIR: "a file lies where its folder should be; move that file away, or choose another folder",
        errno.EISDIR: "a folder lies where the file should be; move that folder away, or choose another",
        errno.EEXIST: "a file lies where a folder should be; move that file away, or choose another folder",
        errno.ELOOP: "it is a link that leads nowhere; remove that link, or choose another folder",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    reason = ways_out.get(error.errno or 0, error.strerror or str(error))
    return StoreError(f"cannot write {path}: {reason}.")
