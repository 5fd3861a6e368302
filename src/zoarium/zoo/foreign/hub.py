"""Models of the Hugging Face hub: the files of one model, pinned to a commit, through ``huggingface_hub``.

Only weights, ``config.json``, ``adapter_config.json`` and ``README.md`` are fetched, and of weights safetensors where
there are any. Where the hub is, who one is and where copies are kept (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME``,
``HF_HUB_OFFLINE``) is the library's own business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoarium._core.errors import StoreError
from zoarium._core.extras import require
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.onnx import beside
from zoarium.zoo.foreign.reader import MAX_SHARDS, PREFERRED, WEIGHTS, read_json, read_model
from zoarium.zoo.foreign.source import shown

FACTS = ("config.json", "adapter_config.json", "README.md")
HUB_ID = re.compile(r"hf:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:\s]+))?(?::(?P<file>[^\s]+))?")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.[A-Za-z0-9_]+$")


@dataclass(frozen=True)
class HubModel:
    """A model of the hub with its files on this machine.

    Parameters
    ----------
    repo : str
        ``org/model``.
    revision : str
        The commit, in full.
    path : Path
        The file of weights, or the index of shards, in the library's cache.
    """

    repo: str
    revision: str
    path: Path

    @property
    def hub(self) -> str:
        """The hub id of the one file, without its revision."""
        return f"hf:{self.repo}:{self.path.relative_to(self.folder).as_posix()}"

    @property
    def folder(self) -> Path:
        """The snapshot in the cache."""
        home = self.path.parent
        while home.name != self.revision and home != home.parent:
            home = home.parent
        return home


def parse_hub_id(text: str) -> tuple[str, str | None, str | None]:
    """``hf:org/model@revision:file`` as repository, revision and file.

    >>> parse_hub_id("hf:org/tiny@main:weights/tiny.gguf")
    ('org/tiny', 'main', 'weights/tiny.gguf')
    >>> parse_hub_id("hf:tiny")
    ('tiny', None, None)
    """
    found = HUB_ID.fullmatch(text)
    if found is None:
        raise StoreError(f"{shown(text)} is no hub id; write hf:org/model, hf:org/model@REVISION or hf:org/model:FILE.")
    return found["repo"], found["revision"], found["file"]


def read_hub(text: str) -> ForeignModel:
    """Read a model of the hub by its id, such as ``hf:org/model``; see :func:`read_model`.

    Raises
    ------
    StoreError
        If there is no such repository, revision or file, if access is not granted, or if the hub cannot be reached
        and the cache does not hold the model.
    MissingExtraError
        Without ``huggingface_hub``.
    """
    found = fetch(text)
    model = read_model(found.path)
    facts = {**model.metadata, "source": f"hf:{found.repo}", "revision": found.revision}
    if (found.path.parent / "config.json").exists():
        facts["config"] = read_json(beside(found.path, "config.json"))
    name = found.repo.rpartition("/")[2]
    return ForeignModel(name, model.format, model.sources, model.tensors, model.load, facts)


def fetch(text: str, revision: str | None = None) -> HubModel:
    """Files of a model of the hub, from the cache where it has them, else downloaded.

    Parameters
    ----------
    text : str
        A hub id.
    revision : str, optional
        A commit that takes the place of the id's own revision.
    """
    repo, asked, file = parse_hub_id(text)
    asked = revision or asked
    hub = require("huggingface_hub", "hub", f"reading {text}")
    with _said(text, asked):
        if revision is not None:  # a commit does not change, so the cache is as good as the hub
            cached = _cached(hub, repo, revision, file)
            if cached is not None:
                return cached
        try:
            info = hub.HfApi().model_info(repo, revision=asked, timeout=30)
        except Exception as error:
            cached = _cached(hub, repo, asked, file) if _unreachable(error) else None
            if cached is None:
                raise
            return cached
        names = [sibling.rfilename for sibling in info.siblings or []]
        entry = file or chosen_file(text, names)
        if entry not in names:
            raise StoreError(f"{text}: revision {info.sha} has no file {shown(entry)}; it has {_few(names)}.")

        def download(name: str) -> Path:
            return Path(hub.hf_hub_download(repo, name, revision=info.sha))

        path = download(entry)
        if entry.endswith(".index.json"):
            for shard in _shards(path):
                download(_next_to(entry, shard))
        for name in dict.fromkeys(n for fact in FACTS for n in (fact, _next_to(entry, fact))):
            if name in names:
                download(name)
        if asked != info.sha:  # so that the cache knows which commit the branch was at, should the hub be out of reach
            hub.hf_hub_download(repo, entry, revision=asked)
        return HubModel(repo, info.sha, path)


def chosen_file(text: str, names: list[str]) -> str:
    """The one file of weights, or index of shards, that stands for a repository with these files.

    Raises
    ------
    StoreError
        If there is none, or several that are not shards of one; it lists them.
    """
    top = [name for name in names if "/" not in name]
    for name in PREFERRED:
        if name in top:
            return name
    held = sorted(name for name in top if name.lower().endswith((*WEIGHTS, ".index.json")) and not SHARD.search(name))
    held = [name for name in held if name.endswith(".index.json")] or held
    held = [name for name in held if ".safetensors" in name] or held
    if len(held) != 1:
        listed = held or [name for name in names if name.lower().endswith(WEIGHTS)]
        what = f"{len(held)} files of weights" if held else "no weights at its top"
        raise StoreError(f"{text} holds {what} ({_few(listed)}); name one, as in {text}:{(listed or ['FILE'])[0]}.")
    return held[0]


def _next_to(entry: str, name: str) -> str:
    """A file in the folder of `entry`, both as the repository names them."""
    folder = entry.rpartition("/")[0]
    return f"{folder}/{name}" if folder else name


def _few(names: list[str]) -> str:
    return ", ".join(shown(name).strip("'") for name in names[:10]) + (", …" if len(names) > 10 else "") or "none"


def _shards(index: Path) -> list[str]:
    where = read_json(index).get("weight_map")
    names = sorted({name for name in where.values() if isinstance(name, str)}) if isinstance(where, dict) else []
    if len(names) > MAX_SHARDS:
        raise StoreError(f"{index} names {len(names)} files, more than {MAX_SHARDS}; give another model.")
    return names


def _cached(hub: Any, repo: str, revision: str | None, file: str | None) -> HubModel | None:
    """The model as the cache has it; None unless all its weights are there."""

    def local(name: str) -> Path | None:
        found = hub.try_to_load_from_cache(repo, name, revision=revision or "main")
        return Path(found) if isinstance(found, str) else None

    path = local(file) if file else next((p for name in PREFERRED if (p := local(name)) is not None), None)
    if path is None and not file:
        path = _only_cached(hub, repo, revision)
    if path is None:
        return None
    if path.name.endswith(".index.json"):
        entry = file or path.name
        if not all(local(_next_to(entry, name)) for name in _shards(path)):
            return None
    snapshot = next((parent for parent in path.parents if parent.parent.name == "snapshots"), None)
    return None if snapshot is None else HubModel(repo, snapshot.name, path)


def _only_cached(hub: Any, repo: str, revision: str | None) -> Path | None:
    """The single file of weights at the top of a cached snapshot, where it has none of the usual names."""
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
        return folder / chosen_file(f"hf:{repo}", [entry.name for entry in folder.iterdir()])
    except Exception:  # whatever is wrong with the cache, the hub's own answer is the one to report
        return None


def _unreachable(error: Exception) -> bool:
    from huggingface_hub import errors

    answered = (errors.HfHubHTTPError, errors.HFValidationError)
    return isinstance(error, errors.OfflineModeIsEnabled) or not isinstance(error, answered) or _status(error) >= 500


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


@contextmanager
def _said(text: str, revision: str | None) -> Iterator[None]:
    """Turn what the library raises into one sentence with a way out."""
    from huggingface_hub import errors

    repo = parse_hub_id(text)[0]
    at = f" at revision {revision}" if revision else ""
    told: list[tuple[type[Exception], Callable[[], str]]] = [
        (errors.GatedRepoError, lambda: f"access to {repo} is restricted and was not granted; ask for it on its page "
         "of the hub, then run: hf auth login"),
        (errors.DisabledRepoError, lambda: f"{repo} is disabled on the hub; choose another model"),
        (errors.RevisionNotFoundError, lambda: f"{repo} has no revision {revision!r}; give a branch, tag or commit of "
         "it"),
        (errors.RepositoryNotFoundError, lambda: f"there is no model {repo!r} on the hub that you may read; check the "
         "name, or run hf auth login if it is private"),
        (errors.LocalEntryNotFoundError, lambda: f"the hub cannot be reached and the cache does not hold {repo}{at}; "
         "try again with a network"),
        (errors.EntryNotFoundError, lambda: f"{repo}{at} lacks a file it lists; try again, or give another revision"),
        (errors.OfflineModeIsEnabled, lambda: f"HF_HUB_OFFLINE is set and the cache does not hold {repo}{at}; unset it "
         "and try again"),
        (errors.HFValidationError, lambda: f"{repo!r} is not a name the hub can have; write hf:org/model"),
    ]  # fmt: skip
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        for kind, sentence in told:
            if isinstance(error, kind):
                raise StoreError(f"cannot read {text}: {sentence()}.") from error
        if _status(error):
            raise StoreError(
                f"cannot read {text}: the hub answered {_status(error)} ({_first_line(error)}); try again later."
            ) from error
        raise StoreError(
            f"cannot read {text}: the hub cannot be reached ({_first_line(error)}) and the cache does not hold "
            f"{repo}{at}; try again with a network."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
