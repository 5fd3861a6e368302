"""Find the models under a folder: single files, shards, Hugging Face folders, trials of a Ray-era zoo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoarium._core.errors import StoreError
from zoarium.zoo.foreign.reader import PREFERRED, WEIGHTS
from zoarium.zoo.foreign.source import SourceFile

SUFFIXES = (*WEIGHTS, ".th", ".pth.tar", ".pt.tar", ".ckpt.tar", ".torchscript")
SHARD = re.compile(r"(?P<stem>.+?)-(?P<n>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.[A-Za-z0-9_.]+)$")
TRAINING_STATE = re.compile(
    r"(optimi[sz]er|scheduler|scaler|rng_state|random_states|training_args|training_state|trainer_state|lr_scheduler)"
    r"([._-].*)?$|.*(optim_states|optimi[sz]er)\.\w+$",
    re.IGNORECASE,
)
TRIAL_FILES = ("params.json", "result.json")
CHECKPOINT_FOLDER = re.compile(r"checkpoint_(\d+)$")
DATA_OF_TRIALS = re.compile(r"dataset.*\.pt$")

Kind = Literal["model", "trial", "skipped", "ignored"]


@dataclass(frozen=True)
class Found:
    """One thing under a folder.

    Parameters
    ----------
    kind : {"model", "trial", "skipped", "ignored"}
        A model (a file of weights, or an index of shards), a trial of a Ray-era zoo (its folder), what should be one
        and is not, or a file that is known to be none.
    path : Path
        Where it lies.
    detail : str
        Why it is skipped or ignored.
    """

    kind: Kind
    path: Path
    detail: str = ""


def find_models(root: Path, *, ray: bool | None = None) -> Iterator[Found]:
    """Everything under `root` that is a model, in the order of names.

    Parameters
    ----------
    root : Path
        A folder; hidden folders, links to folders and zoos inside it are not entered.
    ray : bool, optional
        Whether folders with ``params.json`` or ``result.json`` are trials of a Ray-era zoo; default where they also
        have, or are beside folders that have, ``checkpoint_*``.

    Raises
    ------
    StoreError
        If the folder cannot be listed.
    """
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise StoreError(f"cannot list {folder}: {error.strerror}; give a folder you may read.") from error
            yield Found("skipped", folder, f"cannot be listed ({error.strerror})")
            continue
        files = [e.name for e in entries if not e.is_dir() and not e.name.startswith(".")]
        folders = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        if "zoo.json" in files and (folder / "weights").is_dir():
            yield Found("ignored", folder, "a zoo already; open it with za.open")
            continue
        if ray is not False and is_trial(folder, strict=ray is None):
            yield Found("trial", folder)
            continue
        trials = [f for f in folders if ray is not False and is_trial(f, strict=False)]
        if ray is None and not any(is_trial(f) for f in trials):
            trials = []
        if trials:  # one that has lost both its files lies among its like
            trials = [f for f in folders if f in trials or _has_checkpoints(f)]
            files = [name for name in files if not DATA_OF_TRIALS.fullmatch(name)]
        yield from _models_among(folder, files)
        for trial in trials:
            yield Found("trial", trial)
        stack += [f for f in reversed(folders) if f not in trials]


def is_trial(folder: Path, *, strict: bool = True) -> bool:
    """Whether a folder is a trial as Ray Tune wrote it: its files, and when `strict` also a ``checkpoint_*``."""
    if not any((folder / name).is_file() for name in TRIAL_FILES):
        return False
    return not strict or _has_checkpoints(folder)


def _has_checkpoints(folder: Path) -> bool:
    try:
        return any(CHECKPOINT_FOLDER.fullmatch(entry.name) for entry in folder.iterdir())
    except OSError:  # the walk will say so
        return False


def _models_among(folder: Path, files: list[str]) -> Iterator[Found]:
    """The models among the files of one folder."""
    indexed = {name.removesuffix(".index.json") for name in files if name.endswith(".index.json")}
    chosen = next((name for name in PREFERRED if name in files), None)
    shards: dict[str, list[str]] = {}
    for name in files:
        path = folder / name
        shard = SHARD.fullmatch(name)
        if name.endswith(".index.json"):
            if chosen in (None, name) or name not in PREFERRED:
                yield Found("model", path)
        elif shard and shard["suffix"].lower().endswith(SUFFIXES):
            whole = f"{shard['stem']}{shard['suffix']}"
            if whole not in indexed:
                shards.setdefault(f"{whole} of {int(shard['total'])}", []).append(name)
        elif name in PREFERRED:
            if name == chosen:
                yield Found("model", path)
        elif not _may_hold_weights(path):
            continue
        elif TRAINING_STATE.fullmatch(name):
            yield Found("ignored", path, "state of training, not a model")
        else:
            yield Found("model", path)
    for whole, names in shards.items():
        if whole.endswith(" of 1"):
            yield Found("model", folder / names[0])
            continue
        detail = f"{len(names)} shards of {whole.partition(' of ')[0]} without their index; add its .index.json"
        yield Found("skipped", folder / names[0], detail)


def _may_hold_weights(path: Path) -> bool:
    """Whether the name says so or, for a name without suffix, the first bytes."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.suffix:
        return False
    try:
        source = SourceFile(path)
        head = bytes(source.read(0, min(source.size, 16)))
    except StoreError:
        return False
    pickle = head[:1] == b"\x80" and head[1:2] <= b"\x05"
    safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size
    return head[:4] in (b"GGUF", b"PK\x03\x04") or (len(head) == 16 and (pickle or safetensors))
