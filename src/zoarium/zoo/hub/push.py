"""A zoo to the hub, as a data set, so that every revision there is a whole zoo.

Weights whose names are new come first, in commits of a few GB: the `zoo.json` that is there does not list them, so
they are no part of the zoo yet. One last commit brings tables, card and `zoo.json` together and removes what the new
`zoo.json` no longer lists. A push that is cut off has changed nothing that a reader sees, and the next one skips what
is there already: by checksum, in the repository or in the hub's storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import HubError, StoreError, ZoariumError
from zoarium.zoo.hub.faults import hub_api, hub_faults
from zoarium.zoo.manifest import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:
    from zoarium.zoo.store import Store
    from zoarium.zoo.zoo import Zoo

COMMIT_BYTES = 5 * 10**9  # of weights in one commit: about what a push that is cut off may have to hash again
COMMIT_FILES = 200
CARD = "README.md"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")
TRIES = 5  # to read a zoo between the commits of somebody who writes it


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Parameters
    ----------
    repo_id : str
        The data set on the hub.
    revision : str
        The commit that holds the zoo.
    url : str
        Its page.
    files, uploaded : int
        Files of the zoo, and those of them (and of the card) that the hub did not have.
    uploaded_bytes : int
        Their size.
    pull_request : str or None
        Page of the pull request, for ``create_pr=True``.
    """

    repo_id: str
    revision: str
    url: str
    files: int
    uploaded: int
    uploaded_bytes: int
    pull_request: str | None = None

    def __str__(self) -> str:
        what = "nothing had changed"
        if self.uploaded:
            plural = "" if self.uploaded == 1 else "s"
            what = f"{self.uploaded} file{plural}, {self.uploaded_bytes / 1e6:.3g} MB uploaded"
        return f"{self.repo_id} at {self.revision[:8]}: {what}. {self.pull_request or self.url}"


@dataclass(frozen=True)
class _Snapshot:
    """One commit of a zoo: the content of what is small, and where what is large lies."""

    store: Store
    manifest: Manifest
    contents: Mapping[str, bytes]  # by name in the repository: tables, zoo.json, card, picture

    def same(self, name: str, remote: Any) -> bool:
        """Whether the hub's file of that name has the bytes of ours."""
        content = self.contents.get(name)
        info = self.manifest.files.get(name)
        size = len(content) if content is not None else info.size if info else -1
        if remote.size != size:
            return False
        if remote.lfs is not None:
            ours = info.sha256 if info else hashlib.sha256(content or b"").hexdigest()
            return remote.lfs.sha256 == ours
        if content is None:
            content = self.store.verified_path(name).read_bytes()  # the hub keeps only small files as plain ones
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def operation(self, name: str) -> Any:
        """The file as an addition to a commit; a large one is verified now."""
        from huggingface_hub import CommitOperationAdd

        content = self.contents.get(name)
        if content is not None:
            return CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        path = self.store.verified_path(name, whole=True)
        operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        operation.upload_info.sha256 = bytes.fromhex(self.manifest.files[name].sha256)  # just found: no second reading
        return operation

    def size(self, name: str) -> int:
        """Bytes to upload."""
        return len(self.contents[name]) if name in self.contents else self.manifest.files[name].size


def push_to_hub(
    zoo: Zoo, repo_id: str, *, private: bool | None = None, revision: str | None = None, license: str = "cc-by-4.0",
    token: str | bool | None = None, commit_message: str | None = None, create_pr: bool = False,
    card: bool | str | Path = True, on_progress: Callable[[float, float, str], None] | None = None,
) -> Pushed:  # fmt: skip
    """Push a zoo to the hub: see :meth:`zoarium.zoo.zoo.Zoo.push_to_hub`."""
    if not LICENSE.fullmatch(license):
        raise HubError(
            f"license {license!r} is not written as the hub does; write one such as cc-by-4.0 or apache-2.0."
        )
    if create_pr and revision is not None:
        raise HubError("a pull request is made from the main branch; leave out revision, or create_pr.")
    api = hub_api(token)
    _check_references(zoo)
    with _whole(zoo) as whole:
        snapshot = _snapshot(whole, repo_id, license, card)
        push = _Push(api, repo_id, revision, create_pr, commit_message or _message(whole), on_progress)
        with hub_faults(repo_id, "push to", revision):
            push.begin(private)
            return push.run(snapshot)


def _check_references(zoo: Zoo) -> None:
    """Refuse weights that a zoo only points at on this machine; those on the hub are there for everybody."""
    checkpoints = zoo.checkpoints
    if "path" in checkpoints.columns:
        local = checkpoints.filter(pl.col("path").is_not_null() & ~pl.col("path").str.starts_with("hf:"))
        if len(local):
            raise HubError(
                f"{local['id'].n_unique()} models of this zoo lie in files outside it, such as {local['path'][0]!r} of "
                f"{local['id'][0]!r}, which nobody else has; take them in first with zoo.copy_weights()."
            )


