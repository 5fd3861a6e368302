"""Members of tar and zip archives, read one by one into memory: nothing is ever extracted.

So no name can lead out of a folder, and no link or device can be made. Each member has a bound in bytes.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from zoarium._core.errors import DataError


def read_tar(path: Path, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """Named members of a tar archive (gzip or plain), each at most so many bytes long.

    Raises
    ------
    DataError
        For a member that is missing, no regular file or longer; for more members or bytes than any such archive has;
        for a damaged archive.
    """
    found: dict[str, bytes] = {}
    passed = 0
    try:
        with tarfile.open(path, "r|*") as archive:  # a stream: no seeking, each byte unpacked once
            for count, member in enumerate(archive):
                passed += member.size
                if count > 1000 or passed > 4 * sum(wanted.values()) + (1 << 20):
                    raise DataError(f"{path} holds far more than {', '.join(wanted)}; it is not the published archive.")
                if member.name not in wanted:
                    continue
                if not member.isreg() or member.size > wanted[member.name]:
                    raise DataError(
                        f"{path}: {member.name} must be a plain file of at most {wanted[member.name]:,} bytes, found "
                        f"{'a link or device' if not member.isreg() else f'{member.size:,}'}; it is not the published "
                        "archive."
                    )
                content = archive.extractfile(member)
                found[member.name] = content.read() if content else b""
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {str(error) or type(error).__name__}; download it again.") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path} holds no {missing[0]}; it is not the published archive.")
    return found


class Members:
    """Files of a zip archive, or of a folder with the same contents, by their names with ``/``.

    Parameters
    ----------
    path : Path
        A zip archive or a folder.
    limit : int
        Bytes a file may have.
    count : int
        Files there may be.
    """

    def __init__(self, path: Path, limit: int, count: int) -> None:
        self.path, self.limit = path, limit
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            self.names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        else:
            try:
                self._zip = zipfile.ZipFile(path)
                self.names = sorted(info.filename for info in self._zip.infolist() if not info.is_dir())
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise DataError(f"{path} is no zip archive: {error}; download it again.") from error
        self._known = set(self.names)
        if len(self.names) > count:
            raise DataError(f"{path} holds {len(self.names):,} files, more than the {count:,} published.")

    def read(self, name: str) -> bytes:
        """Content of a file, or an error that names it; a name that leads out of the folder is none of its files."""
        if name not in self._known:
            raise DataError(f"{self.path} holds no {name}; it is incomplete.")
        try:
            if self._zip is not None:
                with self._zip.open(name) as file:
                    content = file.read(self.limit + 1)  # whatever the header says of its size
            else:
                with (self.path / name).open("rb") as file:
                    content = file.read(self.limit + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error}); download it again.") from error
        if len(content) > self.limit:
            raise DataError(f"{self.path}: {name} has more than {self.limit:,} bytes, too many for what it should be.")
        return content

    def under(self, folder: str) -> Iterator[str]:
        """Names that start with a folder's."""
        return (name for name in self.names if name.startswith(folder))

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()
