"""Which work a measure still has to do on a zoo, cut into chunks that fit in memory.

A *block* is a set of models that must be in memory together: one model, one cell, or every model a list of pairs ties
together. Blocks of one architecture and one data set are packed into *tasks*. The packing looks at the whole zoo, never
at what is already done or at the number of workers, so an interrupted run cuts the same tasks when it resumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.digest import settings_hash
from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.registry import Method

if TYPE_CHECKING:
    from zoarium.zoo import Zoo

Key = tuple[str, ...]

DATA_COLUMNS = ("data", "data_fraction", "label_noise", "data_seed")
PIECES = 4  # cut even a small zoo into this many tasks a measure, so that workers finish together
ACTIVATIONS = 8  # bytes of intermediate values per byte of weights, roughly


@dataclass(frozen=True)
class Block:
    """Models that belong together and the keys of the values they give: (id,), (a, b) or (cell,)."""

    ids: tuple[str, ...]
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Task:
    """One measure on a few blocks."""

    method: Method
    settings: Mapping[str, Any]
    digest: str
    blocks: tuple[Block, ...]
    cost: float

    @property
    def ids(self) -> list[str]:
        """Models, in the order of the blocks."""
        return [i for block in self.blocks for i in block.ids]

    @property
    def keys(self) -> list[Key]:
        """Keys of the values, in the order of the blocks."""
        return [key for block in self.blocks for key in block.keys]

    def rows(self, order: Sequence[str]) -> list[list[int]]:
        """For each key the rows of its models, where `order` lists the ids of the rows."""
        place = {i: n for n, i in enumerate(order)}
        if self.method.facts["scope"] == "cell":
            return [[place[i] for i in block.ids] for block in self.blocks]
        return [[place[i] for i in key] for block in self.blocks for key in block.keys]


@dataclass(frozen=True)
class Member:
    """What planning needs to know of one model."""

    arch: str
    nbytes: float
    cell: str


def plan_measure(zoo: Zoo, method: Method, settings: Mapping[str, Any], pairs: Any, memory: int) -> list[Task]:
    """Tasks of one measure that are not stored in full already."""
    cell_of = {i: cell for cell, ids in zoo.cells().select("cell", "ids").iter_rows() for i in ids}
    members = {
        i: Member(ref.arch, ref.nbytes / max(1, len(ref.ids)), cell_of[i]) for ref in zoo.cohorts() for i in ref.ids
    }
    lacking = zoo.table.filter(pl.col("status") == "foreign")["id"] if not members else []
    if len(lacking):
        raise MeasureError(
            f"{method.name} runs nets, and {lacking[0]!r}, like all models here, comes from elsewhere without one; say "
            "which net it is with zoo.set_net(net, data=...)."
        )
    tasks: list[Task] = []
    for ids in by_data(zoo, members):
        digest = settings_digest(zoo, method, settings, ids[0])
        stored = stored_keys(zoo, method, digest)
        blocks = list(_blocks(method, pairs, ids, members))
        for packed in _pack(blocks, members, memory):
            if not all(key in stored for block in packed for key in block.keys):
                cost = sum(members[i].nbytes * len(b.keys) / len(b.ids) for b in packed for i in b.ids)
                tasks.append(Task(method, settings, digest, tuple(packed), cost))
    return tasks


def by_data(zoo: Zoo, members: Iterable[str]) -> list[list[str]]:
    """Ids of `members`, grouped by the data they were trained on, in the order of the table."""
    wanted = set(members)
    columns = [name for name in DATA_COLUMNS if name in zoo.table.columns]
    groups: dict[tuple, list[str]] = {}
    for row in zoo.table.select("id", *columns).iter_rows():
        if row[0] in wanted:
            groups.setdefault(row[1:], []).append(row[0])
    return list(groups.values())


def settings_digest(zoo: Zoo, method: Method, settings: Mapping[str, Any], example: str) -> str:
    """Hash of all that decides a stored value: measure, settings, data."""
    row = zoo.row_of(example)
    fingerprint = ((zoo.info["data"] or {}).get(row.get("data")) or {}).get("fingerprint")
    data = [fingerprint, *(row.get(name) for name in DATA_COLUMNS[1:])] if method.facts["needs_data"] else None
    return settings_hash({"measure": method.name, "settings": settings, "data": data})


def stored_keys(zoo: Zoo, method: Method, digest: str) -> set[Key]:
    """Keys whose values are on disk already under these settings, at the models' present checkpoints."""
    stored = zoo.stored(method)
    if stored is None:
        return set()
    keys = stored.columns[: stored.columns.index("quantity")]
    keys.remove("epoch")
    stored = stored.filter(pl.col("settings") == digest)
    return set(stored.select(keys).iter_rows())


