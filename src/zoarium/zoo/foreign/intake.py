"""Enter models from elsewhere into the tables of a zoo: ids, rows, references or copies, descent."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import NetError, StoreError, ZoariumError
from zoarium.zoo.foreign.copying import check_storable, copy_weights
from zoarium.zoo.foreign.declared import Declared
from zoarium.zoo.foreign.facts import (
    arch_of_tensors,
    content_digest,
    count_parameters,
    files_sha256,
    without_prefix,
    wrapper_prefix,
)
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.nets import GIVEN, NetOfModels
from zoarium.zoo.foreign.reference import COLUMNS, is_reference, located, reference_row
from zoarium.zoo.manifest import DataInfo
from zoarium.zoo.store import NEEDED
from zoarium.zoo.tensors import stored_tensors

if TYPE_CHECKING:
    from zoarium.data.dataset import Dataset
    from zoarium.zoo.model import Model
    from zoarium.zoo.transaction import Transaction
    from zoarium.zoo.zoo import Zoo

COMMIT_EVERY_S = 5.0
LONGEST_ID = 120
GENERIC = re.compile(
    r"(model|pytorch_model|adapter_model|diffusion_pytorch_model|checkpoints?|weights?|state_dict|best|last|final|"
    r"consolidated|ckpt)",
    re.IGNORECASE,
)
SCHEMA: dict[str, Any] = {
    "parents": pl.List(pl.String), "relation": pl.String, "revision": pl.String, "net": pl.String, "data": pl.String,
    "source": pl.String, "sha256": pl.String, "format": pl.String, "n_params": pl.Int64,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Weights of a model at one moment, read but not loaded.

    Parameters
    ----------
    epoch : int
        The moment of training; 0 where nothing says it.
    model : ForeignModel
        Names as in the file.
    entry : Path
        The one file that was read.
    hub : str, optional
        Its hub id, for a file of the hub's cache.
    """

    epoch: int
    model: ForeignModel
    entry: Path
    hub: str | None = None


@dataclass
class Incoming:
    """One model on its way into a zoo.

    Parameters
    ----------
    names : tuple of str
        What it could be called, best first; the last is long enough to be its own.
    source : str
        Path or hub id, as users know it.
    weights : list of Weights
        One a stored epoch, in order.
    revision : str, optional
        Commit on the hub.
    declared : Declared
        Its descent.
    columns : dict
        Further columns of the models table.
    history : list of dict
        Rows of the history table, without the id.
    published : dict of int to dict
        What a Ray-era zoo had measured of it, by epoch, under its own keys.
    detail : str
        What to report of it.
    """

    names: tuple[str, ...]
    source: str
    weights: list[Weights]
    revision: str | None = None
    declared: Declared = field(default_factory=Declared)
    columns: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    published: dict[int, dict[str, Any]] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """What became of one model: its id, ``added`` or ``known``, and a word on it."""

    id: str
    state: str
    detail: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """Weights that were read from end to end once."""

    weights: Weights
    plain: ForeignModel
    prefix: str
    sha256: str
    digest: str


def check(incoming: Incoming, net: NetOfModels | None, copy: bool) -> list[Checked]:
    """Read every tensor of a model once: what cannot be read is said before anything is entered.

    Raises
    ------
    StoreError, DamagedError, NetError
        If weights cannot be read or copied, or do not fit the net.
    """
    checked, problems = [], []
    for weights in incoming.weights:
        try:
            checked.append(_check(incoming.source, weights, net, copy))
        except ZoariumError as error:  # of several checkpoints the rest is taken
            if len(incoming.weights) == 1:
                raise
            problems.append(str(error).rstrip("."))
    if not checked:
        raise StoreError(f"none of its {len(incoming.weights)} checkpoints can be read; {'; '.join(problems)}.")
    incoming.detail = "; ".join([*filter(None, [incoming.detail]), *problems])
    return checked


def _check(source: str, weights: Weights, net: NetOfModels | None, copy: bool) -> Checked:
    prefix = wrapper_prefix(weights.model.tensors)
    plain = without_prefix(weights.model, prefix)
    if net is not None:
        more = net.fit(source, plain.tensors)
        prefix, plain = prefix + more, without_prefix(plain, more)
    if copy:
        check_storable(plain)
    return Checked(weights, plain, prefix, files_sha256(weights.model), content_digest(plain))


