"""Bring models that exist already into a zoo: files, folders, models of the hub, Ray-era zoos."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import DamagedError, StoreError, ZoariumError
from zoarium.zoo.foreign.declared import declared
from zoarium.zoo.foreign.find import find_models
from zoarium.zoo.foreign.intake import Checked, Incoming, Intake, Weights, check, describe_data, names_of
from zoarium.zoo.foreign.nets import NetOfModels
from zoarium.zoo.foreign.reader import read_model

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo

TABLE = {
    "source": pl.String, "state": pl.String, "id": pl.String, "format": pl.String, "n_params": pl.Int64,
    "detail": pl.String,
}  # fmt: skip
MOST_SKIPPED = 1000  # of which zoo.json keeps the reasons
STATES = ("added", "known", "skipped", "ignored")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Added:
    """What became of the sources given to :func:`add`.

    Parameters
    ----------
    zoo : Zoo
        The zoo, changed.
    table : polars.DataFrame
        A row a thing found: ``source``, ``state``, ``id``, ``format``, ``n_params``, ``detail``. States are ``added``;
        ``known`` (the zoo had these bytes already); ``skipped`` (could not be read, and why); ``ignored`` (files that
        are known to be no models, such as states of optimisers).
    """

    zoo: Zoo
    table: pl.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """How many of each state."""
        counted = Counter(self.table["state"].to_list())
        return {state: counted[state] for state in STATES}

    @property
    def ids(self) -> list[str]:
        """Ids of the models added or known, each once."""
        return list(dict.fromkeys(self.table["id"].drop_nulls().to_list()))

    def __str__(self) -> str:
        return ", ".join(f"{n} {state}" for state, n in self.counts.items() if n or state in ("added", "skipped"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"zoo": str(self.zoo.path), **self.counts, "models": self.table.to_dicts()}


@dataclass(frozen=True)
class _Candidate:
    """One model to read."""

    source: str
    names: tuple[str, ...]
    read: Callable[[], Incoming]


def add(
    zoo: Zoo | str | Path,
    *sources: str | Path,
    copy: bool = False,
    net: Any = None,
    net_params: Mapping[str, Any] | None = None,
    data: Any = None,
    epochs: str | Sequence[int] = "last",
    on_progress: Progress = lambda done, total, source: None,
) -> Added:
    """Bring models that exist already into a zoo.

    Parameters
    ----------
    zoo : Zoo or path
        Where to; made if it is not there.
    *sources : path or str
        Files of weights and folders, which are searched for all the models below them: every file of weights is a
        model, and so are all the shards of an index, and a Hugging Face folder. Models of the hub as ``hf:org/model``,
        ``hf:org/model@REVISION`` or ``hf:org/model:FILE``. Zoos of the Ray era are recognised in folders by their
        ``checkpoint_*``; ``ray:FOLDER`` says that a folder is one.
    copy : bool, default False
        Copy weights into the zoo, one tensor at a time and in their own types. By default the zoo points at the files
        and verifies their SHA-256 before it uses them.
    net : str or callable, optional
        The net of all of them, registered or a factory, so that they can run; names and shapes must fit. It can also
        be given later, with :meth:`Zoo.set_net`.
    net_params : mapping, optional
        Parameters of the net.
    data : str or Dataset, optional
        What the models are measured on, by name or in full; gives the net its input shape and number of outputs.
    epochs : str or sequence of int, default "last"
        Which checkpoints of a Ray-era trial: ``last``, ``last:5``, ``every``, ``every:10``, or epochs.
    on_progress : callable, optional
        Called with the models done, the models found, and the source of the last.

    Returns
    -------
    Added
        What became of each; what cannot be read is skipped with its reason, the rest is added.

    Raises
    ------
    StoreError
        If there is no zoo to add to and nothing that can be read, or the zoo cannot be written.
    NetError
        If the net cannot be built.

    Notes
    -----
    Every tensor is read once, so that damage is found now; one is held at a time. A model is known by the SHA-256 of
    its files: bytes that are in the zoo already are not entered again, but a net given with them, a new place of a
    file that has moved, and `copy` are taken over. Descent is read from model cards (``base_model``), adapters and
    configurations. Nothing in a file is run.

    Examples
    --------
    >>> import tempfile, torch, zoarium as za
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> for n in range(3):
    ...     torch.save(torch.nn.Linear(4, 2).state_dict(), folder / f"seed{n}.pt")
    >>> added = za.add(folder / "zoo", folder)
    >>> print(added)
    3 added, 0 skipped
    >>> added.zoo["seed1"].tensor("weight").shape
    torch.Size([2, 4])
    """
    from zoarium.zoo.zoo import Zoo

    if not sources:
        raise StoreError("nothing to add was given; give files, folders, or hub ids such as hf:org/model.")
    chosen = NetOfModels(net, dict(net_params or {}), data) if net is not None else None
    if chosen is None and net_params:
        raise StoreError("net_params are of a net; name it too, or set it later with zoo.set_net.")
    opened = zoo if isinstance(zoo, Zoo) else Zoo.open(zoo) if (Path(zoo) / "zoo.json").exists() else None
    rows: list[dict[str, Any]] = []
    candidates: list[_Candidate] = []
    trials: list[Path] = []
    for source in sources:
        _gather(str(source), rows, candidates, trials, inside=opened.path if opened else Path(str(zoo)))
    candidates = _distinct(candidates)
    if trials:
        from zoarium.zoo.foreign.ray_zoo import trial_candidates

        candidates += [_Candidate(*parts) for parts in trial_candidates(trials, epochs, data if net is None else None)]
    elif chosen is None and data is not None:
        raise StoreError("data are what a net reads; name the net too, or set both later with zoo.set_net.")

    def readable() -> Iterator[tuple[_Candidate, Incoming, list[Checked]]]:
        for n, candidate in enumerate(candidates):
            on_progress(n, len(candidates), candidate.source)
            try:
                incoming = candidate.read()
                checked = check(incoming, chosen, copy)
            except _FAULTS as error:
                rows.append(_row(candidate.source, "skipped", detail=_reason(error)))
            else:
                yield candidate, incoming, checked
        on_progress(len(candidates), len(candidates), "")

    work = readable()
    first = next(work, None) if opened is None else None
    if opened is None:
        if first is None:
            reasons = [f"{row['source']}: {row['detail']}" for row in rows if row["state"] == "skipped"][:3]
            raise StoreError(
                f"no zoo was made in {zoo}: none of the sources is a model that can be read"
                f"{' (' + '; '.join(r.rstrip('.') for r in reasons) + ')' if reasons else ''}; check the paths."
            )
        opened = Zoo.create(Path(str(zoo)))
    if chosen is not None and not isinstance(chosen.net, str):
        opened.attach_net(chosen.name, chosen.net)
    taken: dict[str, Incoming] = {}
    with opened.writing() as transaction:
        intake = Intake(opened, transaction, copy=copy, net=chosen)
        for candidate, incoming, checked in itertools.chain([first] if first else [], work):
            try:
                entry = intake.take(incoming, checked)
            except DamagedError as error:  # its files were changed between the check and the copy
                rows.append(_row(candidate.source, "skipped", detail=_reason(error)))
                continue
            facts = (entry.row["format"], entry.row["n_params"], entry.detail)
            rows.append(_row(candidate.source, entry.state, entry.id, *facts))
            if trials:
                incoming.weights = []  # headers of thousands of checkpoints are not held
                taken[entry.id] = incoming
        intake.flush()
        if trials:
            from zoarium.zoo.foreign.ray_values import keep_values
            from zoarium.zoo.foreign.ray_zoo import root_of

            keep_values(opened, transaction, taken, root_of(trials))
            if data is not None and net is None:
                from zoarium.data import Dataset, load

                describe_data(opened, transaction, load(data), isinstance(data, Dataset))
        skipped = [{k: row[k] for k in ("source", "detail")} for row in rows if row["state"] == "skipped"]
        if skipped or opened.info.get("skipped"):
            transaction.update_header(skipped=skipped[:MOST_SKIPPED])
    order = {candidate.source: n for n, candidate in enumerate(candidates)}
    rows.sort(key=lambda row: order.get(row["source"], len(order)))
    return Added(opened, pl.DataFrame(rows, schema=TABLE))


_FAULTS = (ZoariumError, OSError, MemoryError, RecursionError)


def _row(
    source: str, state: str, id: str | None = None, format: str | None = None, n_params: int | None = None,
    detail: str = "",
) -> dict[str, Any]:  # fmt: skip
    return dict(zip(TABLE, (_utf8(source), state, id, format, n_params, detail), strict=True))


def _reason(error: BaseException) -> str:
    return _utf8(" ".join(str(error).split())) or type(error).__name__


def _utf8(text: str) -> str:
    """`text` as tables can hold it: names of files may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


