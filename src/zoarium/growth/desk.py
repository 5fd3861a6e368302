"""Where a program that trains puts its checkpoints, and what it needs to resume: into the zoo's folder, or in the post.

A local worker writes into the folder itself. One on a cluster may not see the folder: it hands the same things over to
the process that does, which puts them where the worker would have.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoarium._core.digest import sha256_file
from zoarium._core.files import replacing, write_error

if TYPE_CHECKING:
    from torch import Tensor

    from zoarium._core.parallel import Share, Worker
    from zoarium.train import Program
    from zoarium.zoo import WeightsFile
    from zoarium.zoo.weights import PackedWeights

State = dict[str, "Tensor"]


class Desk(Protocol):
    """Where one program works."""

    def begin(self) -> State | None:
        """What was saved of the program, if it was and all of it is intact."""
        ...

    def keep(self, part: int, weights: PackedWeights) -> None:
        """Put away a checkpoint of a part."""
        ...

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Put away all that training needs to go on."""
        ...


@dataclass
class FolderDesk:
    """The desk of a program in the zoo's own folder."""

    folder: Path
    key: str
    files: dict[str, WeightsFile] = field(default_factory=dict)  # one a part and epoch, however often it came

    @property
    def state_file(self) -> Path:
        """Where the program is saved while it is unfinished."""
        return self.folder / "growing" / f"{self.key}.safetensors"

    def begin(self) -> State | None:
        """Read what was saved; nothing if any of it is damaged: the program then starts again, to the same bits."""
        state, self.files = _read_state(self.state_file)
        return state

    def keep(self, part: int, weights: PackedWeights) -> None:
        """Write a checkpoint; it is part of the zoo once it is committed."""
        self.files[f"{part}@{weights.epoch}"] = weights.write(self.folder)

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Write the state beside the names of the checkpoints before it."""
        _write_state(self.state_file, state, self.files)


@dataclass(frozen=True)
class Kept:
    """A checkpoint on its way."""

    key: str
    part: int
    weights: PackedWeights


@dataclass(frozen=True)
class Saved:
    """A state on its way, as safetensors."""

    key: str
    state: bytes


@dataclass(frozen=True)
class PostDesk:
    """The desk of a program on another machine: everything is handed over."""

    worker: Worker
    key: str
    saved: bytes | None

    def begin(self) -> State | None:
        """What came along."""
        from safetensors.torch import load

        return None if self.saved is None else load(self.saved)

    def keep(self, part: int, weights: PackedWeights) -> None:
        """Hand a checkpoint over; it is not kept here, so memory does not grow with the number of checkpoints."""
        self.worker.hand_over(Kept(self.key, part, weights))

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Hand the state over."""
        from safetensors.torch import save

        self.worker.hand_over(Saved(self.key, save(_plain(state))))


@dataclass
class PostRoom:
    """The other end, beside the zoo's folder: opens what programs hand over and puts it where they would have."""

    folder: Path
    desks: dict[str, FolderDesk] = field(default_factory=dict)

    def send(self, program: Program, share: Share) -> tuple[Program, bytes | None]:
        """What goes to a worker for a program: with it what was saved, perhaps by a worker that is lost."""
        from safetensors.torch import save

        desk = self.desks[program.key] = FolderDesk(self.folder, program.key)
        state = desk.begin()
        return program, None if state is None else save(state)

    def open(self, message: Any) -> bool:
        """Put away a message; False if it is none of ours."""
        from safetensors.torch import load

        if isinstance(message, Kept):
            self.desks[message.key].keep(message.part, message.weights)
        elif isinstance(message, Saved):
            self.desks[message.key].save(load(message.state))
        else:
            return False
        return True

    def files_of(self, program: Program) -> list[WeightsFile]:
        """Checkpoints a program handed over."""
        return list(self.desks[program.key].files.values())


def _plain(state: Mapping[str, Tensor]) -> State:
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}


def _read_state(path: Path) -> tuple[State | None, dict[str, WeightsFile]]:
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


def _write_state(path: Path, state: Mapping[str, Tensor], files: Mapping[str, WeightsFile]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    told = json.dumps({key: file.to_dict() for key, file in files.items()})
    plain = _plain(state)
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a zoo that has gone away does not come back half
        with replacing(path) as temporary:
            save_file(plain, temporary, metadata={"files": told, "digest": _digest(plain, told)})
    except SafetensorError as error:  # a full disk is one of these, not an OSError
        number = re.search(r"os error (\d+)", str(error))
        raise write_error(path, OSError(int(number[1]) if number else 0, str(error))) from error
    except OSError as error:
        raise write_error(path, error) from error


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
