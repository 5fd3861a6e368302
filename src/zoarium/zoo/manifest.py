"""`zoo.json`: what a zoo is, and which files, byte for byte, belong to it.

Replacing this one file is what commits a transaction. It is checked before it is believed: its own checksum, its
version, the type of every field, and that no file name leads out of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from zoarium._core.digest import canonical
from zoarium._core.errors import DamagedError, StoreError

if TYPE_CHECKING:
    from zoarium.data.dataset import Dataset

FORMAT_VERSION = 2  # the newest this code reads; a zoo says the oldest that can read it, see `needed_version`
MANIFEST = "zoo.json"
ORIGIN = "hub.json"  # beside it: where a zoo pulled from the hub came from
MANIFEST_LIMIT = 256 * 2**20  # bytes; a larger zoo.json is not one of ours
BACKUP = "backup"  # copies of zoo.json and of the tables nothing can rebuild; see zoarium.zoo.backup

_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.@~+=-]{0,199}"
FILE_NAME = re.compile(
    rf"(models|checkpoints|history)\.parquet|(measures|pairs|cells)/{_PLAIN}\.parquet|(weights|data)/{_PLAIN}\.safetensors"
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**62)]


class FileInfo(BaseModel):
    """One file of a zoo: its size and SHA-256, and what a reader wants to know before opening it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: Count
    sha256: Sha256
    rows: Count = Field(default=0, description="rows of a table, or models in a weights file")
    row_bytes: Count = Field(default=0, description="weights files: bytes of one model")


class DataInfo(BaseModel):
    """What a zoo remembers of a data set its models were trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str = Field(pattern=r"^[A-Za-z0-9]{1,128}$")
    task: Literal["classification", "regression", "language"]
    n_outputs: int = Field(ge=1)
    in_shape: tuple[int, ...]
    n_train: int = Field(ge=0)
    n_test: int = Field(ge=0)
    source: Literal["registered", "stored", "external"] = "registered"
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: Dataset, source: Literal["registered", "stored", "external"] = "registered") -> DataInfo:
        """Describe a data set.

        Parameters
        ----------
        data : Dataset
            The whole task, before any variant is taken.
        source : {"registered", "stored", "external"}
            How it is found again: by name in `zoarium.data`, in the zoo itself, or by the user's `attach_data`.
        """
        return cls(
            fingerprint=data.fingerprint, task=data.task, n_outputs=data.n_outputs, in_shape=data.in_shape,
            n_train=len(data.train), n_test=len(data.test), source=source, classes=tuple(map(str, data.classes)),
        )  # fmt: skip


class Manifest(BaseModel):
    """The content of `zoo.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["zoarium"] = "zoarium"
    version: int = 1
    generation: int = Field(default=0, ge=0, description="commits so far")
    created: str = ""
    software: dict[str, str] = Field(default_factory=dict)
    grid: dict[str, Any] | None = None
    axes: list[str] = Field(default_factory=list)
    load: str | None = None
    temperature: str | None = None
    data: dict[str, DataInfo] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileInfo] = Field(default_factory=dict)

    @pydantic.field_validator("files")
    @classmethod
    def _names_stay_inside(cls, files: dict[str, FileInfo]) -> dict[str, FileInfo]:
        for name in files:
            check_name(name)
        return files

    def to_bytes(self) -> bytes:
        """The manifest as JSON with a checksum of itself."""
        content = json.loads(json.dumps(self.model_dump(mode="python"), default=_plain))
        content["checksum"] = _checksum(content)
        return json.dumps(content, indent=1, ensure_ascii=False).encode()


def check_name(name: str) -> None:
    """Refuse a file name that is none of the format's own; such a name cannot leave the folder."""
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"file name {name!r} is not one a zoo can hold")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    return str(value)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def parse_manifest(content: bytes, path: Path, way_out: str = "restore it from a copy of the zoo") -> Manifest:
    """Read the bytes of a `zoo.json`.

    Raises
    ------
    StoreError
        Not a zoo, or a zoo of a newer format.
    DamagedError
        Cut short or changed since it was written.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is cut short or damaged (not JSON: {error}); {way_out}.") from error
    checksum = raw.pop("checksum", None) if isinstance(raw, dict) else None
    # a bit flipped in one of these two must not pass for another program's file, or for a newer format
    same_but = isinstance(raw, dict) and any(
        checksum == _checksum({**raw, "format": "zoarium", "version": version})
        for version in range(1, FORMAT_VERSION + 1)
    )
    if not same_but:
        if not isinstance(raw, dict) or raw.get("format") != "zoarium":
            raise StoreError(f"{path} does not describe a zoo (its format is not 'zoarium'); give the folder of a zoo.")
        version = raw.get("version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{path} has format version {version}, this zoarium reads up to {FORMAT_VERSION}; "
                "run: pip install -U zoarium."
            )
    if checksum != _checksum(raw):
        raise DamagedError(f"{path} is not what was written (its checksum differs); {way_out}.")
    try:
        return Manifest.model_validate(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{path} cannot be used: {place}: {first['msg']}; {way_out}.") from error


def read_manifest(root: Path) -> Manifest:
    """Read `zoo.json` of the zoo in `root`.

    Raises
    ------
    StoreError
        Not a zoo, a zoo of a newer format, or one that may not be read.
    DamagedError
        Not what was written, or missing where the copies of a zoo's tables lie.
    """
    path = root / MANIFEST
    copies = os.path.isdir(root / BACKUP)
    way_out = f"run: zoarium check {root} --repair" if copies else "restore it from a copy of the zoo"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
            raise DamagedError(f"{path} is not a file; {way_out}.")
        with path.open("rb") as file:
            content = file.read(MANIFEST_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if copies:
            raise DamagedError(f"{path} is missing; {way_out}.") from error
        what = "it has no zoo.json" if root.is_dir() else "there is no such folder"
        raise StoreError(f"{root} is not a zoo: {what}; grow one with zoarium grow, or check the path.") from None
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise StoreError(f"cannot read {path}: {error.strerror}; choose a shorter path.") from error
        raise DamagedError(f"{path} cannot be read ({error.strerror or error}); {way_out}.") from error
    if len(content) > MANIFEST_LIMIT:
        raise StoreError(f"{path} is larger than {MANIFEST_LIMIT // 2**20} MiB, which no zoo.json is; check the path.")
    try:
        return parse_manifest(content, path, way_out)
    except DamagedError:
        raise
    except StoreError as error:
        if copies and "does not describe a zoo" in str(error):
            raise DamagedError(f"{path} is not what was written (no zoo is described in it); {way_out}.") from error
        raise
