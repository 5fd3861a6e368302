"""Zoos, and views of them, written to another folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import DamagedError
from zoarium._core.files import write_error
from zoarium.zoo.cohorts import Place, load_places
from zoarium.zoo.foreign.reference import rebased
from zoarium.zoo.store import Store

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo


def save_zoo(zoo: Zoo, path: str | Path) -> Zoo:
    """Write a zoo, or a view of one with its own models only, to a new folder.

    Every file is verified while it is copied. The copy becomes a zoo with its last step: a copy that was cut off is
    no zoo, and the same call begins it anew.

    Raises
    ------
    StoreError
        If the folder is not empty or cannot be written.
    DamagedError
        If a file is not what was written.
    """
    from zoarium.zoo.zoo import Zoo

    store = zoo.store
    header = {k: getattr(store.manifest, k) for k in ("grid", "axes", "load", "temperature", "data", "extra")}
    copy = Zoo(Store.create(path, begin=False, **{k: v for k, v in header.items() if k != "extra"}))
    try:
        with copy.writing() as transaction:
            for name in store.table_names:
                frame = store.table(name)
                if frame is not None:
                    frame = rebased(frame, zoo.path, copy.path) if name == "checkpoints" else frame
                    transaction.replace(name, zoo.restrict(name, frame))
            if header["extra"]:
                transaction.update_header(**header["extra"])
            checkpoints = transaction.table("checkpoints")
            wanted: dict[str, list[tuple]] = {}
            if checkpoints is not None:
                for row in checkpoints.select("id", "epoch", "file", "row", "digest").iter_rows():
                    wanted.setdefault(row[2], []).append(row)
            for file, info in store.manifest.files.items():
                if file.startswith("data/") or (file in wanted and len(wanted[file]) == info.rows):
                    _copy(zoo, file, copy.path / file)
                    transaction.take_file(file, info)
                elif file in wanted:
                    _rewrite(zoo, transaction, file, [Place(*row) for row in wanted[file]])
    except BaseException:
        _forget(copy.path)
        raise
    return copy


def _copy(zoo: Zoo, file: str, target: Path) -> None:
    source = zoo.store.verified_path(file)
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(exist_ok=True)
        with source.open("rb") as reading, target.open("wb") as writing:
            while block := reading.read(2**22):
                digest.update(block)
                writing.write(block)
    except OSError as error:
        raise write_error(target, error) from error
    if digest.hexdigest() != zoo.store.info_of(file).sha256:
        raise DamagedError(f"{source} is not what was written; see: zoarium check {zoo.path}.")


def _rewrite(zoo: Zoo, transaction: Any, file: str, places: list[Place]) -> None:
    """Some rows of a weights file as a smaller file of the same name."""
    name = Path(file).stem.rpartition("@")[0] or Path(file).stem
    steps = zoo.store.frame("checkpoints").filter(pl.col("file") == file)["step"]
    transaction.add_weights(name, places[0].epoch, steps[0], [p.id for p in places], load_places(zoo.store, places))


def _forget(folder: Path) -> None:
    """Empty the folder of an unfinished copy; it was empty when the copy began."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