class _Push:
    """One push: the hub's client, and the commit we are at."""

    def __init__(
        self, api: Any, repo_id: str, revision: str | None, create_pr: bool, message: str, on_progress: Any
    ) -> None:
        self.api, self.repo_id, self.revision, self.create_pr, self.message = api, repo_id, revision, create_pr, message
        self.repo = {"repo_id": repo_id, "repo_type": "dataset"}
        self.url, self.head, self.pull_request = "", "", None
        self.note = on_progress or (lambda done, total, note: None)

    def begin(self, private: bool | None) -> None:
        """Make the data set and the branch where they are missing, and find the commit to build on."""
        self.url = str(self.api.create_repo(**self.repo, private=private, exist_ok=True))
        if self.revision is not None and not self.revision.startswith("refs/"):
            self.api.create_branch(**self.repo, branch=self.revision, exist_ok=True)
        info = self.api.repo_info(**self.repo, revision=self.revision)
        if private and info.private is False:
            raise HubError(
                f"{self.repo_id!r} is public already; make it private in its settings, or leave private out. "
                "Nothing was uploaded."
            )
        self.head = info.sha

    def run(self, snapshot: _Snapshot) -> Pushed:
        """Upload what the hub lacks, and make it the zoo with the last commit."""
        tree = self.api.list_repo_tree(**self.repo, recursive=True, revision=self.head)
        remote = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
        names = [*snapshot.manifest.files, *(n for n in snapshot.contents if n not in snapshot.manifest.files)]
        if CARD in remote and CARD in names and not self._our_card(snapshot):
            names.remove(CARD)
        differs = [n for n in names if n not in remote or not snapshot.same(n, remote[n])]
        early = [n for n in differs if n not in remote and n not in snapshot.contents]
        late = [n for n in differs if n not in early]
        gone = [n for n in self._listed(remote) if n in remote and n not in snapshot.manifest.files]
        total, done = sum(map(snapshot.size, differs)), 0
        for batch in _batches(early, snapshot):
            self.note(done, total, f"{len(batch)} files of weights")
            self._commit([snapshot.operation(name) for name in batch], f"{self.message}: weights")
            done += sum(map(snapshot.size, batch))
        if late or gone:
            self.note(done, total, "tables")
            self._commit([*map(snapshot.operation, late), *self._removals(gone)], self.message)
        self.note(total, total, "")
        return Pushed(
            self.repo_id, self.head, self.url, len(snapshot.manifest.files) + 1, len(differs), total, self.pull_request
        )

    def _commit(self, operations: list[Any], message: str) -> None:
        made = self.api.create_commit(
            **self.repo, operations=operations, commit_message=message, revision=self.revision,
            parent_commit=self.head, create_pr=self.create_pr,
        )  # fmt: skip
        self.head = made.oid
        if made.pr_revision is not None:  # further commits go to the same pull request
            self.pull_request, self.revision, self.create_pr = made.pr_url, made.pr_revision, False

    def _removals(self, names: list[str]) -> list[Any]:
        from huggingface_hub import CommitOperationDelete

        return [CommitOperationDelete(path_in_repo=name) for name in names]

    def _listed(self, remote: Mapping[str, Any]) -> list[str]:
        """Files of the zoo that is there now; nothing else in the repository is ours to remove."""
        if MANIFEST not in remote:
            return []
        path = Path(self.api.hf_hub_download(**self.repo, filename=MANIFEST, revision=self.head))
        try:
            return list(read_manifest(path.parent).files)
        except ZoariumError:  # not a zoo of ours, or a newer one: leave its files alone
            return []

    def _our_card(self, snapshot: _Snapshot) -> bool:
        """Whether the card that is there was generated, and may be replaced, or was given by the user just now."""
        from zoarium.report.dataset_card import GENERATED

        if GENERATED.encode() not in snapshot.contents[CARD]:
            return True
        path = self.api.hf_hub_download(**self.repo, filename=CARD, revision=self.head)
        return GENERATED in Path(path).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _whole(zoo: Zoo) -> Iterator[Zoo]:
    """The zoo itself, or a view as a zoo of its own for as long as the block lasts."""
    if zoo.is_view:
        with tempfile.TemporaryDirectory(prefix="zoarium-push-") as folder:
            yield zoo.save(Path(folder) / "zoo")
    else:
        yield zoo


def _message(zoo: Zoo) -> str:
    return f"Push a zoo of {len(zoo):,} model{'' if len(zoo) == 1 else 's'}"


def _snapshot(zoo: Zoo, repo_id: str, license: str, card: bool | str | Path) -> _Snapshot:
    """Tables, `zoo.json` and card of one and the same commit of the zoo, verified."""
    store = zoo.store
    for _ in range(TRIES):
        store.refresh()
        manifest = store.manifest
        contents: dict[str, bytes] = {}
        for name in store.table_names:
            content = store.table_content(name)
            if content is not None:
                contents[f"{name}.parquet"] = content
        contents |= _card(zoo, repo_id, license, card)
        contents[MANIFEST] = manifest.to_bytes()
        if not store.refresh() and store.manifest == manifest:
            return _Snapshot(store, manifest, contents)
    raise StoreError(f"{zoo.path} is being written faster than it can be read; push it when that has finished.")


def _card(zoo: Zoo, repo_id: str, license: str, card: bool | str | Path) -> dict[str, bytes]:
    if card is False:
        return {}
    if card is True:
        from zoarium.report.dataset_card import dataset_card

        return dataset_card(zoo, repo_id, license=license)
    try:
        content = Path(card).read_bytes()
        content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise HubError(f"cannot read the card {str(card)!r}: {error}; give a Markdown file, True or False.") from error
    return {CARD: content}


def _batches(names: list[str], snapshot: _Snapshot) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name in names:
        own = snapshot.size(name)
        if batch and (size + own > COMMIT_BYTES or len(batch) == COMMIT_FILES):
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += own
    if batch:
        yield batch
