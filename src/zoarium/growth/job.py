"""What a worker does: train one program and put its weights, and what it needs to resume, where they belong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import GridError
from zoarium._core.parallel import Worker
from zoarium.growth.desk import Desk, FolderDesk, PostDesk
from zoarium.zoo.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

    from zoarium.data import Dataset
    from zoarium.train import Program
    from zoarium.zoo import WeightsFile


@dataclass(frozen=True)
class Job:
    """What a worker needs to train any program of a grid and to write its weights."""

    folder: Path
    configs: Sequence[ModelConfig]
    data: Mapping[tuple, Dataset]
    factory: Callable[..., nn.Module] | None
    checkpoints: str | Iterable[int]
    history: str | int
    save_every_s: float

    def desk(self, program: Program) -> FolderDesk:
        """Where a program works when it can see the zoo's folder."""
        return FolderDesk(self.folder, program.key)

    def __call__(self, task: Program | tuple[Program, bytes | None], worker: Worker) -> Grown | None:
        """Train a program, from where it was saved if it was; None if interrupted.

        A remote worker is given the program with what was saved of it, and hands its checkpoints over.
        """
        from zoarium.train import Interrupted, data_key, train_program
        from zoarium.train.timetable import total_epochs
        from zoarium.zoo.weights import pack_weights

        if isinstance(task, tuple):
            program, saved = task
            desk: Desk = PostDesk(worker, program.key, saved)
        else:
            program, desk = task, self.desk(task)
        ids = {row: self.configs[row].id for row in program.rows}
        first = self.configs[program.rows[0]]
        epochs = max(
            total_epochs(self.configs[row].training, len(self.data[data_key(first)].train)) for row in program.rows
        )

        def keep(part: int, checkpoint: Any) -> None:
            packed = pack_weights(
                f"{first.net}-{program.key}-{part}",
                checkpoint.epoch,
                checkpoint.step,
                [ids[row] for row in checkpoint.rows],
                checkpoint.params,
                checkpoint.buffers,
            )
            desk.keep(part, packed)

        result = train_program(
            program,
            self.configs,
            self.data,
            factory=self.factory,
            checkpoints=parse_checkpoints(self.checkpoints, epochs),
            history=self.history,
            state=desk.begin(),
            on_epoch=worker.report,
            stopping=lambda: worker.stopping,
            save_state=lambda state, epoch: desk.save(state),
            save_every_s=self.save_every_s,
            on_checkpoint=keep,
        )
        if isinstance(result, Interrupted):
            return None
        history = {"id": [ids[int(row)] for row in result.history["row"]], **result.history}
        del history["row"]
        diverged = {ids[row]: epoch for row, epoch in result.diverged.items()}
        return Grown(list(desk.files.values()) if isinstance(desk, FolderDesk) else [], history, diverged)


@dataclass(frozen=True)
class Grown:
    """What came out of one program."""

    files: list[WeightsFile]  # written by the worker; none by one that handed them over
    history: dict[str, Any]  # columns; polars must not run in a forked worker
    diverged: dict[str, int]


def parse_checkpoints(wanted: str | Iterable[int], epochs: int) -> list[int]:
    """Epochs to keep, out of 1 .. `epochs`; the last is always among them."""
    if isinstance(wanted, str):
        match = re.fullmatch(r"(last|every)(?::(\d+))?", wanted)
        count = int(match[2] or 1) if match else 0
        if match is None or count < 1:
            raise GridError(f"checkpoints must be last, last:N, every, every:N or a list of epochs, found {wanted!r}.")
        kept = range(epochs - count + 1, epochs + 1) if match[1] == "last" else range(count, epochs + 1, count)
        return sorted({*(e for e in kept if e >= 0), epochs})
    numbers = list(wanted)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise GridError(f"checkpoints must be whole epochs, found {numbers!r}.")
    kept = [epochs + 1 + n if n < 0 else n for n in numbers]
    return sorted({*(e for e in kept if 0 <= e <= epochs), epochs})
