"""Changes to a zoo that become visible together, or not at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pydantic

from zoarium._core.errors import StoreError
from zoarium.zoo.datafile import write_data
from zoarium.zoo.foreign.reference import needed_version
from zoarium.zoo.manifest import DataInfo, FileInfo, Manifest, check_name
from zoarium.zoo.store import NEEDED, Store, table_file
from zoarium.zoo.weights import WeightsFile, write_weights

if TYPE_CHECKING:
    from torch import Tensor

    from zoarium.data.dataset import Dataset

HEADER = ("grid", "axes", "load", "temperature", "data")
RESERVED = ("format", "version", "generation", "created", "software", "files", "checksum", "extra")


class Transaction:
    """Collects changes; made by ``zoo.writing()``, which commits them on the way out.

    Nothing is visible to anybody before :meth:`commit`. An error inside the block takes everything back since the last
    commit, files included.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: dict[str, pl.DataFrame | None] = {}
        self._files: dict[str, FileInfo] = {}
        self._dropped: set[str] = set()
        self._header: dict[str, Any] = {}

    # ------------------------------------------------------------------ tables

    def table(self, name: str) -> pl.DataFrame | None:
        """A table as it will be, e.g. ``models`` or ``pairs/cka``; None if there is none."""
        return self._tables[name] if name in self._tables else self._store.table(name)

    def replace(self, name: str, frame: pl.DataFrame | None) -> None:
        """Store `frame` as the whole table `name`; None removes it.

        Raises
        ------
        StoreError
            For an unknown kind of table, missing columns, or repeated keys.
        """
        try:
            check_name(table_file(name))
        except ValueError:
            kinds = "models, checkpoints, history, measures/NAME, pairs/NAME or cells/NAME"
            raise StoreError(f"a zoo has no table {name!r}; write to {kinds}.") from None
        if frame is not None:
            frame = _checked(name, frame)
        self._tables[name] = frame

    def set_models(self, models: pl.DataFrame) -> None:
        """Store `models` as the whole table of models, a row each, with at least ``id`` and ``status``."""
        self.replace("models", models)

    def upsert(self, name: str, rows: pl.DataFrame, key: Sequence[str]) -> None:
        """Replace the rows of a table that have the same key, in their place; append the others.

        Parameters
        ----------
        name : str
            ``models``, ``checkpoints``, ``history``, ``measures/NAME``, ``pairs/NAME`` or ``cells/NAME``.
        rows : polars.DataFrame
            Columns the table does not have are added (null in older rows); columns missing here become null.
        key : sequence of str
            Columns that identify a row.

        Raises
        ------
        StoreError
            For keys that are missing or repeated, or a column whose type changes.
        """
        keys = [key] if isinstance(key, str) else list(key)
        for column in keys:
            if column not in rows.columns:
                raise StoreError(f"rows for {name!r} lack their key {column!r}; they have: {', '.join(rows.columns)}.")
        if rows.select(keys).is_duplicated().any():
            twice = rows.select(keys).filter(rows.select(keys).is_duplicated()).row(0)
            raise StoreError(f"rows for {name!r} hold the key {dict(zip(keys, twice, strict=True))} more than once.")
        old = self.table(name)
        if old is None or not len(old):
            self.replace(name, rows)
            return
        for column in keys:
            if column not in old.columns:
                raise StoreError(f"table {name!r} has no column {column!r}; it has: {', '.join(old.columns)}.")
        old, rows = _same_types(name, old, rows)
        index = np.arange(len(old) + len(rows))
        near = old.select(keys).with_row_index("_old").filter(pl.col(keys[0]).is_in(rows[keys[0]].unique().implode()))
        if rows[keys[0]].null_count():
            near = old.select(keys).with_row_index("_old")
        if len(near):  # rows to replace, found among the few that share the first column of their key
            placed = rows.select(keys).with_row_index("_new").join(near, on=keys, how="inner", nulls_equal=True)
            new = placed["_new"].to_numpy() + len(old)
            index[placed["_old"].to_numpy()] = new
            index = np.delete(index, new)
        both = pl.concat([old, rows], how="diagonal", rechunk=True)
        self.replace(name, both if len(index) == len(both) else both[index])

    # ------------------------------------------------------------------ weights and data

    def add_weights(
        self,
        name: str,
        epoch: int,
        step: int,
        ids: Sequence[str],
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> WeightsFile:
        """Write stacked weights, each (n, *shape), and a checkpoint row for each model; see :func:`write_weights`."""
        written = write_weights(self._store.root, name, epoch, step, ids, params, buffers)
        self.add_weights_file(written)
        return written

    def add_weights_file(self, written: WeightsFile) -> None:
        """Take in a file that :func:`write_weights` wrote, perhaps in another process."""
        path = self._store.path_of(written.name)
        if not path.is_file() or path.stat().st_size != written.info.size:
            raise StoreError(f"{path} is not there as it was written; write the weights again.")
        self._files[written.name] = written.info
        n = len(written.ids)
        rows = pl.DataFrame(
            {
                "id": list(written.ids),
                "epoch": [written.epoch] * n,
                "step": list(written.step),
                "file": [written.name] * n,
                "row": list(range(n)),
                "digest": list(written.digests),
            },
            schema=NEEDED["checkpoints"],
        )
        self.upsert("checkpoints", rows, key=["id", "epoch"])

    def take_file(self, name: str, info: FileInfo) -> None:
        """Take in a weights or data file that lies in its place already and whose checkpoint rows are written apart."""
        self._files[name] = info

    def add_data(self, name: str, data: Dataset) -> None:
        """Keep a data set in the zoo itself, so that its models can be measured anywhere."""
        file, info = write_data(self._store, data)
        if info is not None:
            self._files[file] = info
        self.describe_data(name, DataInfo.of(data, "stored"))

    def describe_data(self, name: str, info: DataInfo | Mapping[str, Any]) -> None:
        """Record what the data set called `name` is, without keeping its numbers."""
        described = dict(self._header.get("data", self._store.manifest.data))
        self.update_header(data={**described, name: info})

    def drop_file(self, name: str) -> None:
        """Forget a weights or data file; it is deleted after the commit."""
        self._dropped.add(name)

    # ------------------------------------------------------------------ header

    def update_header(self, **fields: Any) -> None:
        """Set grid, axes, load, temperature or data; any other name is kept as a JSON value in ``zoo.info``."""
        for name in fields:
            if name in RESERVED:
                raise StoreError(f"{name!r} in zoo.json is kept by the store; choose another name.")
        known = {name: value for name, value in fields.items() if name in HEADER}
        others = {name: value for name, value in fields.items() if name not in HEADER}
        if others:
            self._header["extra"] = {**self._header.get("extra", self._store.manifest.extra), **others}
        self._header.update(known)
        self._manifest({})  # a value that cannot be stored is refused here, where it was given

    # ------------------------------------------------------------------ end

    def _manifest(self, files: dict[str, FileInfo]) -> Manifest:
        old = self._store.manifest
        try:
            new = Manifest.model_validate({**dict(old), **self._header, "files": files})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise StoreError(f"zoo.json cannot hold {place} = {first.get('input')!r}: {first['msg']}.") from error
        new.generation = old.generation + 1
        if "checkpoints" in self._tables:
            new.version = max(old.version, needed_version(self._tables["checkpoints"]))
        return new

    def commit(self) -> None:
        """Make everything so far part of the zoo, in one step; the transaction can go on afterwards."""
        store = self._store
        tables = dict(self._tables)
        contents: dict[str, bytes] = {}
        files = {**store.manifest.files, **self._files}
        for name, frame in tables.items():
            file = table_file(name)
            if frame is None:
                files.pop(file, None)
                continue
            content = _parquet(name, frame)
            info = FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest(), rows=len(frame))
            if files.get(file) != info:
                files[file], contents[file] = info, content
        if "checkpoints" in tables:
            used = set(tables["checkpoints"]["file"].unique()) if tables["checkpoints"] is not None else set()
            self._dropped |= {name for name in files if name.startswith("weights/") and name not in used}
        for name in self._dropped:
            files.pop(name, None)
        if files == store.manifest.files and not self._header and not store.unbegun:
            return
        store.commit(self._manifest(files), tables, contents, [name for name in self._files if name in files])
        self._reset()

    def rollback(self) -> None:
        """Forget everything since the last commit, and remove the files it wrote."""
        for name in self._files:
            if name not in self._store.manifest.files:  # a commit cut off after its last step has them
                try:
                    (self._store.root / name).unlink(missing_ok=True)
                except OSError:
                    continue  # unreferenced, so harmless
        self._reset()

    def _reset(self) -> None:
        self._tables, self._files, self._dropped, self._header = {}, {}, set(), {}


