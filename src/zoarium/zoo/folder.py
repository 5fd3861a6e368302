"""The folder a zoo lies in: what may be in it, and whether one can be made there."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from zoarium._core.errors import StoreError
from zoarium.zoo.backup import newest_manifest
from zoarium.zoo.manifest import BACKUP, MANIFEST

PENDING = ".pending"
FOLDERS = ("", "measures", "pairs", "cells", "weights", "data")
UNBEGUN = ".unfinished"  # marks a folder that becomes a zoo with its first commit, as a copy does with its last step


def make_room(root: Path) -> None:
    """Refuse a folder that holds something, unless that is what was left of making a zoo there."""
    if not root.exists():
        return
    if not root.is_dir():
        raise StoreError(f"cannot make a zoo in {root}: it is not empty, or choose another folder.")
    if (root / UNBEGUN).exists() and not os.path.lexists(root / MANIFEST):
        for folder in (*FOLDERS[1:], BACKUP):
            shutil.rmtree(root / folder, ignore_errors=True)
        for path in root.glob("*" + PENDING):
            unlink(path)
        for name in (".lock", ".lock.json", UNBEGUN):
            unlink(root / name)
    for path in root.glob(f".{MANIFEST}.*.tmp"):
        unlink(path)
    if any(root.iterdir()):
        kind = "is not empty"
        if (root / MANIFEST).exists():
            kind = "already holds a zoo; open it with za.open"
        elif newest_manifest(root) is not None:
            kind = f"holds a zoo whose zoo.json is missing; run: zoarium check {root} --repair"
        raise StoreError(f"cannot make a zoo in {root}: it {kind}, or choose another folder.")


def printable(root: Path) -> Path:
    """Refuse a path that is no text: safetensors cannot open what lies there."""
    try:
        str(root).encode()
    except UnicodeEncodeError:
        shown = str(root).encode(errors="backslashreplace").decode()
        raise StoreError(f"a zoo cannot lie in {shown}: this name is not valid UTF-8; rename that folder.") from None
    return root


def state_of(path: Path) -> str:
    """What is wrong with a file that is not what was written."""
    if not os.path.lexists(path):
        return "is missing"
    if not path.exists():
        return "is a link that leads nowhere"
    return "is not what was written (its checksum differs)" if path.is_file() else "is not a file"


def unlink(path: Path) -> None:
    """Remove a file if that can be done; for tidying up what no longer counts."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
