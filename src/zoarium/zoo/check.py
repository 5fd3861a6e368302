"""Verify a zoo, byte for byte and model by model, and set damaged models aside so that the rest can be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from zoarium._core.digest import sha256_file
from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.reference import is_reference, reference_findings
from zoarium.zoo.manifest import DataInfo, FileInfo
from zoarium.zoo.store import Store
from zoarium.zoo.transaction import Transaction
from zoarium.zoo.weights import read_rows, row_digests

SCHEMA = {"file": pl.String, "id": pl.String, "epoch": pl.Int64, "state": pl.String, "detail": pl.String}
NEVER_LOST = ("models", "checkpoints")
CHUNK = 256 * 2**20  # bytes of weights verified at once

Finding = tuple[str, str | None, int | None, str, str]


def check_zoo(path: str | Path, *, repair: bool = False) -> pl.DataFrame:
    """Verify every file of a zoo against its checksum and every model's weights against their digest.

    Parameters
    ----------
    path : path
        The zoo.
    repair : bool, default False
        Forget damaged checkpoints and tables that can be measured again. A model whose last checkpoint is lost gets
        the status ``damaged``; growing the same grid again grows it anew.

    Returns
    -------
    polars.DataFrame
        A row a file (``id`` empty) and a row a stored checkpoint: ``file``, ``id``, ``epoch``, ``state`` ("ok",
        "damaged" or "missing", as found before any repair) and ``detail``.

    Raises
    ------
    StoreError
        If the folder is no zoo.
    DamagedError
        If `zoo.json` is damaged, or a repair would need the models or checkpoints table, which nothing can rebuild.
    LockedError
        If a repair is asked for while another process is writing.

    Notes
    -----
    Reads the whole zoo once; memory stays below 1 GB whatever its size, unless one model is larger.
    """
    store = Store.open(path)
    with store.locked() if repair else nullcontext():
        findings = list(_findings(store))
        if repair and any(state != "ok" for *_, state, _ in findings):
            _repair(store, findings)
    return pl.DataFrame(findings, schema=SCHEMA, orient="row")


def _findings(store: Store) -> Iterator[Finding]:
    yield "zoo.json", None, None, "ok", ""
    for name in store.table_names:
        yield _table_finding(store, name)
    try:
        checkpoints = store.frame("checkpoints").sort("file", "row")
        models = store.models
    except DamagedError:
        return  # said above; without them no weights can be told apart
    groups = {str(file): part for (file,), part in checkpoints.group_by("file", maintain_order=True)}
    for file, info in store.manifest.files.items():
        if file.endswith(".safetensors"):
            yield _file_finding(store, file, info)
    for file, part in groups.items():
        if is_reference(file):
            yield from reference_findings(store, part)
        else:
            yield from _row_findings(store, file, part)
    have = set(checkpoints["id"])
    for id, status in models.select("id", "status").iter_rows():
        if status == "trained" and id not in have:
            yield "checkpoints.parquet", id, None, "missing", "a trained model without weights"


def _table_finding(store: Store, name: str) -> Finding:
    file = f"{name}.parquet"
    try:
        store.table(name)
    except (DamagedError, StoreError) as error:
        there = (store.root / file).exists()
        return file, None, None, "damaged" if there else "missing", str(error)
    return file, None, None, "ok", ""


def _file_finding(store: Store, file: str, info: FileInfo) -> Finding:
    try:
        path = store.verified_path(file)
        if sha256_file(path) != info.sha256:
            return file, None, None, "damaged", "its checksum differs"
    except (StoreError, OSError) as error:
        there = (store.root / file).exists()
        return file, None, None, "damaged" if there else "missing", str(error)
    return file, None, None, "ok", ""


def _row_findings(store: Store, file: str, part: pl.DataFrame) -> Iterator[Finding]:
    info = store.manifest.files.get(file)
    step = max(1, CHUNK // max(1, info.row_bytes if info else 1))
    for start in range(0, len(part), step):
        chunk = part[start : start + step]
        for id, epoch, problem in _bad_rows(store, file, chunk):
            yield file, id, epoch, "damaged" if problem else "ok", problem


def _bad_rows(store: Store, file: str, chunk: pl.DataFrame) -> Iterator[tuple[str, int, str]]:
    keys = list(chunk.select("id", "epoch", "digest").iter_rows())
    try:
        found: list[Any] = row_digests(read_rows(store.verified_path(file), chunk["row"].to_list()))
        problem = "its weights are not what was written"
    except StoreError as error:
        found, problem = [None] * len(keys), str(error)
    for (id, epoch, digest), seen in zip(keys, found, strict=True):
        yield id, epoch, "" if seen == digest else problem


def _repair(store: Store, findings: list[Finding]) -> None:
    bad = [finding for finding in findings if finding[3] != "ok"]
    transaction = Transaction(store)
    for file, id, _, _, detail in bad:
        name = file.removesuffix(".parquet")
        if id is None and name in NEVER_LOST:
            raise DamagedError(
                f"{detail.rstrip('.')}; this table cannot be rebuilt: restore it from a copy of the zoo."
            )
        if id is None and file.endswith(".parquet"):
            transaction.replace(name, None)
        if id is None and file.startswith("data/"):
            transaction.drop_file(file)
            described = store.manifest.data
            for data, info in described.items():
                if info.source == "stored" and info.fingerprint in file:
                    transaction.describe_data(data, DataInfo.model_validate({**dict(info), "source": "external"}))
    checkpoints, models = store.frame("checkpoints"), store.models
    lost = pl.DataFrame(
        [(id, epoch) for _, id, epoch, *_ in bad if id is not None and epoch is not None],
        schema={"id": pl.String, "epoch": pl.Int64}, orient="row",
    )  # fmt: skip
    last = checkpoints.group_by("id").agg(pl.col("epoch").max())
    aside = set(lost.join(last, on=["id", "epoch"])["id"]) | {id for _, id, epoch, *_ in bad if id and epoch is None}
    if len(lost):
        transaction.replace(
            "checkpoints", checkpoints.join(lost, on=["id", "epoch"], how="anti", maintain_order="left")
        )
    if aside:
        status = pl.when(pl.col("id").is_in(list(aside))).then(pl.lit("damaged")).otherwise(pl.col("status"))
        transaction.set_models(models.with_columns(status.alias("status")))
    kept = set((transaction.table("checkpoints") if len(lost) else checkpoints)["file"])  # type: ignore[index]
    for file, id, *_ in bad:
        if id is None and file in kept:  # some of its models are intact, and their digests say so
            old = store.manifest.files[file]
            transaction.take_file(file, old.model_copy(update={"sha256": sha256_file(store.root / file)}))
        elif id is None and file.startswith("weights/"):
            transaction.drop_file(file)
    try:
        transaction.commit()
    except BaseException:
        transaction.rollback()
        raise