def _parquet(name: str, frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    try:
        frame.write_parquet(buffer, compression="zstd")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError) as error:
        raise StoreError(f"table {name!r} cannot be stored as Parquet: {str(error).splitlines()[0]}.") from error
    return buffer.getvalue()


def _checked(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    for column, kind in frame.schema.items():
        if kind == pl.Object:
            raise StoreError(
                f"column {column!r} of {name!r} holds Python objects; store numbers, text or lists of them."
            )
    for column, kind in NEEDED.get(name, {}).items():
        if column not in frame.columns:
            raise StoreError(f"table {name!r} needs a column {column!r}; it has: {', '.join(frame.columns)}.")
        if frame.schema[column] != kind:
            try:
                frame = frame.with_columns(pl.col(column).cast(kind))
            except pl.exceptions.PolarsError as error:
                found = frame.schema[column]
                raise StoreError(f"column {column!r} of {name!r} must be {kind}, found {found}.") from error
        if frame[column].null_count():
            raise StoreError(f"column {column!r} of {name!r} has empty values; every row needs one.")
    if name == "models" and frame["id"].is_duplicated().any():
        twice = frame["id"].filter(frame["id"].is_duplicated())[0]
        raise StoreError(f"model id {twice!r} occurs more than once; ids name models, give each its own.")
    return frame


def _same_types(name: str, old: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both tables with shared columns of one type; numbers widen, an all-null column takes the other's type."""
    for column in new.columns:
        if column not in old.columns or old.schema[column] == new.schema[column]:
            continue
        a, b = old.schema[column], new.schema[column]
        if b == pl.Null or _empty(new[column]):
            new = new.with_columns(pl.lit(None, dtype=a).alias(column))
        elif a == pl.Null or _empty(old[column]):
            old = old.with_columns(pl.lit(None, dtype=b).alias(column))
        else:
            try:
                joint = pl.concat([old.select(column).clear(), new.select(column).clear()], how="vertical_relaxed")
                kind = joint.schema[column]
                if (kind == pl.String) != (a == pl.String):
                    raise pl.exceptions.SchemaError("numbers do not become text")
                old, new = old.with_columns(pl.col(column).cast(kind)), new.with_columns(pl.col(column).cast(kind))
            except pl.exceptions.PolarsError as error:
                raise StoreError(
                    f"column {column!r} of {name!r} holds {a} and cannot take {b}; write values of that type, "
                    "or give the column another name."
                ) from error
    return old, new


def _empty(column: pl.Series) -> bool:
    return column.null_count() == len(column)
