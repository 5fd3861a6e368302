"""Checkpoints whose weights stay where they are: a row that points at files of somebody else.

Such a row of ``checkpoints`` has a `file` that begins with ``foreign/``, followed by the SHA-256 of the model, and says
in further columns where the bytes lie. They are verified before they are believed, once an opened zoo.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.facts import files_sha256, without_prefix
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.reader import read_model
from zoarium.zoo.foreign.source import SourceFile, shown

if TYPE_CHECKING:
    from zoarium.zoo.store import Store

MARK = "foreign/"
KEPT = 256  # models whose headers are held

FILE_ENTRY = pl.Struct({"name": pl.String, "size": pl.Int64, "sha256": pl.String})
COLUMNS = {
    "path": pl.String, "revision": pl.String, "format": pl.String, "prefix": pl.String, "nbytes": pl.Int64,
    "files": pl.List(FILE_ENTRY),
}  # fmt: skip


def is_reference(file: str) -> bool:
    """Whether the `file` of a checkpoint stands for files outside the zoo."""
    return file.startswith(MARK)


def needed_version(checkpoints: pl.DataFrame | None) -> int:
    """Format version of a zoo with this table of checkpoints: 2 where one points at foreign files, else 1."""
    if checkpoints is None or "path" not in checkpoints.columns:
        return 1
    return 2 if checkpoints["path"].null_count() < len(checkpoints) else 1


def stored_path(root: Path, path: Path) -> str:
    """How a zoo writes down a path: from its own folder where both lie side by side, so that they can move together."""
    target, home = os.path.abspath(path), os.path.abspath(root)
    above = os.path.dirname(home)
    inside = os.path.splitdrive(target)[0] == os.path.splitdrive(above)[0] and above != os.path.dirname(above)
    if inside and os.path.commonpath([target, above]) == above:
        return Path(os.path.relpath(target, home)).as_posix()
    return target


def located(root: Path, path: str) -> Path:
    """The inverse of :func:`stored_path`."""
    return Path(os.path.normpath(os.path.join(os.path.abspath(root), path)))


def reference_row(
    root: Path, model: ForeignModel, entry: Path, *, hub: str | None = None, revision: str | None = None,
    prefix: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The columns of a checkpoint that points at `model`.

    Parameters
    ----------
    root : Path
        The zoo.
    model : ForeignModel
        As it was read, names included.
    entry : Path
        The one file that was read: of weights, or an index of shards.
    hub : str, optional
        ``hf:org/model:FILE``, for a model of the hub; `entry` is then its copy in the cache.
    revision : str, optional
        The commit on the hub.
    prefix : str
        What is taken off every name.
    """
    files = [{"name": _name(entry, source), "size": source.size, "sha256": source.sha256} for source in model.sources]
    return {
        "file": MARK + files_sha256(model),
        "row": 0,
        "path": hub or stored_path(root, entry),
        "revision": revision,
        "format": model.format,
        "prefix": prefix,
        "nbytes": model.nbytes,
        "files": files,
    }


def _name(entry: Path, source: SourceFile) -> str:
    return Path(os.path.relpath(source.path, entry.parent)).as_posix()


def open_reference(store: Store, row: Mapping[str, Any]) -> ForeignModel:
    """The model a row of ``checkpoints`` points at, verified.

    Parameters
    ----------
    store : Store
        The zoo.
    row : mapping
        The row, as `Store.checkpoints_of` gives it.

    Raises
    ------
    StoreError
        If a file is not there.
    DamagedError
        If a file has changed since it was added; both digests are named.
    """
    kept: dict[Any, ForeignModel] = store.attached.setdefault("references", {})
    key = (row["file"], row.get("path"), row.get("prefix"))
    if key not in kept:
        opened = _open(store, row)
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = opened
    return kept[key]


def _open(store: Store, row: Mapping[str, Any]) -> ForeignModel:
    path = _fetch(store, row)
    listed = {entry["name"]: entry for entry in row["files"] or []}
    stamps = {name: _verified(store, row, path.parent / name, entry) for name, entry in listed.items()}
    model = read_model(path)
    found = {_name(path, source): source.stamp for source in model.sources}
    if found != stamps:
        other = sorted(set(found) ^ set(stamps)) or sorted(found)
        raise DamagedError(
            f"model {row['id']!r}: {path} no longer stands for the files that were added ({shown(other)} differ); "
            f"restore them, or add the model again with: zoarium add {store.root} {path}."
        )
    return without_prefix(model, row["prefix"] or "")


def _fetch(store: Store, row: Mapping[str, Any]) -> Path:
    if not isinstance(row.get("path"), str):
        raise DamagedError(
            f"model {row['id']!r}: its checkpoint at epoch {row['epoch']} says it is a foreign file but not which; add "
            f"the model again with: zoarium add {store.root} PATH."
        )
    if row["path"].startswith("hf:"):
        from zoarium.zoo.foreign.hub import fetch

        return fetch(row["path"], row["revision"]).path
    return located(store.root, row["path"])


def _verified(store: Store, row: Mapping[str, Any], path: Path, entry: Mapping[str, Any]) -> Any:
    """Stamp of a file that has the bytes it was added with; hashed once a file and stamp."""
    done: dict[Path, Any] = store.attached.setdefault("verified", {})
    again = f"zoarium add {store.root} PATH"
    if not path.exists():
        raise StoreError(
            f"model {row['id']!r}: its file {path} is missing; put it back, or add it from its new place with: {again}."
        )
    source = SourceFile(path)
    if done.get(path) != (source.stamp, entry["sha256"]):
        if source.sha256 != entry["sha256"]:
            raise DamagedError(
                f"model {row['id']!r}: {path} has changed since it was added (its SHA-256 is {source.sha256}, it was "
                f"{entry['sha256']}); restore the file, or add it as a model of its own with: {again}."
            )
        done[path] = (source.stamp, entry["sha256"])
    return source.stamp


def reference_findings(store: Store, rows: pl.DataFrame) -> Iterator[tuple[str, str, int, str, str]]:
    """What `check_zoo` says of references: file, id, epoch, state and detail, a row each."""
    for row in rows.iter_rows(named=True):
        try:
            _open(store, row)
        except StoreError as error:
            state = "damaged" if isinstance(error, DamagedError) else "missing"
            yield row["file"], row["id"], row["epoch"], state, str(error)
        else:
            yield row["file"], row["id"], row["epoch"], "ok", ""


def rebased(checkpoints: pl.DataFrame, old: Path, new: Path) -> pl.DataFrame:
    """The table of checkpoints for a copy of the zoo in another folder."""
    if "path" not in checkpoints.columns:
        return checkpoints
    paths = [
        path if path is None or path.startswith("hf:") else stored_path(new, located(old, path))
        for path in checkpoints["path"].to_list()
    ]
    return checkpoints.with_columns(pl.Series("path", paths, dtype=pl.String))
