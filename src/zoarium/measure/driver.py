"""Run measures over a zoo: what is missing, chunk by chunk, one single-thread worker a core, here or on a cluster.

A value is computed once: what is stored under the same settings is kept, so measuring again is free and a killed run
resumes where it stopped.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.estimates import Estimates
from zoarium._core.memory import parse_bytes
from zoarium._core.parallel import Share, check_backend, run_tasks
from zoarium._core.ray_worker import Shared
from zoarium._core.registry import Method
from zoarium.measure.plan import Task, plan_measure
from zoarium.measure.registry import MEASURES

if TYPE_CHECKING:
    from zoarium.data import Dataset
    from zoarium.zoo import Zoo
    from zoarium.zoo.cohorts import CohortRef

KEYS = {"model": ("id",), "pair": ("a", "b"), "cell": ("cell",)}
FOLDERS = {"model": "measures", "pair": "pairs", "cell": "cells"}
COMMIT_EVERY_S = 2.0  # finished work is on disk at most this much later

Progress = Callable[[str, int, int], None]
Finished = tuple[Task, dict[str, Estimates], float]


def measure_zoo(
    zoo: Zoo,
    *names: str | Mapping[str, Mapping[str, Any]],
    pairs: str | Sequence[tuple[str, str]] = "cell",
    backend: str = "local",
    address: str | None = None,
    workers: int | None = None,
    memory: int | str = "2GB",
    on_progress: Progress = lambda name, done, total: None,
    **settings: Any,
) -> Zoo:
    """Measure every model of a zoo (or of a view of it) and store the values with it.

    Parameters
    ----------
    zoo : Zoo
        What to measure; diverged models get NaN and a reason.
    *names : str or mapping
        Measures, or quantities of measures; a mapping ``{name: {setting: value}}`` gives each its own settings.
    pairs : {"cell", "all"} or sequence of pairs of ids, default "cell"
        Which pairs a pair measure compares: the seeds of each cell, every two models, or a list.
    backend : {"local", "ray"}, default "local"
        Worker processes on this machine, or tasks on a Ray cluster (``pip install 'zoarium[ray]'``). The values are the
        same.
    address : str, optional
        The Ray cluster, "auto" or HOST:PORT; by default that of RAY_ADDRESS, else one of this machine's own.
    workers : int, optional
        Tasks computed side by side, on one thread each; default one a core.
    memory : int or str, default "2GB"
        Budget of each worker for stacked models and their activations.
    on_progress : callable, optional
        Called with the measure's name, values done and values to do.
    **settings
        Settings for every named measure that takes them.

    Returns
    -------
    Zoo
        The same zoo, so that calls chain.

    Raises
    ------
    MeasureError
        For an unknown measure or setting, or a pair of unknown models.
    LockedError
        If another process is growing or measuring this zoo, before anything is computed.
    """
    chosen = resolve(names, settings)
    check_backend(backend, address)
    budget = parse_bytes(memory)
    tasks = [task for method, own in chosen for task in plan_measure(zoo, method, own, pairs, budget)]
    tasks.sort(key=lambda task: -task.cost)  # long ones first, so that workers finish together
    if tasks:  # what is stored already is free, also where nothing can be written
        with zoo.store.locked():  # two who measured the same zoo would undo each other's work; better said at once
            _run(zoo, tasks, on_progress, backend=backend, address=address, workers=workers)
    return zoo


def _run(zoo: Zoo, tasks: Sequence[Task], on_progress: Progress, **where: Any) -> None:
    """Compute tasks, `where` as :func:`run_tasks` takes it, and store their values every few seconds."""
    total = sum(len(task.keys) for task in tasks)
    done = 0
    finished: list[Finished] = []
    last = time.monotonic()
    jobs = [Job.of(zoo, task) for task in tasks]
    try:
        for index, (values, seconds) in run_tasks(run_job, jobs, send=Job.sent, **where):
            finished.append((tasks[index], values, seconds))
            done += len(tasks[index].keys)
            on_progress(tasks[index].method.name, done, total)
            if time.monotonic() - last > COMMIT_EVERY_S:
                batch, finished = finished, []  # what a full disk refused is not tried again on the way out
                _commit(zoo, batch)
                last = time.monotonic()
    finally:
        _commit(zoo, finished)


@dataclass(frozen=True)
class Job:
    """A task with all it needs read from the tables: what a worker gets."""

    task: Task
    cohorts: list[CohortRef]
    earlier: list[CohortRef]  # the same models at their earlier checkpoints, oldest first
    data: Dataset | Shared | None

    @classmethod
    def of(cls, zoo: Zoo, task: Task) -> Job:
        """Look up weights and data of a task."""
        view = zoo[task.ids]
        facts = task.method.facts
        cohorts = [ref.ready() for ref in view.cohorts()]
        earlier: list[CohortRef] = []
        if facts["needs_checkpoints"]:
            counts = view.checkpoints.group_by("epoch").len().sort("epoch")
            complete = [epoch for epoch, n in counts.iter_rows() if n == len(task.ids)]
            earlier = [ref.ready() for epoch in complete[:-1] for ref in view.cohorts(epoch=epoch)]
        return cls(task, cohorts, earlier, zoo.data_of(task.ids[0]) if facts["needs_data"] else None)

    def sent(self, share: Share) -> Job:
        """The same for a worker that cannot read the zoo: weights and data are read here and shared."""

        def weights(ref: CohortRef) -> Any:
            return share((ref.ids, ref.epochs), ref.load, ref.nbytes)

        return replace(
            self,
            cohorts=[weights(ref) for ref in self.cohorts],
            earlier=[weights(ref) for ref in self.earlier],
            data=None if self.data is None else share(id(self.data), lambda: self.data),
        )


def run_job(job: Job, worker: Any = None) -> tuple[dict[str, Estimates], float]:
    """Compute one task: estimates by quantity, and the seconds it took."""
    start = time.perf_counter()
    task, facts = job.task, job.task.method.facts
    cohorts = [ref.load() for ref in job.cohorts]
    data = job.data.load() if isinstance(job.data, Shared) else job.data
    order = [i for cohort in cohorts for i in cohort.ids]
    rows = task.rows(order)
    if facts["scope"] == "model":
        values = task.method(cohorts[0], data, **task.settings)
    elif facts["scope"] == "cell":
        extra = {"earlier": [ref.load() for ref in job.earlier]} if facts["needs_checkpoints"] else {}
        values = task.method(cohorts[0], rows, data, **task.settings, **extra)
    else:
        import torch

        values = task.method(cohorts if facts["across"] else cohorts[0], torch.tensor(rows), data, **task.settings)
    if isinstance(values, Estimates):
        values = {facts["quantities"][0]: values}
    for quantity, estimates in values.items():
        if len(estimates) != len(task.keys):
            raise MeasureError(
                f"measure {task.method.name!r} returned {len(estimates)} values of {quantity!r} "
                f"for {len(task.keys)} {facts['scope']}s; it must return one each."
            )
    if facts["scope"] == "model":  # in the cohort's order; the task may have another
        values = {quantity: estimates[[row for (row,) in rows]] for quantity, estimates in values.items()}
    return values, time.perf_counter() - start


def quantity_of(name: str) -> Method:
    """The measure behind a name that is a measure's or one of its quantities'."""
    if name in MEASURES:
        return MEASURES[name]
    for method in MEASURES.values():
        if name.partition(":")[0] in method.facts["quantities"]:  # as in cka:fc1
            return method
    quantities = {q for method in MEASURES.values() for q in method.facts["quantities"]}
    raise MeasureError(unknown_name("measure", name, {*MEASURES, *quantities}))


def defaults_of(method: Method) -> dict[str, Any]:
    """Settings of a measure with their defaults."""
    parameters = inspect.signature(method.function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "earlier"}


def resolve(names: Sequence[Any], shared: Mapping[str, Any]) -> list[tuple[Method, dict[str, Any]]]:
    """Named measures, each once, with all of its settings filled in."""
    own: dict[str, dict[str, Any]] = {}
    for name in names:
        for key, settings in name.items() if isinstance(name, Mapping) else [(name, {})]:
            own.setdefault(quantity_of(key).name, {}).update(settings)
    if not own:
        raise MeasureError(f"no measure named; choose from: {', '.join(MEASURES)}.")
    chosen = []
    for name, settings in own.items():
        defaults = defaults_of(MEASURES[name])
        for key in settings:
            if key not in defaults:
                raise MeasureError(unknown_name(f"setting of measure {name!r}", key, defaults))
        merged = {**defaults, **{k: v for k, v in shared.items() if k in defaults}, **settings}
        chosen.append((MEASURES[name], {k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()}))
    known = {key for method, _ in chosen for key in defaults_of(method)}
    for key in shared:
        if key not in known:
            raise MeasureError(unknown_name(f"setting of {', '.join(own)}", key, known))
    return chosen


def _commit(zoo: Zoo, finished: Sequence[Finished]) -> None:
    """Store finished tasks, and with them the settings their hashes stand for, in one transaction."""
    if not finished:
        return
    frames: dict[str, list[pl.DataFrame]] = {}
    for task, values, seconds in finished:
        name = f"{FOLDERS[task.method.facts['scope']]}/{task.method.name}"
        frames.setdefault(name, []).append(as_frame(zoo, task, values, seconds))
    with zoo.writing() as transaction:
        for name, parts in frames.items():
            frame = pl.concat(parts, how="vertical")
            transaction.upsert(name, frame, key=frame.columns[: frame.columns.index("quantity") + 1])
        known = dict(zoo.info.get("measure_settings") or {})
        known |= {task.digest: {"measure": task.method.name, **task.settings} for task, _, _ in finished}
        transaction.update_header(measure_settings=known)


def as_frame(zoo: Zoo, task: Task, values: Mapping[str, Estimates], seconds: float) -> pl.DataFrame:
    """Estimates of a task as rows of the stored table."""
    columns = KEYS[task.method.facts["scope"]]
    keys = {name: [key[n] for key in task.keys] for n, name in enumerate(columns)}
    epoch = dict(zoo[task.ids].checkpoints.group_by("id").agg(pl.col("epoch").max()).iter_rows())
    first = [block.ids[0] for block in task.blocks for _ in block.keys]
    each = seconds / max(1, len(task.keys)) / max(1, len(values))
    return pl.concat(
        [
            pl.DataFrame(
                {
                    **keys,
                    "epoch": [epoch[i] for i in first],
                    "quantity": [quantity] * len(estimates),
                    "value": estimates.value,
                    "stderr": estimates.stderr,
                    "samples": estimates.samples,
                    "products": estimates.products,
                    "seconds": np.full(len(estimates), each),
                    "settings": [task.digest] * len(estimates),
                    "reason": list(estimates.reason),
                },
                schema_overrides={"epoch": pl.Int64},
            )
            for quantity, estimates in values.items()
        ]
    )
