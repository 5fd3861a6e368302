"""One trial of a Ray-era zoo: its configuration, its results line by line, its checkpoints.

A trial is a folder as Ray Tune wrote it: ``params.json`` (keys such as ``model::width``), ``result.json`` (JSON lines,
line e for epoch e, line 0 before training) and ``checkpoint_000115/checkpoints`` (a pickled state dict). Files may be
missing or cut short, and what they say of paths is of another machine.

Schürholt, Taskiran, Knyazev, Giró-i-Nieto & Borth, "Model zoos: a dataset of diverse populations of neural network
models", 2022 (arXiv 2209.14764); the zoos of phase transitions of 2025 (arXiv 2504.18072) use the same layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoarium._core.errors import StoreError, ZoariumError
from zoarium.zoo.foreign.find import CHECKPOINT_FOLDER
from zoarium.zoo.foreign.reader import read_json
from zoarium.zoo.foreign.source import SourceFile, shown

CONFIGS = ("params.json", "config.json")
WEIGHT_FILES = ("checkpoints", "checkpoint", "checkpoint.pt", "model.pt", "model.pth", "checkpoint.pth")
LONGEST_LINE = 2**20
MOST_RESULTS = 64 * 2**20  # bytes of result.json; 150 epochs of the published zoos have half a MB
MOST_CONFIG = 100_000  # characters kept of a configuration

# theirs: ours, and its type
COLUMNS: dict[str, tuple[str, type]] = {
    "model::width": ("width", int), "model::nlin": ("activation", str), "model::dropout": ("dropout", float),
    "model::init_type": ("init", str), "optim::lr": ("lr", float), "optim::wd": ("weight_decay", float),
    "optim::momentum": ("momentum", float), "optim::optimizer": ("optimizer", str),
    "optim::scheduler": ("schedule", str), "training::batchsize": ("batch_size", int),
    "training::epochs_train": ("epochs", int), "seed": ("seed", int),
}  # fmt: skip
SCHEDULES = {"OneCycleLR": "one_cycle", "CosineAnnealingLR": "cosine", "StepLR": "step", "MultiStepLR": "step"}
CURVES = {
    "train_loss": "train_loss", "train_acc": "train_accuracy", "test_loss": "test_loss", "test_acc": "test_accuracy",
    "val_loss": "val_loss", "val_acc": "val_accuracy", "time_this_iter_s": "seconds",
}  # fmt: skip
_PAIR = re.compile(r"(?:^|[,_])(?P<key>seed|(?:model|optim|training)_[a-z_]+?)=(?P<value>[^,=_]+)")


@dataclass
class Trial:
    """What a trial's folder says, weights aside.

    Parameters
    ----------
    folder : Path
        The trial.
    config : dict
        Under its own keys, such as ``optim::lr``.
    results : dict of int to dict
        Lines of ``result.json`` by epoch.
    problems : list of str
        What could not be read.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Trial:
        """Read what is there; what is not is a problem by name, never an error."""
        trial = cls(folder)
        if (folder / "result.json").is_file():
            trial._read_results()
        else:
            trial.problems.append("it has no result.json")
        for name in CONFIGS:
            if not trial.config and (folder / name).is_file():
                try:
                    trial.config = read_json(folder / name)
                except ZoariumError as error:
                    trial.problems.append(str(error).rstrip("."))
        for epoch in sorted(trial.results, reverse=True):
            said = trial.results[epoch].get("config")
            if not trial.config and isinstance(said, dict):
                trial.config = said
        if not trial.config:
            trial.config = _config_of_name(folder.name)
            trial.problems.append("its configuration was read from the folder's name" if trial.config else "it has no "
                                  "configuration")  # fmt: skip
        return trial

    def _read_results(self) -> None:
        bad = lines = 0
        try:
            source = SourceFile(self.folder / "result.json")
            if source.size > MOST_RESULTS:
                self.problems.append(f"result.json has {source.size} bytes, more than {MOST_RESULTS}, and is left out")
                return
            with source.open() as file:
                while line := file.readline(LONGEST_LINE):
                    if not line.strip():
                        continue
                    content = _line(line)
                    if content is None:
                        bad += 1
                    else:
                        epoch = content.get("training_iteration")
                        known = isinstance(epoch, int) and 0 <= epoch < 2**31
                        self.results[epoch if known else lines] = content  # type: ignore[index]
                    lines += 1
        except ZoariumError as error:
            self.problems.append(str(error).rstrip("."))
        if bad:
            self.problems.append(f"{bad} of {lines} lines of result.json are cut short or no JSON")

    def columns(self) -> dict[str, Any]:
        """The configuration in our names, as columns of the models table; the whole of it as JSON."""
        columns: dict[str, Any] = {}
        for theirs, (ours, kind) in COLUMNS.items():
            value = self.config.get(theirs)
            if kind is str and isinstance(value, str):
                columns[ours] = SCHEDULES.get(value, value) if ours == "schedule" else value
            elif kind is not str:
                value = number(value)
                if value is not None and abs(value) < 2**53 and kind(value) == value:
                    columns[ours] = kind(value)
        kept = {
            k: v for k, v in self.config.items()
            if not (isinstance(v, str) and re.match(r"/|[A-Za-z]:\\", v)) and k != "resources"
        }  # fmt: skip
        text = json.dumps(kept, sort_keys=True, default=str)
        if len(text) > MOST_CONFIG:
            self.problems.append(f"its configuration has {len(text)} characters and is not kept in full")
            text = "{}"
        return {**columns, "trial": self.folder.name, "trial_config": text}

    def history(self) -> list[dict[str, Any]]:
        """Rows of the history table, without the id; NaN where a loss is not finite."""
        rows = []
        for epoch, line in sorted(self.results.items()):
            values = {ours: number(line.get(theirs)) for theirs, ours in CURVES.items()}
            rows.append({"epoch": epoch, **{k: v for k, v in values.items() if v is not None}})
        return rows

    def checkpoints(self) -> dict[int, Path]:
        """Files of weights by epoch."""
        found: dict[int, Path] = {}
        for entry in sorted(self.folder.iterdir()):
            match = CHECKPOINT_FOLDER.fullmatch(entry.name)
            if match and entry.is_dir():
                held = [entry / name for name in WEIGHT_FILES if (entry / name).is_file()]
                if held:
                    found[int(match[1])] = held[0]
                else:
                    self.problems.append(f"{entry.name} holds no file 'checkpoints'")
        return found


