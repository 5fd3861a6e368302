"""Verify a zoo, byte for byte and model by model; :mod:`zoarium.zoo.repair` mends what this finds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.backup import bad_copies, complete, copies_of, newest_manifest
from zoarium.zoo.foreign.reference import is_reference, reference_findings
from zoarium.zoo.manifest import BACKUP, MANIFEST, FileInfo
from zoarium.zoo.store import Store
from zoarium.zoo.weights import read_rows, row_digests

SCHEMA = {
    "file": pl.String, "id": pl.String, "epoch": pl.Int64, "state": pl.String, "detail": pl.String,
    "outcome": pl.String,
}  # fmt: skip
CHUNK = 256 * 2**20  # bytes of weights verified at once

Finding = tuple[str, str | None, int | None, str, str]


def check_zoo(path: str | Path, *, repair: bool = False) -> pl.DataFrame:
    """Verify every file of a zoo against its checksum and every model's weights against their digest.

    Parameters
    ----------
    path : path
        The zoo.
    repair : bool, default False
        Put back what can be rebuilt, and forget the rest, so that what is left is sound. `zoo.json` and the tables of
        models, checkpoints and history come back from their copies in ``backup/``. Damaged weights and measures are
        forgotten: a model whose last checkpoint is lost gets the status ``damaged``; growing the same grid again grows
        it anew, and measuring again measures what is missing.

    Returns
    -------
    polars.DataFrame
        A row a file (``id`` empty) and a row a stored checkpoint: ``file``, ``id``, ``epoch``, ``state`` ("ok",
        "damaged", "missing" or "unreadable", as found before any repair), ``detail``, and ``outcome``: what a repair
        did about it.

    Raises
    ------
    StoreError
        If the folder is no zoo; or if a repair finds a file that may not be read, which says nothing about damage.
    DamagedError
        If `zoo.json` is damaged and so are its copies, or a repair would need a table of models or of checkpoints
        whose copy is damaged too.
    LockedError
        If a repair is asked for while another process is writing.

    Notes
    -----
    Reads the whole zoo once (a repair that finds damage, twice); memory stays below 1 GB whatever its size, unless one
    model is larger. A damaged `zoo.json` is kept as ``zoo.json.damaged``.
    """
    store = _opened(Path(path))
    said = "ok" if store.lost is None else "damaged" if os.path.lexists(store.root / MANIFEST) else "missing"
    first = (MANIFEST, None, None, said, "" if store.lost is None else str(store.lost))
    with store.locked() if repair else nullcontext():
        found = [first, *findings(store)]
        rows = [(*finding, "") for finding in found]
        if repair and any(state != "ok" for *_, state, _ in found):
            from zoarium.zoo.repair import repair_zoo

            rows = repair_zoo(store, found)
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _opened(root: Path) -> Store:
    """The zoo by its zoo.json, or by the copy of it where that is damaged, missing, or of an earlier commit."""
    store = Store.open_copy(root)
    if store.lost is None:
        newest = newest_manifest(root)
        if (
            newest is not None
            and newest.generation > store.manifest.generation
            and complete(root, newest)
            and not _tables_sound(store)
            and _tables_sound(Store(root, newest, lost=DamagedError("")))
        ):
            way_out = f"run: zoarium check {root} --repair"
            store = Store(
                root, newest, lost=DamagedError(f"{root / MANIFEST} is that of an earlier commit; {way_out}.")
            )
    return store


def _tables_sound(store: Store) -> bool:
    return all(_table_finding(store, name)[3] == "ok" for name in store.table_names)


def findings(store: Store) -> Iterator[Finding]:
    """What is there, file by file and checkpoint by checkpoint: (file, id, epoch, state, detail)."""
    for name in store.table_names:
        yield _table_finding(store, name)
    bad = dict(bad_copies(store.root, store.manifest))
    if (store.root / BACKUP).is_dir():
        for copy in copies_of(store.manifest):
            yield _finding(store, copy, DamagedError(bad[copy]) if copy in bad else None)
    try:
        checkpoints = store.frame("checkpoints").sort("file", "row")
        models = store.models
    except StoreError:
        return  # said above; without them no weights can be told apart
    groups = {str(file): part for (file,), part in checkpoints.group_by("file", maintain_order=True)}
    for file, info in store.manifest.files.items():
        if file.endswith(".safetensors"):
            yield _file_finding(store, file, info)
    for file, part in groups.items():
        if is_reference(file):
            yield from reference_findings(store, part)
        elif not store.on_hub(file):
            yield from _row_findings(store, file, part)
    have = set(checkpoints["id"])
    for id, status in models.select("id", "status").iter_rows():
        if status == "trained" and id not in have:
            yield "checkpoints.parquet", id, None, "missing", "a trained model without weights"


def _finding(store: Store, file: str, error: Exception | None) -> Finding:
    if error is None:
        return file, None, None, "ok", ""
    if not isinstance(error, DamagedError):
        return file, None, None, "unreadable", str(error)
    there = os.path.lexists(store.root / file)
    return file, None, None, "damaged" if there else "missing", str(error)


def _table_finding(store: Store, name: str) -> Finding:
    try:
        store.table(name)
    except StoreError as error:
        return _finding(store, f"{name}.parquet", error)
    return _finding(store, f"{name}.parquet", None)


def _file_finding(store: Store, file: str, info: FileInfo) -> Finding:
    if store.on_hub(file):
        return file, None, None, "ok", "on the hub, not downloaded yet"
    try:
        store.verified_path(file, whole=True)
    except StoreError as error:
        return _finding(store, file, error)
    return _finding(store, file, None)


def _row_findings(store: Store, file: str, part: pl.DataFrame) -> Iterator[Finding]:
    info = store.manifest.files.get(file)
    step = max(1, CHUNK // max(1, info.row_bytes if info else 1))
    for start in range(0, len(part), step):
        chunk = part[start : start + step]
        for id, epoch, state, problem in _rows(store, file, chunk):
            yield file, id, epoch, state, problem


def _rows(store: Store, file: str, chunk: pl.DataFrame) -> Iterator[tuple[str, int, str, str]]:
    keys = list(chunk.select("id", "epoch", "digest").iter_rows())
    try:
        found: list[Any] = row_digests(read_rows(store.verified_path(file), chunk["row"].to_list()))
        state, problem = "damaged", "its weights are not what was written"
    except StoreError as error:
        found, problem = [None] * len(keys), str(error)
        state = "damaged" if isinstance(error, DamagedError) else "unreadable"
    for (id, epoch, digest), seen in zip(keys, found, strict=True):
        yield id, epoch, "ok" if seen == digest else state, "" if seen == digest else problem
