"""Mend a damaged zoo: put back what can be rebuilt, forget the rest, and say which."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from zoarium._core.digest import sha256_file
from zoarium._core.errors import DamagedError, StoreError
from zoarium._core.files import replacing, set_aside, write_bytes, write_error
from zoarium.zoo.backup import bad_copies, read_copy, write_copies
from zoarium.zoo.check import Finding, findings
from zoarium.zoo.folder import FOLDERS
from zoarium.zoo.manifest import BACKUP, MANIFEST, DataInfo, FileInfo
from zoarium.zoo.store import Store
from zoarium.zoo.transaction import Transaction

NEEDED = ("models.parquet", "checkpoints.parquet")
BLOCK = 2**22


def repair_zoo(store: Store, found: Sequence[Finding]) -> list[tuple[str, str | None, int | None, str, str, str]]:
    """Mend what `found` says is damaged, in a zoo whose lock is held; the findings, each with what was done about it.

    What a damaged table had hidden is found, and mended, once that table has been put back.

    Raises
    ------
    StoreError
        If a file may not be read, or the disk cannot be written; nothing is forgotten then.
    DamagedError
        If the table of models or of checkpoints is damaged and so is its copy.
    """
    for *_, state, detail in found:
        if state == "unreadable":
            raise StoreError(f"cannot repair {store.root}: {detail}")
    _make_way(store)
    outcomes: dict[str, str] = {MANIFEST: "put back from its copy"}
    for file, id, _, state, _ in found:
        if id is None and state != "ok" and file in store.manifest.files:
            outcome = _restored(store, file)
            if outcome:
                outcomes[file] = outcome
    store.forget()
    known = {finding[:3] for finding in found}
    second = list(findings(store))
    found = [*found, *(finding for finding in second if finding[:3] not in known)]
    rest = [finding for finding in second if finding[3] != "ok"]
    for file, id, _, _, detail in rest:
        if id is None and file in NEEDED:
            raise DamagedError(
                f"{detail.rstrip('.')}; its copy in {BACKUP}/ is damaged too, so it cannot be rebuilt: restore it from "
                "a copy of the zoo."
            )
    forgotten = _forget(store, rest)
    try:
        for copy, _ in bad_copies(store.root, store.manifest):
            set_aside(store.root / copy) if (store.root / copy).is_dir() else (store.root / copy).unlink(
                missing_ok=True
            )
        write_copies(store.root, store.manifest, {}, store.content)
    except OSError as error:
        raise write_error(store.root / BACKUP, error) from error
    bad_rows = {(file, id, epoch) for file, id, epoch, *_ in rest if id is not None}
    said: list[str] = []
    for file, id, epoch, state, _ in found:
        if state == "ok":
            said.append("")
        elif id is None and file.startswith(f"{BACKUP}/"):
            said.append("copied again")
        elif id is None:
            said.append(forgotten.get((file, None), outcomes.get(file, "put back")))
        elif (file, id, epoch) in bad_rows:
            said.append(forgotten[file, id])
        else:
            said.append(outcomes.get(file, "put back"))
    return [(*finding, outcome) for finding, outcome in zip(found, said, strict=True)]


def _make_way(store: Store) -> None:
    """Rename whatever lies where the zoo's own files and folders belong but is none of them."""
    for folder in (*FOLDERS[1:], BACKUP):
        path = store.root / folder
        if os.path.lexists(path) and not path.is_dir():
            set_aside(path)
    for name in store.manifest.files:
        path = store.root / name
        if os.path.lexists(path) and not path.is_file():
            set_aside(path)


def _restored(store: Store, file: str) -> str:
    """Put a file back as it was written, if that can be done; what was done."""
    info, path = store.manifest.files[file], store.root / file
    copy = read_copy(store.root, file, info)
    if copy is not None:
        write_bytes(path, copy)
        return "put back from its copy"
    if _cut_to_size(path, info):
        return "put back by cutting off what was appended"
    return ""


def _cut_to_size(path: Path, info: FileInfo) -> bool:
    """Cut a file that begins with all that was written to its size; False if it does not."""
    try:
        if path.stat().st_size <= info.size:
            return False
        digest, left = hashlib.sha256(), info.size
        with path.open("rb") as reading, replacing(path) as temporary, temporary.open("wb") as writing:
            while left and (block := reading.read(min(BLOCK, left))):
                digest.update(block)
                writing.write(block)
                left -= len(block)
            if digest.hexdigest() != info.sha256:
                raise _Other
    except (_Other, OSError):
        return False
    return True


class _Other(Exception):
    """The file is another one."""


def _forget(store: Store, bad: Sequence[Finding]) -> dict[tuple[str, str | None], str]:
    """One transaction that forgets what is damaged; what that means, by file and by (file, model)."""
    said: dict[tuple[str, str | None], str] = {}
    transaction = Transaction(store)
    for file, id, *_ in bad:
        if id is None and file.endswith(".parquet") and file in store.manifest.files:
            transaction.replace(file.removesuffix(".parquet"), None)
            again = "it cannot be had again" if file == "history.parquet" else "measure again to have it"
            said[file, None] = f"lost: forgotten, {again}"
        if id is None and file.startswith("data/"):
            transaction.drop_file(file)
            said[file, None] = "lost: forgotten, give the data with attach_data"
            for data, info in store.manifest.data.items():
                if info.source == "stored" and info.fingerprint in file:
                    transaction.describe_data(data, DataInfo.model_validate({**dict(info), "source": "external"}))
    checkpoints, models = store.frame("checkpoints"), store.models
    lost = pl.DataFrame(
        [(id, epoch) for _, id, epoch, *_ in bad if id is not None and epoch is not None],
        schema={"id": pl.String, "epoch": pl.Int64}, orient="row",
    )  # fmt: skip
    last = checkpoints.group_by("id").agg(pl.col("epoch").max())
    aside = set(lost.join(last, on=["id", "epoch"])["id"]) | {id for _, id, epoch, *_ in bad if id and epoch is None}
    final = dict(last.iter_rows())
    for file, id, epoch, *_ in bad:
        if id is not None:
            ends = epoch is None or epoch == final[id]
            said[file, id] = f"lost: {'the model is set aside as damaged' if ends else 'the checkpoint is forgotten'}"
    if len(lost):
        left = checkpoints.join(lost, on=["id", "epoch"], how="anti", maintain_order="left")
        transaction.replace("checkpoints", left)
    if aside:
        status = pl.when(pl.col("id").is_in(list(aside))).then(pl.lit("damaged")).otherwise(pl.col("status"))
        transaction.set_models(models.with_columns(status.alias("status")))
    kept = set((transaction.table("checkpoints") if len(lost) else checkpoints)["file"])  # type: ignore[index]
    for file, id, *_ in bad:
        if id is None and file in kept:  # some of its models are intact, and their digests say so
            old = store.manifest.files[file]
            transaction.take_file(file, old.model_copy(update={"sha256": sha256_file(store.root / file)}))
            said[file, None] = "kept for the models in it that are intact"
        elif id is None and file.startswith("weights/"):
            transaction.drop_file(file)
            said[file, None] = "lost: forgotten, no model in it is intact"
    try:
        transaction.commit()
    except BaseException:
        transaction.rollback()
        raise
    return said
