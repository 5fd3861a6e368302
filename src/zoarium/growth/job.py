"""What a worker does: train one program, write its weights, and keep what it needs to resume."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.digest import sha256_file
from zoarium._core.errors import GridError
from zoarium._core.files import replacing, write_error
from zoarium._core.parallel import Worker
from zoarium.zoo.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

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

    def state_file(self, program: Program) -> Path:
        """Where an unfinished program is saved."""
        return self.folder / "growing" / f"{program.key}.safetensors"

    def __call__(self, program: Program, worker: Worker) -> Grown | None:
        """Train a program, from where it was saved if it was; None if interrupted."""
        from zoarium.train import Interrupted, data_key, train_program
        from zoarium.train.timetable import total_epochs
        from zoarium.zoo import write_weights

        state, files = _read_state(self.state_file(program))
        ids = {row: self.configs[row].id for row in program.rows}
        first = self.configs[program.rows[0]]
        epochs = max(
            total_epochs(self.configs[row].training, len(self.data[data_key(first)].train)) for row in program.rows
        )

        def keep(part: int, checkpoint: Any) -> None:
            name = f"{first.net}-{program.key}-{part}"
            files[f"{part}@{checkpoint.epoch}"] = write_weights(
                self.folder,
                name,
                checkpoint.epoch,
                checkpoint.step,
                [ids[row] for row in checkpoint.rows],
                checkpoint.params,
                checkpoint.buffers,
            )

        result = train_program(
            program,
            self.configs,
            self.data,
            factory=self.factory,
            checkpoints=parse_checkpoints(self.checkpoints, epochs),
            history=self.history,
            state=state,
            on_epoch=worker.report,
            stopping=lambda: worker.stopping,
            save_state=lambda state, epoch: _write_state(self.state_file(program), state, files),
            save_every_s=self.save_every_s,
            on_checkpoint=keep,
        )
        if isinstance(result, Interrupted):
            return None
        history = {"id": [ids[int(row)] for row in result.history["row"]], **result.history}
        del history["row"]
        diverged = {ids[row]: epoch for row, epoch in result.diverged.items()}
        return Grown(list(files.values()), history, diverged)


@dataclass(frozen=True)
class Grown:
    """What came out of one program."""

    files: list[WeightsFile]
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


def _read_state(path: Path) -> tuple[dict[str, Tensor] | None, dict[str, WeightsFile]]:
    """A saved state and the checkpoints written before it; nothing if there is none, or if any of it is damaged."""
    from safetensors import SafetensorError, safe_open

    from zoarium.zoo.weights import WeightsFile

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if told["digest"] != _digest(state, told["files"]):
            return None, {}
        files = {key: WeightsFile.from_dict(value) for key, value in json.loads(told["files"]).items()}
        root = path.parent.parent
        if all((root / f.name).exists() and sha256_file(root / f.name) == f.info.sha256 for f in files.values()):
            return state, files
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        pass
    return None, {}  # the program is trained again from its start, to the same bits


def _digest(state: Mapping[str, Tensor], files: str) -> str:
    """BLAKE2b-128 of a state and of what is said of the files written before it."""
    import torch

    digest = hashlib.blake2b(files.encode(), digest_size=16)
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_state(path: Path, state: Mapping[str, Tensor], files: Mapping[str, WeightsFile]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    told = json.dumps({key: file.to_dict() for key, file in files.items()})
    plain = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a zoo that has gone away does not come back half
        with replacing(path) as temporary:
            save_file(plain, temporary, metadata={"files": told, "digest": _digest(plain, told)})
    except SafetensorError as error:  # a full disk is one of these, not an OSError
        number = re.search(r"os error (\d+)", str(error))
        raise write_error(path, OSError(int(number[1]) if number else 0, str(error))) from error
    except OSError as error:
        raise write_error(path, error) from error
