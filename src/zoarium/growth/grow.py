"""Grow a population: plan the whole grid as few stacked programs, train them side by side, store what comes out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.digest import canonical, settings_hash
from zoarium._core.errors import GridError
from zoarium._core.memory import parse_bytes
from zoarium._core.parallel import available_cores, check_backend, run_tasks
from zoarium.growth.desk import PostRoom
from zoarium.growth.grid import Grid
from zoarium.growth.job import Grown, Job, parse_checkpoints
from zoarium.growth.presets import Preset, preset
from zoarium.zoo.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

    from zoarium.data import Dataset
    from zoarium.train import Program
    from zoarium.zoo import Zoo

Progress = Callable[[float, float, str], None]
COMMIT_EVERY_S = 2.0  # a finished program is part of the zoo at most this much later


def grow(
    grid: Grid | Preset | str | Callable[..., nn.Module],
    out: str | Path | None = None,
    *,
    backend: str = "local",
    address: str | None = None,
    workers: int | None = None,
    memory: int | str = "2GB",
    cores: int | None = None,
    checkpoints: str | Iterable[int] = "last",
    history: str | int = "every",
    save_every_s: float = 60.0,
    on_progress: Progress = lambda done, total, note: None,
    **axes: Any,
) -> Zoo:
    """Train every model of a grid and return them as a zoo.

    Parameters
    ----------
    grid : Grid, Preset, str or callable
        What to grow. A net's name or your own factory stands for ``Grid(net, **axes)``, a text such as
        ``"preset:cifar10-resnet18"`` for a published zoo (see :func:`~zoarium.growth.presets.preset`).
    out : path, optional
        Folder of the zoo. One that is there already is resumed or extended: models it holds are kept, the others are
        grown. By default a temporary folder that goes with the returned object; ``zoo.save(path)`` keeps it.
    backend : {"local", "ray"}, default "local"
        Worker processes on this machine, or tasks on a Ray cluster (``pip install 'zoarium[ray]'``). The weights are
        the same.
    address : str, optional
        The Ray cluster, "auto" or HOST:PORT; by default that of RAY_ADDRESS, else one of this machine's own.
    workers : int, optional
        Programs that train side by side, on one thread each; default one a core.
    memory : int or str, default "2GB"
        Budget of all workers of this machine: programs are cut to fit, whatever the size of the population.
    cores : int, optional
        Cores the work is cut for; default this machine's. Give a cluster's, so that there are programs enough to keep
        all of it busy; `memory` stays the budget of as many programs as this machine has cores. Which models share a
        program changes weights by rounding only, but give the same number to resume.
    checkpoints : str or iterable of int, default "last"
        Epochs whose weights are kept: "last", "last:5" (the last five), "every", "every:10", or a list, in which
        negative numbers count from the end (-1 is the last). The last epoch is always kept.
    history : {"every", "last"} or int, default "every"
        Epochs after which train and test loss and accuracy are recorded; a number is a stride.
    save_every_s : float, default 60
        Seconds between saves of unfinished programs, from which an interrupted run resumes.
    on_progress : callable, optional
        Called with (epochs trained, epochs in all, note), summed over models.
    **axes
        Axes of the grid, if `grid` is a net.

    Returns
    -------
    Zoo
        With a row a model; models whose loss stopped being finite have the status ``diverged``.

    Raises
    ------
    GridError
        For a batch larger than the data, or a grid that does not fit the zoo in `out`.
    NetError
        For a net whose outputs do not match the labels, before any training starts.
    KeyboardInterrupt
        After saving: the same call resumes, to the same bits.

    Examples
    --------
    >>> import zoarium as za
    >>> zoo = za.grow("mlp", width=[2, 8], seed=range(2), epochs=3)
    >>> len(zoo), sorted(set(zoo.table["status"]))
    (4, ['trained'])
    """
    if isinstance(grid, str) and grid.startswith("preset:"):
        grid = preset(grid)
    if isinstance(grid, Preset):
        grid = grid.grid
    if not isinstance(grid, Grid):
        grid = Grid(grid, **axes)
    elif axes:
        raise GridError(f"give {', '.join(axes)} to the Grid, not to grow().")
    configs = grid.expand()
    base, data = training_data(grid, configs)
    parse_checkpoints(checkpoints, 1)  # a mistake is said before the work starts
    check_backend(backend, address)
    if cores is not None and cores < 1:
        raise GridError(f"cores must be 1 or more, found {cores}.")
    sizes = _check_nets(grid, configs, data)
    _programs(grid, configs, data, memory, cores)  # what cannot be planned is said before anything is written
    zoo = _open_or_create(out, grid, base)
    if grid.factory is not None:
        zoo.attach_net(grid.net, grid.factory)
    with zoo.growing():
        finished = _register(zoo, grid, configs, base, data, sizes)
        batches: dict[str, list[ModelConfig]] = {}
        for config, batch in zip(configs, _batches(zoo, configs), strict=True):
            batches.setdefault(batch, []).append(config)
        for members in batches.values():
            if not all(config.id in finished for config in members):
                programs = _programs(grid, members, data, memory, cores)
                job = Job(zoo.path, members, data, grid.factory, checkpoints, history, save_every_s)
                _train(zoo, job, programs, finished, on_progress, backend=backend, address=address, workers=workers)
        if "planned" not in zoo.table["status"]:
            shutil.rmtree(zoo.path / "growing", ignore_errors=True)  # also what a kill left half-written there
    return zoo


def training_data(grid: Grid, configs: Sequence[ModelConfig]) -> tuple[dict[str, Dataset], dict[tuple, Dataset]]:
    """The data sets of a grid by name, and what each kind of model trains on by :func:`~zoarium.train.data_key`."""
    from zoarium.data import load
    from zoarium.train import data_key

    base = {name: grid.datasets.get(name) or load(name) for name in dict.fromkeys(c.data for c in configs)}
    data = {}
    for config in configs:
        key = data_key(config)
        if key not in data:
            data[key] = base[config.data].variant(
                fraction=config.data_fraction, label_noise=config.label_noise, seed=config.data_seed
            )
    return base, data


def _check_nets(grid: Grid, configs: Sequence[ModelConfig], data: Mapping[tuple, Dataset]) -> dict[str, int]:
    """Build every architecture once and try it on a few samples; parameters of each."""
    from zoarium.nets import build
    from zoarium.nets.check import check_net
    from zoarium.train import data_key

    sizes: dict[str, int] = {}
    for config in configs:
        dataset = data[data_key(config)]
        arch = arch_of(config, dataset)
        if arch not in sizes:
            net = build(
                grid.factory or config.net, config.net_params, in_shape=dataset.in_shape, n_outputs=dataset.n_outputs
            )
            check_net(net, dataset)
            sizes[arch] = sum(p.numel() for p in net.parameters())
    return sizes


def arch_of(config: ModelConfig, dataset: Dataset) -> str:
    """Name of an architecture: equal for models whose parameters have equal names and shapes."""
    what = [config.net, config.net_params, dataset.in_shape, dataset.n_outputs]
    return f"{config.net}-{settings_hash(what, 8)}"


def _programs(
    grid: Grid,
    configs: Sequence[ModelConfig],
    data: Mapping[tuple, Dataset],
    memory: int | str,
    cores: int | None = None,
) -> list[Program]:
    """The plan: it depends on the models and the machine, never on the backend, the workers or what is done."""
    from zoarium.train import plan

    share = parse_bytes(memory) // available_cores()
    wide = cores or available_cores()
    return plan(configs, data, memory=share * wide, workers=wide, factory=grid.factory)


def _batches(zoo: Zoo, configs: Sequence[ModelConfig]) -> list[str]:
    """Which call of grow() entered each model: models are planned with those they came with, at every resume."""
    known = dict(zoo.table.select("id", "batch").iter_rows())
    return [known[config.id] for config in configs]


def _open_or_create(out: str | Path | None, grid: Grid, base: Mapping[str, Dataset]) -> Zoo:
    from zoarium.zoo import Zoo

    if out is not None and os.path.exists(Path(out) / "zoo.json"):
        zoo = Zoo.open(out)
        for name, dataset in base.items():
            known = (zoo.info.get("data") or {}).get(name)
            if known and known["fingerprint"] != dataset.fingerprint:
                raise GridError(
                    f"data {name!r} is not what {out} was grown on (fingerprint {dataset.fingerprint}, there "
                    f"{known['fingerprint']}); choose another folder, or give the data another name."
                )
        return zoo
    return Zoo.create(
        out,
        grid=grid.to_dict(),
        axes=[a for a in grid.varied if a != "seed"],
        load=grid.load,
        temperature=grid.temperature,
    )


def _register(
    zoo: Zoo,
    grid: Grid,
    configs: Sequence[ModelConfig],
    base: Mapping[str, Dataset],
    data: Mapping[tuple, Dataset],
    sizes: Mapping[str, int],
) -> set[str]:
    """Enter models that are new to the zoo as planned; ids of those that are trained already."""
    from zoarium.train import data_key
    from zoarium.zoo.manifest import DataInfo

    known = dict(zoo.table.select("id", "status").iter_rows()) if len(zoo) else {}
    rows = []
    for config in configs:
        if config.id not in known:
            arch = arch_of(config, data[data_key(config)])
            columns = {k: list(v) if isinstance(v, tuple) else v for k, v in config.columns().items()}
            rows.append(
                {
                    "id": config.id, **columns, "net_params": canonical(config.net_params), "arch": arch,
                    "n_params": sizes[arch], "batch": grid.digest, "status": "planned", "parents": [], "relation": None,
                }
            )  # fmt: skip
    if rows:
        frame = pl.DataFrame(
            rows,
            infer_schema_length=None,
            schema_overrides={
                "parents": pl.List(pl.String),
                "relation": pl.String,
                "steps": pl.Int64,
                "clip_norm": pl.Float64,
            },
        )
        with zoo.writing() as transaction:
            transaction.upsert("models", frame, key=["id"])
            for name, dataset in base.items():
                if name in grid.datasets:
                    transaction.add_data(name, dataset)
                else:
                    transaction.describe_data(name, DataInfo.of(dataset, "registered"))
            axes = list(dict.fromkeys([*zoo.axes, *(a for a in grid.varied if a != "seed")]))
            transaction.update_header(
                grid=grid.to_dict(),
                axes=axes,
                load=grid.load or zoo.load,
                temperature=grid.temperature or zoo.temperature,
            )
    return {i for i, status in known.items() if status in ("trained", "diverged")}


def _train(
    zoo: Zoo,
    job: Job,
    programs: Sequence[Program],
    finished: set[str],
    on_progress: Progress,
    **where: Any,
) -> None:
    """Run the programs not finished yet and commit each as it ends."""
    from zoarium.train import data_key
    from zoarium.train.timetable import total_epochs

    def length(program: Program) -> int:
        return sum(
            total_epochs(job.configs[row].training, len(job.data[data_key(job.configs[row])].train))
            for row in program.rows
        )

    todo = [p for p in programs if not all(job.configs[row].id in finished for row in p.rows)]
    total = sum(map(length, programs))
    before = total - sum(map(length, todo))
    trained: dict[str, int] = {}

    start = time.monotonic()

    room = PostRoom(zoo.path)

    def report(epoch: Any) -> None:
        if room.open(epoch):
            return
        trained[epoch.key] = epoch.model_epochs
        done = sum(trained.values())
        speed = done / total * len(job.configs) / max(time.monotonic() - start, 1e-9)
        on_progress(before + done, total, f"{speed:.1f} models/s")

    waiting: list[tuple[Program, Grown]] = []
    committed = start
    interrupted = False
    try:
        for index, grown in run_tasks(job, todo, **where, graceful=True, on_report=report, send=room.send):
            if grown is None:
                interrupted = True
                continue
            if todo[index].key in room.desks:
                grown = replace(grown, files=room.files_of(todo[index]))
            waiting.append((todo[index], grown))
            if time.monotonic() - committed > COMMIT_EVERY_S:
                batch, waiting = waiting, []  # what a full disk refused is not tried again on the way out
                _commit(zoo, job, batch)
                committed = time.monotonic()
    finally:
        _commit(zoo, job, waiting)
    if interrupted:
        raise KeyboardInterrupt


def _commit(zoo: Zoo, job: Job, finished: Sequence[tuple[Program, Grown]]) -> None:
    """One transaction for some finished programs: weights, history and the models' new status."""
    if not finished:
        return
    history = pl.concat([pl.DataFrame(grown.history) for _, grown in finished])
    diverged = [i for _, grown in finished for i in grown.diverged]
    status = pl.when(pl.col("id").is_in(diverged)).then(pl.lit("diverged")).otherwise(pl.lit("trained"))
    with zoo.writing() as transaction:
        for _, grown in finished:
            for file in grown.files:
                transaction.add_weights_file(file)
        transaction.upsert("history", history, key=["id", "epoch"])
        models = zoo.table.join(history.select("id").unique(), on="id", how="semi", maintain_order="left")
        transaction.upsert("models", models.with_columns(status=status), key=["id"])
    for program, _ in finished:
        job.desk(program).state_file.unlink(missing_ok=True)