def _blocks(method: Method, pairs: Any, ids: list[str], members: Mapping[str, Member]) -> Iterable[Block]:
    scope = method.facts["scope"]
    if scope == "model":
        return (Block((i,), ((i,),)) for i in ids)
    cells: dict[str, list[str]] = {}
    for i in ids:
        cells.setdefault(members[i].cell, []).append(i)
    if scope == "cell":
        return (Block(tuple(group), ((cell,),)) for cell, group in cells.items())
    if isinstance(pairs, str) and pairs == "cell":
        together: Iterable[list[str]] = cells.values()
    elif isinstance(pairs, str) and pairs == "all":
        together = [ids] if method.facts["across"] else _by_arch(ids, members)
    elif isinstance(pairs, str):
        raise MeasureError(unknown_name("choice of pairs", pairs, ["cell", "all"]))
    else:
        return _given_pairs(pairs, ids, members, method)
    return (Block(tuple(group), tuple(itertools.combinations(group, 2))) for group in together if len(group) > 1)


def _given_pairs(
    pairs: Iterable[Sequence[str]], ids: list[str], members: Mapping[str, Member], method: Method
) -> list[Block]:
    """Blocks of a user's own pairs: one for architectures compared across, else one an architecture."""
    inside = set(ids)
    wanted = []
    for pair in pairs:
        a, b = pair
        for i in (a, b):
            if i not in members:
                raise MeasureError(f"pair ({a!r}, {b!r}): {i!r} is not a trained model of this zoo.")
        if not method.facts["across"] and members[a].arch != members[b].arch:
            raise MeasureError(
                f"{method.name} compares models of one architecture, but {a!r} and {b!r} differ; leave that pair out."
            )
        if a in inside and b in inside:
            wanted.append((a, b))
    groups: dict[str, list[Key]] = {}
    for a, b in wanted:
        groups.setdefault("" if method.facts["across"] else members[a].arch, []).append((a, b))
    return [Block(tuple(dict.fromkeys(itertools.chain(*keys))), tuple(keys)) for keys in groups.values()]


def _by_arch(ids: Iterable[str], members: Mapping[str, Member]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for i in ids:
        groups.setdefault(members[i].arch, []).append(i)
    return list(groups.values())


def _pack(blocks: Sequence[Block], members: Mapping[str, Member], memory: int) -> Iterable[list[Block]]:
    """Consecutive blocks of one architecture, up to the budget and to a `PIECES`-th of all the work."""

    def weight(block: Block) -> float:
        return sum(members[i].nbytes for i in block.ids)

    total = sum(weight(block) for block in blocks)
    limit = min(memory / ACTIVATIONS, math.ceil(total / PIECES))
    for _, group in itertools.groupby(
        sorted(blocks, key=lambda b: members[b.ids[0]].arch), key=lambda b: members[b.ids[0]].arch
    ):
        packed: list[Block] = []
        size = 0.0
        for block in group:
            if packed and size + weight(block) > limit:
                yield packed
                packed, size = [], 0.0
            packed.append(block)
            size += weight(block)
        if packed:
            yield packed