class Intake:
    """Takes models into a zoo inside one ``zoo.writing()``; commits every few seconds.

    Parameters
    ----------
    zoo : Zoo
        Where to.
    transaction : Transaction
        Of this zoo.
    copy : bool
        Copy weights instead of pointing at them.
    net : NetOfModels, optional
        The net of all of them.
    """

    def __init__(self, zoo: Zoo, transaction: Transaction, *, copy: bool, net: NetOfModels | None) -> None:
        self.zoo, self.transaction, self.copy, self.net = zoo, transaction, copy, net
        self._ids = set(zoo.store.rows)
        self._by_sha: dict[str, str] = {}
        if "sha256" in zoo.table.columns:
            self._by_sha = {sha: id for id, sha in zoo.store.models.select("id", "sha256").iter_rows() if sha}
        self._by_digest = dict(zoo.store.frame("checkpoints").select("digest", "id").iter_rows())
        self._models: dict[str, dict[str, Any]] = {}
        self._checkpoints: list[dict[str, Any]] = []
        self._history: dict[tuple[str, int], dict[str, Any]] = {}
        self._committed = time.monotonic()
        if net is not None and net.dataset is not None:
            check_data(zoo, net.dataset)

    def take(self, incoming: Incoming, checked: list[Checked]) -> Entry:
        """Enter a model whose weights were checked; one that is known by its SHA-256 is brought up to date."""
        known = next((self._by_sha[c.sha256] for c in checked if c.sha256 in self._by_sha), None)
        entry = self._known(known, incoming, checked) if known is not None else self._new(incoming, checked)
        if time.monotonic() - self._committed > COMMIT_EVERY_S:
            self.flush()
            self.transaction.commit()
            self._committed = time.monotonic()
        return entry

    # ------------------------------------------------------------------ rows

    def _new(self, incoming: Incoming, checked: list[Checked]) -> Entry:
        last = checked[-1]
        id = self._free_id(incoming, last.sha256)
        row = {
            "id": id,
            "status": "foreign",
            "net": None,
            "net_params": "{}",
            "n_params": count_parameters(last.plain.tensors),
            **incoming.columns,
            "arch": arch_of_tensors(last.plain.tensors),
            "format": last.weights.model.format,
            "source": incoming.source,
            "revision": incoming.revision,
            "sha256": last.sha256,
            "parents": list(incoming.declared.parents),
            "relation": incoming.declared.relation,
            **({} if self.net is None else self.net.columns()),
        }
        twin = self._by_digest.get(last.digest)
        same = f"the same tensors as model {twin!r} in another file" if twin is not None else ""
        self._checkpoints += [self._checkpoint(id, one) for one in checked]
        self._by_digest |= {one.digest: id for one in checked}
        self._ids.add(id)
        self._by_sha[last.sha256] = id
        self._models[id] = row
        self._history |= {(id, line["epoch"]): {"id": id, **line} for line in incoming.history}
        return Entry(id, "added", "; ".join(filter(None, [same, incoming.detail])), row)

    def _known(self, id: str, incoming: Incoming, checked: list[Checked]) -> Entry:
        row = self._models.get(id) or self.zoo.row_of(id)
        stored = {c["epoch"]: c for c in (*self.zoo.store.checkpoints_of(id), *self._pending(id))}
        notes = [incoming.detail] if incoming.detail else []
        if row["source"] != incoming.source:
            notes.append(f"the same bytes as {row['source']}")
        for one in checked:
            old = stored.get(one.weights.epoch)
            if old is None or self._to_renew(old, one):
                self._checkpoints = [
                    c for c in self._checkpoints if (c["id"], c["epoch"]) != (id, one.weights.epoch)
                ] + [self._checkpoint(id, one)]
                if old is not None and not self.copy:
                    row = {**row, "source": incoming.source}
                    notes.append("now read from there")
        if row["source"] == incoming.source:
            self._history |= {(id, line["epoch"]): {"id": id, **line} for line in incoming.history}
        changes = {} if self.net is None else self.net.columns()
        if row["status"] == "damaged":
            changes["status"] = "foreign"
        if changes or row is not self._models.get(id):
            self._models[id] = {**row, **changes}
        return Entry(id, "known", "; ".join(dict.fromkeys(notes)), self._models[id])

    def _pending(self, id: str) -> list[dict[str, Any]]:
        return [c for c in self._checkpoints if c["id"] == id]

    def _to_renew(self, old: Mapping[str, Any], new: Checked) -> bool:
        """Whether a stored checkpoint is to be copied in, or points at a file that is no longer there."""
        if not is_reference(old["file"]):
            return False
        gone = not old["path"].startswith("hf:") and not located(self.zoo.path, old["path"]).exists()
        return self.copy or gone or (old["prefix"] or "") != new.prefix

    def _checkpoint(self, id: str, one: Checked) -> dict[str, Any]:
        """A row of ``checkpoints``: a reference, or a copy that is written now."""
        weights = one.weights
        if self.copy:
            written = copy_weights(self.zoo.path, file_name(id), weights.epoch, 0, id, one.plain, one.digest)
            self.transaction.take_file(written.name, written.info)
            place: dict[str, Any] = {"file": written.name, "row": 0, **dict.fromkeys(COLUMNS)}
        else:
            place = reference_row(
                self.zoo.path, weights.model, weights.entry, hub=weights.hub,
                revision=None if weights.hub is None else weights.model.metadata.get("revision"), prefix=one.prefix,
            )  # fmt: skip
        return {"id": id, "epoch": weights.epoch, "step": 0, "digest": one.digest, **place}

    # ------------------------------------------------------------------ ids

    def _free_id(self, incoming: Incoming, sha256: str) -> str:
        names = [plain_id(name) for name in incoming.names]
        for id in [*names, f"{names[0]}-{sha256[:8]}", f"{names[0]}-{sha256}"]:
            if id and id not in self._ids:
                return id
        raise StoreError(f"{incoming.source}: every id it could have is taken; remove the older model {names[0]!r}.")

    # ------------------------------------------------------------------ end

    def flush(self) -> None:
        """Hand what was collected to the transaction."""
        if self._models:
            self._resolve_parents()
            models = pl.DataFrame(
                list(self._models.values()), infer_schema_length=None, schema_overrides=self._overrides()
            )
            self.transaction.upsert("models", models, key=["id"])
        if self._checkpoints:
            frame = pl.DataFrame(self._checkpoints, schema={**NEEDED["checkpoints"], **COLUMNS})
            self.transaction.upsert("checkpoints", frame, key=["id", "epoch"])
        if self._history:
            frame = pl.DataFrame(list(self._history.values()), infer_schema_length=None)
            self.transaction.upsert("history", frame, key=["id", "epoch"])
        if self.net is not None and self.net.dataset is not None and self._models:
            describe_data(self.zoo, self.transaction, self.net.dataset, self.net.stored)
        self._models, self._checkpoints, self._history = {}, [], {}

    def _overrides(self) -> dict[str, Any]:
        columns = {name for row in self._models.values() for name in row}
        return {name: kind for name, kind in SCHEMA.items() if name in columns}

    def _resolve_parents(self) -> None:
        """Parents declared by hub id that are in this zoo become their ids, also in older rows."""
        table = self.transaction.table("models")
        rows: dict[str, dict[str, Any]] = {}
        if table is not None and {"source", "parents"} <= set(table.columns):
            ours = table.filter(pl.col("source").is_not_null())
            rows = {row["id"]: row for row in ours.iter_rows(named=True)}
        rows |= self._models
        homes: dict[str, list[str]] = {}
        for id, row in rows.items():
            if row["source"].startswith("hf:"):
                homes.setdefault(row["source"].partition("@")[0], []).append(id)
        for id, row in rows.items():
            parents = [
                homes[p][0] if len(homes.get(p, ())) == 1 and homes[p][0] != id else p for p in row["parents"] or []
            ]
            if parents != (row["parents"] or []):
                self._models[id] = {**row, "parents": parents}