def number(value: Any) -> float | None:
    """A value of ``result.json`` as a float; None for anything else than a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _config_of_name(name: str) -> dict[str, Any]:
    """``..._model_width=64,optim_lr=0.1000,seed=0,training_batchsize=8_2024-...`` as a configuration.

    >>> _config_of_name("NN_x_00001_1_model_width=64,optim_lr=0.1000,seed=0,training_batchsize=8_2024-05-22")
    {'model::width': 64, 'optim::lr': 0.1, 'seed': 0, 'training::batchsize': 8}
    """
    config: dict[str, Any] = {}
    for match in _PAIR.finditer(name):
        head, _, tail = match["key"].partition("_")
        text = match["value"]
        try:
            value: Any = int(text)
        except ValueError:
            try:
                value = float(text)
            except ValueError:
                value = text
        config[f"{head}::{tail}" if tail else head] = value
    return config


def choose_epochs(available: Sequence[int], wanted: str | Sequence[int]) -> list[int]:
    """Which of the stored epochs to take, in the words of ``grow``'s checkpoints.

    Parameters
    ----------
    available : sequence of int
        Stored epochs, in order.
    wanted : str or sequence of int
        ``last``, ``last:5``, ``every``, ``every:10`` (epochs that are multiples of 10, and the last), or epochs.

    Raises
    ------
    StoreError
        For other words.

    Examples
    --------
    >>> choose_epochs([0, 5, 10, 15], "every:10"), choose_epochs([0, 5, 10], "last:2"), choose_epochs([0, 5], [5, 6])
    ([0, 10, 15], [5, 10], [5])
    """
    known = list(available)
    if not isinstance(wanted, str):
        return [epoch for epoch in known if epoch in set(wanted)]
    word, _, count = wanted.partition(":")
    if word not in ("last", "every") or (count and not (count.isdecimal() and int(count) > 0)):
        raise StoreError(f"epochs {shown(wanted)}: write last, last:5, every, every:10, or a list of epochs.")
    n = int(count or 1)
    if word == "last":
        return known[-n:]
    return [epoch for epoch in known if epoch % n == 0 or epoch == known[-1]]


def landscape(line: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a line that describe the loss landscape or an average of models; most lines have none."""
    prefixes = ("log_hessian_", "hessian_", "curve_", "representation_similarity", "wiseft_", "gitrebasin_")
    return {key: value for key, value in line.items() if key.startswith(prefixes)}