# ---------------------------------------------------------------------------------------------------------- sources


def _gather(
    source: str, rows: list[dict[str, Any]], candidates: list[_Candidate], trials: list[Path], inside: Path
) -> None:
    """The models behind one source; what is none goes to `rows`."""
    if source.startswith("hf:"):
        candidates.append(_Candidate(source, (), lambda: _from_hub(source)))
        return
    ray = True if source.startswith("ray:") else None
    path = Path(os.path.abspath(source.removeprefix("ray:")))
    if not path.exists():
        rows.append(_row(source, "skipped", detail=f"there is no file or folder {path}; check the path."))
        return
    if not path.is_dir():
        candidates.append(_candidate(path))
        return
    try:
        found = [item for item in find_models(path, ray=ray) if not _is_within(item.path, inside)]
    except StoreError as error:
        rows.append(_row(source, "skipped", detail=str(error)))
        return
    models = [item for item in found if item.kind in ("model", "trial")]
    if ray and not any(item.kind == "trial" for item in found):
        detail = "it has no trials, which are folders with params.json or result.json; give the folder of them."
        rows.append(_row(source, "skipped", detail=detail))
        return
    for item in found:
        if item.kind == "model" and not ray:
            candidates.append(_candidate(item.path))
        elif item.kind == "trial":
            trials.append(item.path)
        elif item.kind != "model":
            rows.append(_row(str(item.path), item.kind, detail=item.detail))
    if not models and not any(item.kind == "skipped" for item in found):
        detail = "it holds no file of weights; files of weights end in .safetensors, .pt, .pth, .ckpt, .bin, .onnx, ..."
        rows.append(_row(source, "skipped", detail=detail))


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a found thing lies in the zoo that is being written."""
    return path.is_relative_to(os.path.abspath(folder))


def _candidate(path: Path) -> _Candidate:
    return _Candidate(str(path), names_of(path), lambda: _from_file(path))


def _from_file(path: Path) -> Incoming:
    if _utf8(str(path)) != str(path):
        raise StoreError(f"the name of {path} is not UTF-8, so a table cannot hold it; rename the file.")
    model = read_model(path)
    weights = Weights(0, model, path)
    return Incoming(names_of(path), str(path), [weights], declared=declared(model, path))


def _from_hub(source: str) -> Incoming:
    from zoarium.zoo.foreign.hub import fetch, parse_hub_id, read_hub

    model = read_hub(source)
    found = fetch(source, model.metadata["revision"])
    repo, _, file = parse_hub_id(source)
    name = repo.rpartition("/")[2]
    names = (name, repo.replace("/", "--"))
    if file:
        names = tuple(f"{n}.{names_of(Path(file))[0]}" for n in names)
    home = f"hf:{repo}" + (f":{file}" if file else "")
    weights = Weights(0, model, found.path, found.hub)
    return Incoming(names, home, [weights], revision=found.revision, declared=declared(model, found.path))


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Candidates whose first names differ: those that share one are all named with their suffix or their folder."""
    chosen = [list(candidate.names) for candidate in candidates]
    places = Counter((Path(c.source).parent, c.names[0]) for c in candidates if c.names)
    for candidate, names in zip(candidates, chosen, strict=True):
        path = Path(candidate.source)
        if names and places[path.parent, names[0]] > 1:  # small.onnx beside small.pt
            end = path.name.removesuffix(".index.json").rpartition(".")[2]
            names[:] = [f"{name}.{end}" for name in names]
    for _ in range(3):
        counts = Counter(names[0] for names in chosen if names)
        for names in chosen:
            if names and counts[names[0]] > 1 and len(names) > 1:
                names.pop(0)
    out = []
    for candidate, names in zip(candidates, chosen, strict=True):
        out.append(replace(candidate, read=_renamed(candidate.read, tuple(names))) if names else candidate)
    return out


def _renamed(read: Callable[[], Incoming], names: tuple[str, ...]) -> Callable[[], Incoming]:
    def renamed() -> Incoming:
        incoming = read()
        incoming.names = names
        return incoming

    return renamed
