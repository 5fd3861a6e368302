"""A zoo's folder: its manifest, its tables, and the lock of its one writer.

`zoo.json` is the single point of commit. A transaction leaves each changed table as ``NAME.parquet.pending``, replaces
`zoo.json` (which holds the SHA-256 of every file), then renames the pending tables into place. Whoever opens the zoo
after a crash between the last two steps finds a table whose hash differs from the manifest beside a pending one whose
hash agrees, and uses that: several tables change together or not at all. What nothing can rebuild is written twice; see
:mod:`zoarium.zoo.backup`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from zoarium._core.digest import sha256_file
from zoarium._core.errors import DamagedError, StoreError
from zoarium._core.files import set_aside, sync, write_bytes, write_error, write_synced
from zoarium.zoo.backup import newest_manifest, prune_copies, write_copies
from zoarium.zoo.folder import FOLDERS, PENDING, UNBEGUN, make_room, printable, state_of, unlink
from zoarium.zoo.lock import WriterLock
from zoarium.zoo.manifest import BACKUP, MANIFEST, ORIGIN, FileInfo, Manifest, read_manifest

UNFINISHED = "growing"  # states of programs that were interrupted
UNREADABLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
GONE = (FileNotFoundError, NotADirectoryError)
TABLE_CELLS_LIMIT = 2 * 10**9  # rows x columns; a small file can claim more than any memory holds

NEEDED: dict[str, dict[str, Any]] = {
    "models": {"id": pl.String, "status": pl.String},
    "checkpoints": {
        "id": pl.String, "epoch": pl.Int64, "step": pl.Int64, "file": pl.String, "row": pl.Int64, "digest": pl.String,
    },
    "history": {"id": pl.String, "epoch": pl.Int64},
}  # fmt: skip


_NO_COPY = "its copies in backup/ are damaged too: restore it from a copy of the zoo"
_EMPTY = {name: pl.DataFrame(schema=schema) for name, schema in NEEDED.items()}


def table_file(name: str) -> str:
    """File of a table, e.g. ``measures/cka`` -> ``measures/cka.parquet``."""
    return f"{name}.parquet"


class Store:
    """The folder of one zoo, as it was at one commit; tables are read, and verified, when first asked for."""

    def __init__(self, root: Path, manifest: Manifest, *, lost: StoreError | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self.unsettled = False  # a commit succeeded but its pending tables are not renamed yet
        self.lost = lost  # why zoo.json cannot be used, where `manifest` is a copy of it
        self.unbegun = False  # no zoo.json yet
        self.attached: dict[Any, Any] = {}  # data sets and nets given by the user, and data loaded before
        self._real = os.path.realpath(root)
        self._tables: dict[str, pl.DataFrame] = {}
        self._rows: dict[str, int] | None = None
        self._kept: tuple[pl.DataFrame, dict[str, list[int]]] | None = None
        self._lock: WriterLock | None = None

    # ------------------------------------------------------------------ open and create

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open the zoo in a folder; only `zoo.json` is read."""
        root = printable(Path(path))
        return cls(root, read_manifest(root))

    @classmethod
    def open_copy(cls, path: str | Path) -> Store:
        """Open a zoo even where `zoo.json` is damaged or missing, by the copy of it; `lost` then says why.

        Raises
        ------
        DamagedError
            If there is no copy either.
        """
        try:
            return cls.open(path)
        except DamagedError as error:
            manifest = newest_manifest(Path(path))
            if manifest is None:
                raise DamagedError(str(error).replace(f"run: zoarium check {path} --repair", _NO_COPY)) from error
            return cls(Path(path), manifest, lost=error)

    @classmethod
    def create(cls, path: str | Path | None, *, begin: bool = True, **header: Any) -> Store:
        """Make an empty zoo; without a path, in a temporary folder that goes with the returned object.

        With ``begin=False`` the folder becomes a zoo with the first commit, and is none if that never comes.
        """
        temporary = path is None
        root = Path(tempfile.mkdtemp(prefix="zoarium-")) if path is None else printable(Path(path))
        try:
            if not temporary:
                make_room(root)
            root.mkdir(parents=True, exist_ok=True)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(created=created, software=software_versions(), **header)
            store = cls(root, manifest)
            if begin:
                write_bytes(root / MANIFEST, manifest.to_bytes())
                write_copies(root, manifest, {}, lambda file: None)
            else:
                store.unbegun = True
                (root / UNBEGUN).touch()
        except OSError as error:
            raise write_error(root, error) from error
        if temporary:
            weakref.finalize(store, _remove_folder, root, os.getpid())
        return store

    def refresh(self) -> bool:
        """Look whether another process has committed since; True if so."""
        if self.lost is not None or self.unbegun:
            return False
        latest = read_manifest(self.root)
        if latest == self.manifest:
            return False
        self.manifest = latest
        self.forget()
        return True

    # ------------------------------------------------------------------ files

    def path_of(self, name: str) -> Path:
        """Where a file of the zoo lies; refuses a symbolic link that leads out of the folder."""
        path = self.root / name
        real = os.path.realpath(path)
        if os.path.commonpath([real, self._real]) != self._real:
            raise StoreError(f"{path} is a link that leads out of the zoo; copy the file it points to in its place.")
        return path

    def info_of(self, name: str) -> FileInfo:
        """Size and checksum of a file, which must be listed in the manifest."""
        try:
            return self.manifest.files[name]
        except KeyError:
            raise DamagedError(f"{self.root / name} is not listed in zoo.json; {self._repair}.") from None

    def verified_path(self, name: str, *, whole: bool = False) -> Path:
        """Path of a weights or data file that has the size (with `whole`, every byte) it was written with."""
        info = self.info_of(name)
        path = self.path_of(name)
        if self.on_hub(name):
            from zoarium.zoo.hub.pull import fetch_missing

            fetch_missing(self, name)
        try:
            size = path.stat().st_size
        except PermissionError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions.") from error
        except OSError as error:
            raise DamagedError(f"{path} {state_of(path)}; {self._repair}.") from error
        if not path.is_file():
            raise DamagedError(f"{path} is not a file; {self._repair}.")
        if size != info.size:
            raise DamagedError(f"{path} has {size} bytes, not the {info.size} that were written; {self._repair}.")
        if whole and self._checksum(path) != info.sha256:
            raise DamagedError(f"{path} is not what was written (its checksum differs); {self._repair}.")
        return path

    def on_hub(self, name: str) -> bool:
        """Whether a file of a zoo that was pulled from the hub has not been downloaded yet."""
        return not self.path_of(name).exists() and (self.root / ORIGIN).is_file()

    def _checksum(self, path: Path) -> str:
        try:
            return sha256_file(path)
        except PermissionError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions.") from error
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror or error}); {self._repair}.") from error

    @property
    def _repair(self) -> str:
        return f"restore it from a copy, or run: zoarium check {self.root} --repair"

    # ------------------------------------------------------------------ tables

    @property
    def table_names(self) -> list[str]:
        """Stored tables, e.g. ``models`` and ``measures/cka``."""
        return [name.removesuffix(".parquet") for name in self.manifest.files if name.endswith(".parquet")]

    def table(self, name: str) -> pl.DataFrame | None:
        """A stored table, verified against the manifest; None if there is no such table."""
        if name not in self._tables:
            content = self._table_bytes(table_file(name))
            if content is None:
                return None
            frame = self._parse(name, content)
            self._tables[name] = frame
        return self._tables[name]

    def table_content(self, name: str) -> bytes | None:
        """A stored table as the bytes of its Parquet file, verified; None if there is no such table."""
        return self._table_bytes(table_file(name))

    @property
    def models(self) -> pl.DataFrame:
        """The models table; empty before the first commit."""
        return self.frame("models")

    def frame(self, name: str) -> pl.DataFrame:
        """One of the tables every zoo has, empty where nothing is stored yet."""
        found = self.table(name)
        return _EMPTY[name] if found is None else found

    @property
    def rows(self) -> dict[str, int]:
        """Row of each model in the models table."""
        models = self.models  # first: reading it may find a newer commit
        if self._rows is None:
            self._rows = {i: n for n, i in enumerate(models["id"].to_list())}
        return self._rows

    def checkpoints_of(self, id: str) -> list[dict[str, Any]]:
        """Checkpoints of one model by epoch; runs no query, so a forked worker may ask."""
        table = self.frame("checkpoints")
        if self._kept is None or self._kept[0] is not table:
            rows: dict[str, list[int]] = {}
            for n, i in enumerate(table["id"].to_list()):
                rows.setdefault(i, []).append(n)
            self._kept = (table, rows)
        found = [table.row(n, named=True) for n in self._kept[1].get(id, [])]
        return sorted(found, key=lambda row: row["epoch"])

    def _table_bytes(self, file: str) -> bytes | None:
        """Content of a table, from its pending file where a crash left it there."""
        unchanged = 0
        while unchanged < 2:
            info = self.manifest.files.get(file)
            if info is None:
                return None
            for suffix in ("", PENDING):
                content = self._read(file + suffix, info)
                if content is not None:
                    return content
            # a writer may have committed, or renamed, between our reads
            unchanged = 0 if self.refresh() else unchanged + 1
        path = self.root / file
        raise DamagedError(f"{path} {state_of(path)}; {self._repair}.")

    def _read(self, file: str, info: FileInfo) -> bytes | None:
        """Content of a file that is what was written; None if it is missing or damaged."""
        path = self.path_of(file)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
                return None
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != info.size:
                    return None
                content = stream.read(info.size)
        except OSError as error:
            if error.errno in UNREADABLE:
                return None
            raise StoreError(f"cannot read {path}: {error.strerror or error}; check its permissions.") from error
        return content if hashlib.sha256(content).hexdigest() == info.sha256 else None

    def _parse(self, name: str, content: bytes) -> pl.DataFrame:
        path = self.root / table_file(name)
        try:
            columns = pl.read_parquet_schema(content)
            rows = pl.scan_parquet(content).select(pl.len()).collect().item()
            if rows != self.manifest.files[table_file(name)].rows or rows * len(columns) > TABLE_CELLS_LIMIT:
                raise DamagedError(f"{path} claims {rows} rows, which is not what zoo.json says; {self._repair}.")
            frame = pl.read_parquet(content)
        except (pl.exceptions.PolarsError, OSError, ValueError, pl.exceptions.PanicException) as error:
            raise DamagedError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}.") from error
        for column, kind in NEEDED.get(name, {}).items():
            if frame.schema.get(column) != kind:
                found = frame.schema.get(column, "missing")
                raise DamagedError(f"{path}: column {column!r} must be {kind}, found {found}; {self._repair}.")
        return frame

    # ------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def locked(self, *, clean: bool = False) -> Iterator[None]:
        """Be the one writer of this zoo inside the block; blocks may nest.

        Parameters
        ----------
        clean : bool, default False
            Also remove, before and after, weights that a killed run wrote but never committed; not while the folder
            ``growing`` holds an unfinished program, which may go on from them.

        Raises
        ------
        LockedError
            If another process (or another `Zoo` object) is writing.
        """
        if self._lock is not None and self._lock.owner == os.getpid():
            yield
            return
        lock = self._lock = WriterLock(self.root)
        try:
            if self.lost is not None:
                self._put_back()
            self.refresh()
            self.settle(clean=clean)
            yield
            if clean:
                self.settle(clean=True)
        finally:
            self._lock = None
            lock.release()

    def _put_back(self) -> None:
        """Replace a damaged or missing zoo.json by the newest copy of it; what lay there is kept under another name."""
        newest = newest_manifest(self.root) or self.manifest
        try:
            there = read_manifest(self.root)
        except DamagedError:
            there = None
        if there is not None and there.generation >= newest.generation:
            self.manifest = there  # another writer was faster
        else:
            self.manifest = newest
            set_aside(self.root / MANIFEST)
            write_bytes(self.root / MANIFEST, newest.to_bytes())
        self.lost = None
        self.forget()

    def forget(self) -> None:
        """Read every table again when it is next asked for."""
        self._tables.clear()
        self._rows = None

    def settle(self, *, clean: bool = False) -> None:
        """Finish what a crash interrupted: rename pending tables that were committed, remove what was not."""
        listed = self.manifest.files
        with contextlib.suppress(OSError):
            clean = clean and not any((self.root / UNFINISHED).iterdir())
        for folder in FOLDERS:
            with contextlib.suppress(*GONE), os.scandir(self.root / folder) as entries:
                for entry in list(entries):
                    name = f"{folder}/{entry.name}".removeprefix("/")
                    if name.endswith(PENDING):
                        self._settle_table(name.removesuffix(PENDING))
                    elif clean and entry.is_file():
                        temporary = entry.name.startswith(".") and entry.name.endswith(".tmp")
                        if temporary or (name not in listed and folder in ("weights", "data")):
                            unlink(Path(entry.path))
        prune_copies(self.root, self.manifest)
        self.unsettled = False

    def _settle_table(self, file: str) -> None:
        info = self.manifest.files.get(file)
        pending = self.root / (file + PENDING)
        if info is not None and self._read(file, info) is None and self._read(file + PENDING, info) is not None:
            try:
                os.replace(pending, self.root / file)
            except OSError as error:
                raise write_error(self.root / file, error) from error
        else:
            unlink(pending)

    def commit(
        self, manifest: Manifest, tables: dict[str, pl.DataFrame | None], contents: dict[str, bytes], new: list[str]
    ) -> None:
        """Make `manifest` the zoo: changed tables as bytes in `contents`, `new` files already written.

        Raises
        ------
        StoreError
            If the disk cannot be written; the zoo is then as it was.
        """
        if self.unsettled:
            self.settle()
        if self._lock is not None:
            self._lock.still_ours()
        temporary = self.root / f".{MANIFEST}.{os.getpid()}.tmp"
        path = self.root
        committed = False
        try:
            try:
                for file, content in contents.items():
                    path = self.root / (file + PENDING)
                    path.parent.mkdir(exist_ok=True)
                    write_synced(path, content)
                path = self.root / BACKUP
                write_copies(self.root, manifest, contents, self.content)
                for file in new:
                    path = self.root / file
                    sync(path)
                for folder in sorted({(self.root / name).parent for name in [*contents, *new]}):
                    sync(folder)
                path = self.root / MANIFEST
                write_synced(temporary, manifest.to_bytes())
                os.replace(temporary, path)
            except OSError as error:
                raise write_error(path, error) from error
            committed = True
            gone = [name for name in self.manifest.files if name not in manifest.files]
            self._adopt(manifest, tables)
            self.unsettled = True
            with contextlib.suppress(OSError):  # what follows tidies up; readers do without it
                sync(self.root)
                for file in contents:
                    os.replace(self.root / (file + PENDING), self.root / file)
                for name in gone:
                    unlink(self.root / name)
                prune_copies(self.root, manifest)
                if self.unbegun:
                    unlink(self.root / UNBEGUN)
                    self.unbegun = False
                self.unsettled = False
        finally:
            if not committed:
                unlink(temporary)
                for file in contents:
                    unlink(self.root / (file + PENDING))
                prune_copies(self.root, self.manifest)

    def content(self, file: str) -> bytes | None:
        """Content of a table, in its place or pending, if it is what was written; None otherwise."""
        info = self.manifest.files.get(file)
        return None if info is None else self._read(file, info) or self._read(file + PENDING, info)

    def _adopt(self, manifest: Manifest, tables: dict[str, pl.DataFrame | None]) -> None:
        self.manifest = manifest
        for name, frame in tables.items():
            if frame is None:
                self._tables.pop(name, None)
            else:
                self._tables[name] = frame
        if "models" in tables:
            self._rows = None


def _remove_folder(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker must not take its parent's zoo away
        shutil.rmtree(folder, ignore_errors=True)


def software_versions() -> dict[str, str]:
    """Versions of what decides the bits of a zoo."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in ("zoarium", "torch", "numpy", "polars", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
