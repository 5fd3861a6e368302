"""Train one program: many models, one loop, the semantics of a plain PyTorch loop for each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import GridError
from zoarium.data.dataset import Dataset
from zoarium.nets.registry import Factory
from zoarium.train.architecture import (
    Architecture,
    DataKey,
    architecture_key,
    build_model,
    data_key,
    describe,
)  # fmt: skip
from zoarium.train.plan import Program
from zoarium.train.run import Run, State
from zoarium.zoo.config import ModelConfig

COLUMNS = ("row", "epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of the models of one architecture after an epoch: ``params[name]`` is (k, *shape), `step` is (k,)."""

    epoch: int
    step: Tensor
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    rows: tuple[int, ...]


@dataclass
class Part:
    """The models of one architecture in a program, with their checkpoints by ascending epoch."""

    rows: tuple[int, ...]
    checkpoints: list[Checkpoint] = field(default_factory=list)


@dataclass(frozen=True)
class EpochReport:
    """Progress of a program; `model_epochs` counts models times epochs done, `seconds` the time since it began."""

    key: str
    epoch: int
    epochs: int
    models: int
    model_epochs: int
    seconds: float
    diverged: int


@dataclass(frozen=True)
class Trained:
    """A finished program.

    Attributes
    ----------
    rows : tuple of int
        The models, as places in the list of configurations.
    parts : list of Part
        One an architecture.
    history : dict of arrays
        Columns `row`, `epoch`, `step` (optimiser steps done), `lr` (of the last of them), `train_loss`,
        `train_accuracy`, `test_loss`, `test_accuracy` (evaluation mode, whole splits, no label smoothing; NaN accuracy
        for regression) and `seconds` (training time so far, an equal share of the program's). Epoch 0 is before
        training. A diverged model has a last line with NaN at the epoch it diverged.
    diverged : dict of int to int
        Epoch at whose end a model was found to hold a NaN or infinite weight (or, at the end, an infinite loss); its
        weights stay those of the epoch before.
    seconds : float
        Wall time.
    """

    rows: tuple[int, ...]
    parts: list[Part]
    history: dict[str, np.ndarray]
    diverged: dict[int, int]
    seconds: float


@dataclass(frozen=True)
class Interrupted:
    """A program that was asked to stop after `epoch`; its state went to `save_state`."""

    key: str
    epoch: int
    seconds: float


def checkpoint_epochs(checkpoints: str | int | Sequence[int], epochs: int) -> list[int]:
    """Return the epochs to keep: "last", "every" (from 0, before training), every k-th, or a list; always the last."""
    if checkpoints == "last":
        wanted: set[int] = set()
    elif isinstance(checkpoints, str):
        if checkpoints != "every":
            raise GridError(
                f"checkpoints {checkpoints!r} is not 'last', 'every', a number of epochs or a list of epochs."
            )
        wanted = set(range(epochs + 1))
    elif isinstance(checkpoints, int):
        if checkpoints < 1:
            raise GridError(f"checkpoints={checkpoints} is not a number of epochs; give 1 or more, 'last' or a list.")
        wanted = set(range(0, epochs + 1, checkpoints))
    else:
        wanted = {int(e) for e in checkpoints if 0 <= int(e) <= epochs}
    return sorted(wanted | {epochs})


