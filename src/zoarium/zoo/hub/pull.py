"""A zoo from the hub: its tables at once, weights file by file when they are needed, all verified.

The hub's cache holds what was downloaded; the zoo's folder holds links to it (copies, where the file system cannot
link), so that a second pull, of the same or a later revision, transfers only what is new.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.digest import sha256_file
from zoarium._core.errors import DamagedError, HubError, StoreError
from zoarium._core.extras import require
from zoarium._core.files import write_bytes, write_error
from zoarium.zoo.hub.faults import WHY, hub_api, hub_faults
from zoarium.zoo.hub.origin import Origin, read_origin, write_origin
from zoarium.zoo.manifest import MANIFEST, FileInfo, Manifest, read_manifest
from zoarium.zoo.store import Store

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo

Progress = Callable[[float, float, str], None]
THREADS = 8  # downloads at a time
SESSION = "hub session"  # token and cache of this process, in Store.attached; never on disk


def from_hub(
    repo_id: str, path: str | Path | None = None, *, revision: str | None = None, weights: bool = False,
    token: str | bool | None = None, cache_dir: str | Path | None = None, on_progress: Progress | None = None,
) -> Zoo:  # fmt: skip
    """Pull a zoo from the hub: see :meth:`zoarium.zoo.zoo.Zoo.from_hub`."""
    from zoarium.zoo.zoo import Zoo

    hub_api(token)  # a missing extra is said first
    session = {"token": token, "cache_dir": None if cache_dir is None else str(cache_dir)}
    source, manifest = _manifest(repo_id, revision, session)
    origin = Origin(repo_id=repo_id, revision=source.parent.name, asked=revision)
    root = _assets(origin, cache_dir) if path is None else Path(path)
    if not _claimed(root, origin):
        write_origin(root, origin)
    if not (root / MANIFEST).exists():
        tables = {name: info for name, info in manifest.files.items() if name.endswith(".parquet")}
        _fetch_all(root, origin, tables, session, on_progress)
        write_bytes(root / MANIFEST, source.read_bytes())
    zoo = Zoo.open(root)
    zoo.store.attached[SESSION] = session
    if weights:
        download_weights(zoo, on_progress=on_progress)
    return zoo


def download_weights(zoo: Zoo, epoch: int | None = None, *, on_progress: Progress | None = None) -> Zoo:
    """Download the weights and data of a zoo, or a view, that are not here yet: see :meth:`Zoo.download`."""
    store = zoo.store
    origin = read_origin(store.root)
    if origin is None:
        raise HubError(f"{store.root} was not pulled from the hub, so all it has is here already.")
    checkpoints = zoo.checkpoints
    if epoch is not None:
        checkpoints = checkpoints.filter(checkpoints["epoch"] == epoch)
        if not len(checkpoints):
            has = ", ".join(map(str, sorted(zoo.checkpoints["epoch"].unique())))
            raise StoreError(f"no weights of epoch {epoch} are stored; there are epochs: {has or 'none'}.")
    wanted = [*checkpoints["file"].unique(maintain_order=True), *(f for f in store.manifest.files if f[:5] == "data/")]
    missing = {name: store.info_of(name) for name in wanted if store.on_hub(name)}
    _fetch_all(store.root, origin, missing, _session(store), on_progress)
    return zoo


def fetch_missing(store: Store, name: str) -> None:
    """Download one file of a pulled zoo, because somebody needs it now."""
    origin = read_origin(store.root)
    assert origin is not None  # the store has looked
    _fetch(store.root, origin, name, store.info_of(name), _session(store))


def _session(store: Store) -> dict[str, Any]:
    return store.attached.get(SESSION, {"token": None, "cache_dir": None})


def _manifest(repo_id: str, revision: str | None, session: dict[str, Any]) -> tuple[Path, Manifest]:
    """`zoo.json` in the hub's cache, in a folder named after the commit, and what it says."""
    errors = require("huggingface_hub.errors", "hub", WHY)
    try:
        with hub_faults(repo_id, "pull", revision):
            path = _download(repo_id, MANIFEST, revision, session)
    except HubError as error:
        if isinstance(error.__cause__, errors.RepositoryNotFoundError) and _is_model(repo_id, session):
            raise HubError(
                f"{repo_id!r} is a model on the hub, not a data set, which is what a zoo is kept as; check the name."
            ) from error
        if isinstance(error.__cause__, errors.RemoteEntryNotFoundError):
            raise HubError(f"{repo_id!r} is no zoo: it has no zoo.json; give a data set that was pushed as one.") from (
                error.__cause__
            )
        raise
    try:
        return path, read_manifest(path.parent)
    except DamagedError as error:
        _drop(path)
        where = f"zoo.json of {repo_id!r} at {path.parent.name[:8]}"
        raise DamagedError(f"{where} is not what was written; {_ask(repo_id)}, or give an older revision.") from error