def check_data(zoo: Zoo, data: Dataset) -> None:
    """Refuse data that a zoo knows as others under the same name."""
    known = zoo.store.manifest.data.get(data.name)
    if known is not None and known.fingerprint != data.fingerprint:
        raise StoreError(
            f"data {data.name!r} are not what {zoo.path} knows by that name (fingerprint {data.fingerprint}, there "
            f"{known.fingerprint}); give them another name."
        )


def describe_data(zoo: Zoo, transaction: Transaction, data: Dataset, stored: bool) -> None:
    """Say in the zoo what data models are measured on, and keep data that no name brings back."""
    check_data(zoo, data)
    if data.name in zoo.store.manifest.data:
        return
    if stored:
        transaction.add_data(data.name, data)
    else:
        transaction.describe_data(data.name, DataInfo.of(data, "registered"))


def plain_id(name: str) -> str:
    """A name as an id: letters, digits and ``_ . @ ~ + = -``, beginning with a letter or digit.

    >>> plain_id("my model (v2).pt"), plain_id("../..")
    ('my-model-v2-.pt', '')
    """
    return re.sub(r"[^\w.@~+=-]+", "-", name).strip(" .@~+=-")[:LONGEST_ID]


def file_name(id: str) -> str:
    """What a model's own file of weights is called, without its epoch."""
    return re.sub(r"[^A-Za-z0-9_.~+=-]+", "-", id)[:LONGEST_ID].lstrip(".~+=-") or "foreign"


