"""Published files: found in a folder, or downloaded into it, and used only if they are what was published.

A file is looked for in the folder of its data set under the root: the argument `root`, else ``$ZOARIUM_DATA``, else the
user's cache. A download goes to a part file, which a later call resumes, and takes its name only when its size and
checksum are those published. Nothing else is ever parsed. ``ZOARIUM_OFFLINE=1`` forbids downloads.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from zoarium._core.errors import DataError
from zoarium._core.files import sync, write_error
from zoarium._core.places import data_folder

TIMEOUT = 30  # seconds without a byte
TRIES = 3  # connections; each continues where the last one broke
CHUNK = 1 << 20
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A file as its publisher offers it.

    Parameters
    ----------
    url : str
        Where it is.
    size : int
        Bytes.
    sha256 : str
        Checksum, hexadecimal.
    md5 : str
        The older checksum that the publisher states, for comparison by hand; it is not relied on.
    file : str
        Name to keep it under, by default the URL's last part.
    """

    url: str
    size: int
    sha256: str
    md5: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.file or self.url.rpartition("/")[2]

    def __str__(self) -> str:
        size = f"{self.size / 1e6:.0f} MB" if self.size >= 1e6 else f"{self.size:,} bytes"
        return f"{self.name} ({size}, sha256 {self.sha256}{f', md5 {self.md5}' if self.md5 else ''})"


def folders(data: str, root: str | Path = "") -> tuple[Path, Path]:
    """The folder of a data set, where downloads go, and the root it lies in: files are looked for in both."""
    base = Path(root).expanduser() if root else data_folder()
    return base / data, base


def published(file: Published, data: str, root: str | Path = "") -> Path:
    """The path of a published file, verified, downloaded first if it is not there.

    Parameters
    ----------
    file : Published
    data : str
        The data set it belongs to, which names its folder.
    root : str or Path, optional
        Folder of all data sets; by default ``$ZOARIUM_DATA`` or the user's cache.

    Raises
    ------
    DataError
        If the file there is not the published one, or it is not there and cannot be downloaded: with its place, its
        size and its checksum.
    """
    own, base = folders(data, root)
    for folder in (own, base):
        path = folder / file.name
        if path.is_file():
            _verify(path, file, data, path)
            return path
    try:
        own.mkdir(parents=True, exist_ok=True)
        with FileLock(own / f".{file.name}.lock"):
            if not (own / file.name).is_file():  # another process may have brought it meanwhile
                _download(file, data, own)
    except OSError as error:
        raise write_error(own / file.name, error) from error
    _verify(own / file.name, file, data, own / file.name)
    return own / file.name


def _verify(path: Path, file: Published, data: str, shown: Path) -> None:
    """Size and checksum, or an error that names the file and both values."""
    size = path.stat().st_size
    if size != file.size:
        raise DataError(
            f"data {data!r}: {shown} has {size:,} bytes, but {file.name} was published with {file.size:,}; it is "
            "incomplete or another version: delete it and load again."
        )
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != file.sha256:
        raise DataError(
            f"data {data!r}: {shown} has sha256 {found}, but {file.name} was published with {file.sha256}; it is "
            "damaged or not that file: delete it and load again."
        )


def _download(file: Published, data: str, folder: Path) -> None:
    part = folder / f".{file.name}.part"
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    reason = "ZOARIUM_OFFLINE is set"
    if os.environ.get("ZOARIUM_OFFLINE", "0") in ("", "0"):
        log.info("downloading %s to %s", file, folder)
        for _ in range(TRIES):
            try:
                reason = _receive(file, part)
            except NETWORK_ERRORS as error:
                reason = _reason(error)
                if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500:
                    break  # asking again would not help
            if not reason:
                break
    if reason:
        kept = part.stat().st_size if part.is_file() else 0
        resume = f" {kept:,} of {file.size:,} bytes have arrived, and loading again resumes." if kept else ""
        raise DataError(
            f"data {data!r} needs {file}, which is not in {folder} and cannot be downloaded from {file.url}: {reason}."
            f"{resume} Download it elsewhere and put it there, or set ZOARIUM_DATA to the folder that holds it."
        )
    try:
        _verify(part, file, data, part)
    except DataError:
        part.unlink()
        raise
    sync(part)
    os.replace(part, folder / file.name)
    sync(folder)


def _receive(file: Published, part: Path) -> str:
    """Append what is missing to `part`; what went wrong, or nothing."""
    have = part.stat().st_size if part.is_file() else 0
    if have == file.size:
        return ""
    request = urllib.request.Request(file.url, headers={"User-Agent": "zoarium", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    opener = urllib.request.build_opener(_WebOnly)
    with opener.open(request, timeout=TIMEOUT) as answer:
        start = f"bytes {have}-"
        resumed = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(start)
        if have and not resumed:
            have = 0  # the server sends everything again
            if answer.status == 206:
                part.unlink()
                return "the server resumed at the wrong place"
        length = answer.headers.get("Content-Length")
        if length is not None and length.isdigit() and have + int(length) != file.size:
            return f"the server offers {have + int(length):,} bytes, but {file.size:,} were published"
        with part.open("ab" if have else "wb") as out:
            while block := answer.read(CHUNK):
                have += len(block)
                if have > file.size:
                    out.truncate(0)
                    return f"the server sends more than the {file.size:,} bytes published"
                out.write(block)
    return "" if have == file.size else "the connection ended early"


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The request to follow, or an error for a file or another scheme."""
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it redirects to {newurl[:80]!r}, which is no web address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with contextlib.suppress(OSError):
            error.close()
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    return str(error) or type(error).__name__
