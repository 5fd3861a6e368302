"""Which models run together: a plan that follows from the configurations alone.

Models that can share arithmetic (one family of architectures, one number of training samples, one kind of optimiser)
are sorted by width and batch size and cut into contiguous programs by dynamic programming over a cost model
(`zoarium.train.cost`): few programs save kernel calls, many save padding and small matrix products. Then long programs
are halved until the workers finish together and each program fits its share of the memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from zoarium._core.digest import settings_hash
from zoarium._core.errors import DataError, GridError
from zoarium.data.dataset import Dataset
from zoarium.nets.registry import Factory
from zoarium.train.architecture import Architecture, DataKey, Route, architecture_key, data_key, describe
from zoarium.train.augment import check_augment
from zoarium.train.cost import CACHE, autograd_bytes, autograd_seconds, chain_bytes, chain_seconds
from zoarium.train.optimisers import OPTIMISERS
from zoarium.train.timetable import total_epochs
from zoarium.zoo.config import ModelConfig


@dataclass(frozen=True)
class Program:
    """Models that train in one stack.

    Attributes
    ----------
    rows : tuple of int
        Their places in the list of configurations, in the order of the stack.
    key : str
        A digest of their ids: the same for the same models on every run.
    route : {"chain", "conv", "vmap", "loop"}
        Hand-written products, hand-written convolutions, autograd over a stacked forward pass, or one model after the
        other.
    reason : str
        Why they run together and this way, in words.
    cost : float
        Estimated seconds on one core.
    bytes : int
        Estimated peak memory.
    """

    rows: tuple[int, ...]
    key: str
    route: Route
    reason: str
    cost: float
    bytes: int

    def __str__(self) -> str:
        size = f"{len(self.rows)} models, {self.route}, ~{self.cost:.2g} s, {self.bytes >> 20} MiB"
        return f"{self.key}: {size} ({self.reason})"


@dataclass(frozen=True)
class _Item:
    """A model as the planner sees it."""

    row: int
    config: ModelConfig
    architecture: Architecture
    samples: int
    id: str

    @property
    def batch(self) -> int:
        return min(self.config.training.batch_size, self.samples)

    @property
    def sizes(self) -> tuple[int, ...]:
        chain = self.architecture.chain
        return chain.sizes if chain else ()


def plan(
    configs: Sequence[ModelConfig], data: Mapping[DataKey, Dataset], *, memory: int = 2 << 30, workers: int = 1,
    factory: Factory | None = None, dtype: torch.dtype = torch.float32,
) -> list[Program]:  # fmt: skip
    """Cut a population into programs, longest first.

    Parameters
    ----------
    configs : sequence of ModelConfig
        The whole population.
    data : mapping
        The data set of each :func:`~zoarium.train.data_key`.
    memory : int, default 2 GiB
        Bytes all workers together may hold.
    workers : int, default 1
        Programs that run side by side.
    factory : callable, optional
        Builds the user's own module in place of the registered net.

    Raises
    ------
    GridError
        A batch larger than the training data, or a model that does not fit the memory.
    DataError, NetError
        Data that hold NaN; a net that does not fit its data.

    Notes
    -----
    The plan is a deterministic function of its arguments. Which models share a program changes results by rounding
    only, but a resumed run must use the plan it began with to give the same bits.
    """
    budget = memory // max(workers, 1)
    programs: list[Program] = []
    families = _families(configs, data, factory).values()
    for items in families:
        for part in _cut(items):
            programs += [_program(chunk, dtype) for chunk in _fit(part, budget, dtype)]
    programs = _balance(programs, workers, {item.row: item for items in families for item in items}, dtype)
    return sorted(programs, key=lambda p: (-p.cost, p.key))


def _families(
    configs: Sequence[ModelConfig], data: Mapping[DataKey, Dataset], factory: Factory | None
) -> dict[Any, list[_Item]]:
    """Models that could share a program."""
    known: dict[Any, Architecture] = {}
    checked: set[int] = set()
    families: dict[Any, list[_Item]] = {}
    for row, config in enumerate(configs):
        dataset = data[data_key(config)]
        if id(dataset) not in checked:
            _check_data(dataset)
            checked.add(id(dataset))
        training, count = config.training, len(dataset.train)
        if training.batch_size > count:
            raise GridError(
                f"batch_size {training.batch_size} is larger than the {count} training samples of {dataset.name!r}"
                f"{f' at data_fraction {config.data_fraction}' if config.data_fraction < 1 else ''}; "
                f"use at most {count}."
            )
        key = architecture_key(config, dataset)
        if key not in known:
            known[key] = describe(config, dataset, factory)
        one = known[key]
        check_augment(training.augment, dataset.in_shape, dataset.name)
        nesterov = training.nesterov if training.optimizer == "sgd" else None
        rule = (training.optimizer, nesterov, training.drop_last, training.augment)
        length = (
            ("epochs", training.epochs) if training.steps is None else ("steps", training.steps, training.batch_size)
        )
        batch = (training.batch_size, training.micro_batch) if one.batch_statistics else None
        shape = one.chain.family if one.chain else key
        family = (one.route, shape, dataset.task, dataset.n_outputs, count, rule, length, batch)
        families.setdefault(family, []).append(_Item(row, config, one, count, config.id))
    return families


def _check_data(dataset: Dataset) -> None:
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        for what, values in (("inputs", split.x), ("targets", split.y)):
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).flatten(1).any(1).sum()) if values.dim() > 1 else 1
                raise DataError(
                    f"{what} of the {name} split of {dataset.name!r} hold NaN or infinity in {bad} of {len(values)} "
                    "rows; drop or fill those rows."
                )


def _cut(items: list[_Item]) -> list[list[_Item]]:
    """Return the cheapest cut of a family into contiguous ranges of width, and of batch size within each."""
    widths = sorted({item.sizes for item in items}, key=lambda s: (sum(s), s))
    by_width = [[item for item in items if item.sizes == size] for size in widths]

    @lru_cache(None)
    def bucket(a: int, b: int) -> tuple[float, list[list[_Item]]]:
        return _cut_batches([item for group in by_width[a:b] for item in group])

    best: list[tuple[float, list[list[_Item]]]] = [(0.0, [])]
    for b in range(1, len(by_width) + 1):
        options = []
        for a in range(b):
            cost, parts = bucket(a, b)
            options.append((best[a][0] + cost, best[a][1] + parts))
        best.append(min(options, key=lambda o: o[0]))
    return best[-1][1]


def _cut_batches(items: list[_Item]) -> tuple[float, list[list[_Item]]]:
    batches = sorted({item.batch for item in items})
    by_batch = [[item for item in items if item.batch == batch] for batch in batches]
    best: list[tuple[float, list[list[_Item]]]] = [(0.0, [])]
    for b in range(1, len(batches) + 1):
        options = []
        for a in range(b):
            group = [item for part in by_batch[a:b] for item in part]
            options.append((best[a][0] + _seconds(group), [*best[a][1], group]))
        best.append(min(options, key=lambda o: o[0]))
    return best[-1]


def _facts(items: Sequence[_Item]) -> tuple[list[int], list[int], list[int], int]:
    """Return padded sizes, distinct batch sizes, models of each, micro-batch."""
    counts: dict[int, int] = {}
    for item in items:
        counts[item.batch] = counts.get(item.batch, 0) + 1
    batches = sorted(counts)
    sizes = [max(values) for values in zip(*{item.sizes for item in items}, strict=True)]
    return sizes, batches, [counts[b] for b in batches], math.gcd(*batches)


def _slots(item: _Item) -> int:
    return len(OPTIMISERS[item.config.training.optimizer].slots)


def _seconds(items: Sequence[_Item]) -> float:
    first = items[0]
    sizes, batches, counts, micro = _facts(items)
    one = first.architecture
    if one.chain:
        # beyond the cache a stack is cut in pieces anyway: price it piece by piece
        p = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
        pieces = max(1, math.ceil(4 * p * len(items) * (2 + _slots(first)) / CACHE))
        if pieces > 1:
            share = [max(1, c // pieces) for c in counts]
            scale = sum(counts) / sum(share)
            epoch = scale * chain_seconds(sizes, batches, share, micro, first.samples, _slots(first))
        else:
            epoch = chain_seconds(sizes, batches, counts, micro, first.samples, _slots(first))
    elif one.found:
        epoch = one.found.seconds(sum(counts), micro, first.samples)
    else:
        tensors = len(one.net.layout.shapes)
        epoch = autograd_seconds(
            one.work, tensors, one.size, batches, counts, micro, first.samples, one.route == "loop"
        )
    return epoch * max(total_epochs(first.config.training, first.samples), 1)


def _bytes(items: Sequence[_Item], dtype: torch.dtype) -> int:
    first = items[0]
    sizes, _, _, micro = _facts(items)
    one, item = first.architecture, dtype.itemsize
    if one.chain:
        return chain_bytes(sizes, len(items), micro, first.samples, _slots(first), item)
    if one.found:
        return one.found.bytes(len(items), micro, first.samples, item)
    return autograd_bytes(one.work, one.size, len(items), micro, first.samples, one.inputs, item)


def _program(items: Sequence[_Item], dtype: torch.dtype) -> Program:
    ordered = sorted(items, key=lambda i: (i.batch, sum(i.sizes), i.sizes, i.config.seed, i.id))
    sizes, batches, _, micro = _facts(ordered)
    first = ordered[0].architecture
    words = [first.reason]
    if first.chain and len({item.sizes for item in ordered}) > 1:
        low, high = (f(sum(item.sizes[1:-1]) for item in ordered) for f in (min, max))
        words.append(f"{low} to {high} hidden units padded to {sum(sizes[1:-1])}")
    if len(batches) > 1:
        words.append(f"batches {batches[0]} to {batches[-1]} in micro-steps of {micro}")
    if first.found:
        words.append(first.found.words(len(ordered), min(micro, ordered[0].samples)))
    key = settings_hash([item.id for item in ordered], 16)
    return Program(
        tuple(item.row for item in ordered),
        key,
        first.route,
        "; ".join(words),
        _seconds(ordered),
        _bytes(ordered, dtype),
    )


def _fit(items: list[_Item], budget: int, dtype: torch.dtype) -> list[list[_Item]]:
    """Cut a program into pieces that fit the memory and, where they may, the cache; each keeps the mix of batches."""
    first = items[0]
    sizes = _facts(items)[0]
    pieces = 1
    if first.architecture.chain:
        p = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
        pieces = math.ceil(4 * p * len(items) * (2 + _slots(first)) / CACHE)
    while True:
        pieces = min(pieces, len(items))
        parts = _deal(items, pieces)
        worst = max(parts, key=len)
        need = _bytes(worst, dtype)
        if need <= budget:
            return parts
        if pieces == len(items):
            raise GridError(
                f"one model of net {first.config.net!r} with {first.config.net_params} and batch {first.batch} needs "
                f"about {need / 2**20:.0f} MiB to train but a worker may use {budget / 2**20:.0f} MiB; "
                "give more memory or fewer workers."
            )
        pieces = min(max(pieces + 1, math.ceil(pieces * need / max(budget, 1))), len(items))


def _deal(items: Sequence[_Item], pieces: int) -> list[list[_Item]]:
    """Deal models out so that every piece has the same mix of widths and batch sizes, seed after seed."""
    ordered = sorted(items, key=lambda i: (i.batch, i.sizes, i.config.seed, i.id))
    return [ordered[k::pieces] for k in range(pieces) if ordered[k::pieces]]


def _balance(programs: list[Program], workers: int, items: Mapping[int, _Item], dtype: torch.dtype) -> list[Program]:
    """Halve long programs while that lets the workers finish earlier."""
    if workers < 2 or not programs:
        return programs
    for _ in range(4 * workers):
        finish = _makespan([p.cost for p in programs], workers)
        better = None
        for longest in sorted(programs, key=lambda p: (-p.cost, p.key))[:3]:
            if len(longest.rows) < 2:
                continue
            halves = [_program(part, dtype) for part in _deal([items[row] for row in longest.rows], 2)]
            trial = [p for p in programs if p is not longest] + halves
            time = _makespan([p.cost for p in trial], workers)
            if time < 0.97 * finish and (better is None or time < better[0]):
                better = (time, trial)
        if better is None:
            return programs
        programs = better[1]
    return programs


def _makespan(costs: Sequence[float], workers: int) -> float:
    """When the last worker finishes if each takes the longest task left."""
    loads = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        loads[loads.index(min(loads))] += cost
    return max(loads)