def train_program(
    program: Program, configs: Sequence[ModelConfig], data: Mapping[DataKey, Dataset], *,
    factory: Factory | None = None, checkpoints: str | int | Sequence[int] = "last", history: str | int = "every",
    state: Mapping[str, Tensor] | None = None,
    on_epoch: Callable[[EpochReport], object] | None = None, stopping: Callable[[], bool] | None = None,
    save_state: Callable[[State, int], object] | None = None, save_every_s: float = 60.0,
    on_checkpoint: Callable[[int, Checkpoint], object] | None = None,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> Trained | Interrupted:  # fmt: skip
    """Train the models of one program.

    Parameters
    ----------
    program : Program
        From :func:`~zoarium.train.plan`.
    configs, data
        What `plan` was given.
    factory : callable, optional
        The user's own net.
    checkpoints : {"last", "every"}, int or sequence of int
        Epochs whose weights to keep (see :func:`checkpoint_epochs`).
    history : {"every", "last"} or int
        Epochs to evaluate on both splits: every one (and 0, before training), the last only, or every k-th.
    state : mapping of str to Tensor, optional
        What `save_state` received: go on from there, to the same bits.
    on_epoch : callable, optional
        Receives an :class:`EpochReport` after every epoch.
    stopping : callable, optional
        Asked after every epoch; once true, the state is saved and :class:`Interrupted` returned.
    save_state : callable, optional
        Receives (state, epoch) every `save_every_s` seconds, and when stopping.
    on_checkpoint : callable, optional
        Receives (index of the part, checkpoint) as checkpoints arise; none is then kept in memory. After a resume those
        since the saved state come again, with the same bits.
    dtype, device
        Of the weights; the CPU and float32 by default.

    Returns
    -------
    Trained or Interrupted

    Notes
    -----
    Semantics are those of :func:`~zoarium.train.train_one_plainly` for every model: agreement to 1e-10 after an epoch
    in float64, whatever else is in the program.
    """
    began = time.perf_counter()
    chosen = [configs[row] for row in program.rows]
    run, keys = _load(chosen, data, factory, program.key, dtype, device)
    groups = [[i for i, key in enumerate(keys) if key == k] for k in range(max(keys) + 1)]
    parts = [Part(tuple(program.rows[i] for i in group)) for group in groups]
    epochs = run.timetable.epochs
    kept = set(checkpoint_epochs(checkpoints, epochs))
    stride = {"every": 1, "last": epochs or 1}.get(history, history) if isinstance(history, str) else history
    if not isinstance(stride, int) or stride < 1:
        raise GridError(f"history {history!r} is not 'every', 'last' or a number of epochs.")
    lines: list[np.ndarray] = []
    start, spent = 0, 0.0

    def keep(epoch: int) -> None:
        steps = torch.as_tensor(run.timetable.done(epoch))
        for k, (group, part) in enumerate(zip(groups, parts, strict=True)):
            params, buffers = run.stack.dump(k, group)
            checkpoint = Checkpoint(epoch, steps[group], params, buffers, part.rows)
            if on_checkpoint is None:
                part.checkpoints.append(checkpoint)
            else:
                on_checkpoint(k, checkpoint)

    def note(epoch: int) -> None:
        measured = run.evaluate()
        if epoch == epochs:
            lost = torch.from_numpy(~np.isfinite(measured[:, 0])) & (run.diverged == 0)
            run.diverged[lost] = max(epoch, 1)
        fallen = run.diverged.numpy()
        measured[fallen > 0] = np.nan
        lines.append(_lines(program.rows, run, epoch, measured, (spent + time.perf_counter() - began) / run.n, fallen))

    if state is None:
        if 0 in kept:
            keep(0)
        if stride < epochs or epochs == 0 or history == "every":
            note(0)
    else:
        start, spent = int(state["epoch"]), float(state["seconds"])
        run.restore(state)
        lines.append(state["history"].numpy())
        _restore_checkpoints(state, parts)
    saved = time.perf_counter()
    for epoch in range(start + 1, epochs + 1):
        before = run.snapshot()
        run.train_epoch(epoch - 1)
        lost = ~run.finite()
        if bool(lost.any()):
            run.diverged[lost & (run.diverged == 0)] = epoch
            run.restore(before, lost | (run.diverged > 0))
        elif bool(run.diverged.any()):
            run.restore(before, run.diverged > 0)
        fresh = bool((run.diverged == epoch).any())
        if epoch % stride == 0 or epoch == epochs:
            note(epoch)
        elif fresh:
            lines.append(_fallen_lines(program.rows, run, epoch, spent + time.perf_counter() - began))
        if epoch in kept:
            keep(epoch)
        now = time.perf_counter()
        if on_epoch is not None:
            fallen = int((run.diverged > 0).sum())
            on_epoch(EpochReport(program.key, epoch, epochs, run.n, run.n * epoch, spent + now - began, fallen))
        stop = stopping is not None and epoch < epochs and stopping()
        if save_state is not None and epoch < epochs and (stop or now - saved >= save_every_s):
            save_state(_full_state(run, epoch, spent + now - began, lines, parts), epoch)
            saved = time.perf_counter()
        if stop:
            return Interrupted(program.key, epoch, spent + time.perf_counter() - began)
    table = np.concatenate(lines) if lines else np.empty((0, len(COLUMNS)))
    columns = {name: table[:, i] for i, name in enumerate(COLUMNS)}
    for name in ("row", "epoch", "step"):
        columns[name] = columns[name].astype(np.int64)
    diverged = {program.rows[i]: int(e) for i, e in enumerate(run.diverged.tolist()) if e}
    return Trained(program.rows, parts, columns, diverged, spent + time.perf_counter() - began)


def _load(
    configs: Sequence[ModelConfig], data: Mapping[DataKey, Dataset], factory: Factory | None, name: str,
    dtype: torch.dtype, device: torch.device | str,
) -> tuple[Run, list[int]]:  # fmt: skip
    """Build a run and fill it with freshly initialised models."""
    found: dict[object, int] = {}
    architectures: list[Architecture] = []
    which: list[int] = []
    for config in configs:
        dataset = data[data_key(config)]
        key = architecture_key(config, dataset)
        if key not in found:
            found[key] = len(architectures)
            architectures.append(describe(config, dataset, factory))
        which.append(found[key])
    streams = [data_key(config) for config in configs]
    run = Run(
        [c.training for c in configs],
        [c.seed for c in configs],
        streams,
        data,
        architectures,
        which,
        name,
        dtype,
        device,
    )
    fresh: dict[tuple[int, int], Mapping[str, Tensor]] = {}  # models of a cell's row differ in batch size, not at birth
    with torch.no_grad():
        for i, config in enumerate(configs):
            key = (which[i], config.seed)
            if key not in fresh:
                module = build_model(config, data[streams[i]], factory)
                fresh[key] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            run.stack.load(i, fresh[key])
    return run, which


def _lines(
    rows: Sequence[int], run: Run, epoch: int, measured: np.ndarray, seconds: float, fallen: np.ndarray
) -> np.ndarray:
    """History lines of an epoch; a diverged model has none after the epoch it diverged in."""
    done = run.timetable.done(epoch)
    rate = run.timetable.rate_at(done)
    shown = (fallen == 0) | (fallen >= epoch)
    left = [np.array(rows), np.full(run.n, epoch), done, rate]
    return np.column_stack([*left, measured, np.full(run.n, seconds)])[shown]


def _fallen_lines(rows: Sequence[int], run: Run, epoch: int, seconds: float) -> np.ndarray:
    fallen = run.diverged.numpy()
    empty = np.full((run.n, 4), np.nan)
    return _lines(rows, run, epoch, empty, seconds / run.n, np.where(fallen == epoch, epoch, -1))


def _full_state(run: Run, epoch: int, seconds: float, lines: list[np.ndarray], parts: list[Part]) -> State:
    state = run.snapshot()
    state["epoch"], state["seconds"] = torch.tensor(epoch), torch.tensor(seconds, dtype=torch.float64)
    state["history"] = torch.from_numpy(np.concatenate(lines) if lines else np.empty((0, len(COLUMNS))))
    for k, part in enumerate(parts):
        for checkpoint in part.checkpoints:
            prefix = f"checkpoint.{k}.{checkpoint.epoch}."
            state[prefix + "step"] = checkpoint.step
            state |= {f"{prefix}params.{name}": t for name, t in checkpoint.params.items()}
            state |= {f"{prefix}buffers.{name}": t for name, t in checkpoint.buffers.items()}
    return state


def _restore_checkpoints(state: Mapping[str, Tensor], parts: list[Part]) -> None:
    found: dict[tuple[int, int], dict[str, dict[str, Tensor]]] = {}
    for name, tensor in state.items():
        if name.startswith("checkpoint."):
            _, k, epoch, kind, *rest = name.split(".", 4)
            found.setdefault((int(k), int(epoch)), {"params": {}, "buffers": {}, "step": {}})[kind][
                rest[0] if rest else ""
            ] = tensor
    for (k, epoch), kinds in sorted(found.items()):
        parts[k].checkpoints.append(
            Checkpoint(epoch, kinds["step"][""], kinds["params"], kinds["buffers"], parts[k].rows)
        )