def _is_model(repo_id: str, session: dict[str, Any]) -> bool:
    try:
        hub_api(session["token"]).repo_info(repo_id, repo_type="model")
    except Exception:  # whatever it is, it is not a model we can see
        return False
    return True


def _download(repo_id: str, name: str, revision: str | None, session: dict[str, Any]) -> Path:
    api = hub_api(session["token"])
    found = api.hf_hub_download(
        repo_id, name, repo_type="dataset", revision=revision, cache_dir=session["cache_dir"]
    )  # fmt: skip
    return Path(found)


def _assets(origin: Origin, cache_dir: str | Path | None) -> Path:
    """The folder of a zoo nobody gave a folder: among what the hub keeps for libraries, one a commit."""
    from huggingface_hub import cached_assets_path, constants

    name = origin.repo_id.replace("/", "--")
    assets = constants.HF_ASSETS_CACHE if cache_dir is None else Path(cache_dir) / "assets"
    folder = cached_assets_path("zoarium", namespace=name, subfolder=origin.revision, assets_dir=assets)
    return Path(folder)


def _claimed(root: Path, origin: Origin) -> bool:
    """Whether `root` holds this very revision already, wholly or in part; anything else in it is an error."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not any(root.iterdir()):
            return False
    except OSError as error:
        raise write_error(root, error) from error
    held = read_origin(root)
    if held is None:
        raise StoreError(f"cannot pull into {root}: it is not empty; choose another folder.")
    if (held.repo_id, held.revision) != (origin.repo_id, origin.revision):
        raise StoreError(
            f"cannot pull {origin.repo_id!r} at {origin.revision[:8]} into {root}: it holds {held.repo_id!r} at "
            f"{held.revision[:8]}; choose another folder, or give revision={held.revision!r}."
        )
    return True


def _fetch_all(
    root: Path, origin: Origin, files: dict[str, FileInfo], session: dict[str, Any], on_progress: Progress | None
) -> None:
    """Fetch several files at a time; the first that fails ends it, and those that have come stay."""
    note = on_progress or (lambda done, total, name: None)
    missing = {name: info for name, info in files.items() if not (root / name).exists()}
    total = sum(info.size for info in files.values())
    done = total - sum(info.size for info in missing.values())
    note(done, total, "")
    with ThreadPoolExecutor(THREADS) as pool:
        asked = {pool.submit(_fetch, root, origin, name, info, session): name for name, info in missing.items()}
        try:
            for one in as_completed(asked):
                one.result()
                done += missing[asked[one]].size
                note(done, total, asked[one])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fetch(root: Path, origin: Origin, name: str, info: FileInfo, session: dict[str, Any]) -> None:
    """Bring one file into the zoo, once it has proved to be what `zoo.json` lists."""
    for _ in range(2):  # what lies in the cache may have rotted there: then a fresh one is asked for
        with hub_faults(origin.repo_id, f"download {name} of", origin.revision):
            cached = _download(origin.repo_id, name, origin.revision, session)
        if cached.stat().st_size == info.size and sha256_file(cached) == info.sha256:
            _place(Path(os.path.realpath(cached)), root / name)
            return
        _drop(cached)
    raise DamagedError(
        f"{name} of {origin.repo_id!r} at {origin.revision[:8]} is not what its zoo.json lists (size or checksum "
        f"differs); {_ask(origin.repo_id)}."
    )


def _place(source: Path, target: Path) -> None:
    """Link or copy a verified file to its name in the zoo; it appears there whole."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)  # files of a zoo are replaced, never changed, so the cache stays as it is
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _drop(cached: Path) -> None:
    """Take a damaged file out of the hub's cache, so that the next try downloads it."""
    for path in (Path(os.path.realpath(cached)), cached):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _ask(repo_id: str) -> str:
    return f"ask the owner of {repo_id!r} to push it again"
