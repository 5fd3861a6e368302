"""Where a pulled zoo came from: `hub.json` beside `zoo.json`, and no part of the zoo itself."""

from __future__ import annotations

from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from zoarium._core.errors import StoreError
from zoarium._core.files import write_text
from zoarium.zoo.manifest import ORIGIN

ORIGIN_LIMIT = 2**16  # bytes


class Origin(BaseModel):
    """A data set on the hub at one commit.

    Neither an address nor a token is kept: a folder from elsewhere can name a repository, but never lead a token to
    another server, and what comes from there must have the checksums of `zoo.json`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_.-]{1,96})?$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the commit, whatever was asked for")
    asked: str | None = Field(default=None, max_length=250, description="branch, tag or commit that was asked for")


def read_origin(root: Path) -> Origin | None:
    """Origin of the zoo in `root`; None for one that was not pulled.

    Raises
    ------
    StoreError
        If the file is not one of ours.
    """
    path = root / ORIGIN
    try:
        with path.open("rb") as file:
            content = file.read(ORIGIN_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}; check its permissions.") from error
    try:
        return Origin.model_validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise StoreError(f"{path} does not say where the zoo came from: {place}: {first['msg']}; delete it.") from error


def write_origin(root: Path, origin: Origin) -> None:
    """Record where the zoo in `root` comes from."""
    write_text(root / ORIGIN, origin.model_dump_json(indent=1) + "\n")
