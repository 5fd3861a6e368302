"""The lock of a zoo's one writer: held by the operating system, and so released by it when a process is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zoarium._core.errors import LockedError, StoreError
from zoarium._core.files import write_error

LOCK, HOLDER = ".lock", ".lock.json"


class WriterLock:
    """The lock file of the zoo in a folder, held from the moment this is made until :meth:`release`.

    Raises
    ------
    LockedError
        If another process (or another `Zoo` object) holds it, saying which, where and since when.
    StoreError
        If the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        from filelock import FileLock, Timeout

        if not root.is_dir():  # to lock would make the folder anew
            raise write_error(root, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
        self.root = root
        self.owner = os.getpid()
        self._lock: Any = FileLock(root / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise LockedError(
                f"{root} is being written by {_holder(root)}; wait until it has finished, or stop it."
            ) from None
        except OSError as error:
            raise write_error(root / LOCK, error) from error
        self._inode = _inode(root / LOCK)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk the lock itself still holds
            (root / HOLDER).write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}), encoding="utf-8"
            )

    def release(self) -> None:
        """Let others write; a forked child releases nothing."""
        if self.owner == os.getpid():
            with contextlib.suppress(OSError):
                (self.root / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def still_ours(self) -> None:
        """Refuse to write into a folder that has taken the place of the one that was locked."""
        if _inode(self.root / LOCK) != self._inode:
            raise StoreError(
                f"cannot write {self.root}: the folder was deleted, moved or replaced while it was being written; "
                "put it back, or choose another folder, and run the same command again."
            )


def _holder(root: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((root / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} on {found['host']} (since {found['since']})"
    return "another process"


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