def names_of(path: Path) -> tuple[str, ...]:
    """Ids a file or folder suggests: its name, or its folder's where the name says nothing; then with folders before.

    >>> names_of(Path("runs/seed-1/model.safetensors"))
    ('seed-1', 'runs.seed-1')
    >>> names_of(Path("zoo/vanilla/v_48_002.pt"))
    ('v_48_002', 'vanilla.v_48_002', 'zoo.vanilla.v_48_002')
    """
    stem = path.name
    for suffix in (".index.json", ".tar"):
        stem = stem.removesuffix(suffix)
    stem = stem.rpartition(".")[0] or stem
    stem = re.sub(r"(\.safetensors|-\d{5}-of-\d{5})$", "", stem)
    parts = [part for part in path.parent.parts if part not in ("", "/", ".", "..", path.anchor)]
    while GENERIC.fullmatch(stem) and parts:
        stem = parts.pop()
    names = [stem]
    for part in reversed(parts[-3:]):
        names.append(f"{part}.{names[-1]}")
    return tuple(names[:4])


def set_net(zoo: Zoo, net: Any = None, *, net_params: Mapping[str, Any] | None = None, data: Any = None) -> Zoo:
    """Give the foreign models of a zoo, or of a view of it, their net; see :meth:`Zoo.set_net`."""
    if net is None and (net_params or data is None):
        raise StoreError("name a net; without one, only the data of models that have a net already can be set.")
    foreign = [model for model in zoo if model.row.get("source") is not None]
    if not foreign:
        raise StoreError(f"{zoo.path}: none of these {len(zoo)} models is foreign; a grown model has its net already.")
    given = NetOfModels(net, dict(net_params or {}), data) if net is not None else None
    own: dict[tuple[str, str], NetOfModels] = {}
    rows, checkpoints = [], []
    for model in foreign:
        chosen = given or _own_net(zoo, model, data, own)
        places = zoo.store.checkpoints_of(model.id)
        fitted = [(p, chosen.fit(f"model {model.id!r}", stored_tensors(zoo.store, p))) for p in places]
        for place, prefix in fitted:
            if prefix and not is_reference(place["file"]):
                raise NetError(
                    f"model {model.id!r} has {prefix!r} before every name of net {chosen.name}; add it again with net= "
                    "and copy=True."
                )
            if prefix:
                checkpoints.append({**place, "prefix": (place["prefix"] or "") + prefix})
        row = {**model.row, **chosen.columns()}
        if any(prefix for _, prefix in fitted):
            place, prefix = fitted[-1]
            tensors = stored_tensors(zoo.store, place)
            row["arch"] = arch_of_tensors({k.removeprefix(prefix): v for k, v in tensors.items()})
        rows.append(row)
    with zoo.writing() as transaction:
        overrides = {name: kind for name, kind in SCHEMA.items() if name in rows[0]}
        frame = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=overrides)
        transaction.upsert("models", frame, key=["id"])
        if checkpoints:
            frame = pl.DataFrame(checkpoints, schema={**NEEDED["checkpoints"], **COLUMNS})
            transaction.upsert("checkpoints", frame, key=["id", "epoch"])
        for net_of in [given] if given is not None else own.values():
            if net_of.dataset is not None:
                describe_data(zoo, transaction, net_of.dataset, net_of.stored)
    if given is not None and not isinstance(given.net, str):
        zoo.attach_net(given.name, given.net)
    return zoo


def _own_net(zoo: Zoo, model: Model, data: Any, known: dict[tuple[str, str], NetOfModels]) -> NetOfModels:
    """The net a model has already, for other data; each net is built once."""
    name, params = model.row.get("net"), model.row.get("net_params") or "{}"
    if name is None:
        raise NetError(f"model {model.id!r} has no net yet; name it, as in zoo.set_net('resnet18', data=...).")
    if (name, params) not in known:
        kept = {key: value for key, value in json.loads(params).items() if key not in GIVEN}
        known[name, params] = NetOfModels(zoo.store.attached.get(("net", name), name), kept, data)
    return known[name, params]
