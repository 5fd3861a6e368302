"""Whatever holds named tensors, as one kind of thing: files, folders, zoos, models from elsewhere, state dicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zoarium._core.errors import MeasureError, StoreError
from zoarium.zoo.foreign.reader import PREFERRED, WEIGHTS, read_model

MAX_FILES = 10_000
Shape = tuple[int, ...]


@dataclass
class Source:
    """One model to compare: the shapes of its tensors, and a way to each of them.

    Parameters
    ----------
    name : str
        Unique among the models compared.
    model : object
        With `tensors`, a mapping of names to records with a `shape`, and `tensor(name)`; `part(name, start, stop)`,
        where it has one, gives a range of a tensor's numbers without the rest.
    """

    name: str
    model: Any
    shapes: dict[str, Shape] = field(init=False)

    def __post_init__(self):
        self.shapes = {name: tuple(info.shape) for name, info in self.model.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor, without its graph."""
        return self.model.tensor(name).detach()

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of the flat tensor."""
        if hasattr(self.model, "part"):
            return self.model.part(name, start, stop)
        return self.tensor(name).flatten()[start:stop].clone()


class _State:
    """A state dict."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.tensors = dict(state)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


def open_sources(models: Any) -> list[Source]:
    """The models in `models`, under names that differ.

    Parameters
    ----------
    models : path, Zoo, mapping or iterable
        See `weight_similarity`.

    Raises
    ------
    MeasureError
        For something that holds no named tensors, or fewer than two models.
    StoreError
        For files and folders that cannot be read.
    """
    if isinstance(models, (str, Path)):
        models = [models]
    if isinstance(models, Mapping) and models and all(isinstance(v, Tensor) for v in models.values()):
        raise MeasureError("one state dict is one model; give a list of two or more, or a mapping of names to models.")
    if isinstance(models, Mapping):
        found = []
        for name, given in models.items():
            held = _opened(given, str(name))
            found += [((str(name), *(parts[-1:] if len(held) > 1 else ())), model) for parts, model in held]
    elif isinstance(models, Iterable):
        found = [pair for n, given in enumerate(models, 1) for pair in _opened(given, f"model {n}")]
    else:
        raise MeasureError(f"models are compared from a list, a folder or a zoo, found {type(models).__name__}.")
    if len(found) < 2:
        raise MeasureError(f"it takes two models to compare, found {len(found)}; give more files, or their folder.")
    names = _unique([parts for parts, _ in found])
    return [Source(name, model) for name, (_, model) in zip(names, found, strict=True)]


def _opened(given: Any, fallback: str) -> list[tuple[tuple[str, ...], Any]]:
    """The models that one item of the list stands for, each with the parts of its name or path."""
    if isinstance(given, (str, Path)):
        path = Path(given)
        if (path / "zoo.json").is_file():
            from zoarium.zoo import Zoo

            return _opened(Zoo.open(path), fallback)
        if not path.is_dir():
            return [(path.parts, read_model(given))]
        files = model_paths(path)
        if not files:
            raise MeasureError(f"{path} holds no files of weights; give a folder with some ({', '.join(WEIGHTS)}).")
        return [(file.parts, read_model(file)) for file in files]
    if hasattr(given, "ids") and hasattr(given, "store"):  # a zoo, or a view of one
        return [pair for one in given for pair in _opened(one, fallback)]
    name = str(getattr(given, "id", None) or getattr(given, "name", None) or fallback)
    if hasattr(given, "tensors") and callable(getattr(given, "tensor", None)):
        return [((name,), given)]
    state = given.state_dict() if callable(getattr(given, "state_dict", None)) else given
    if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
        return [((name,), _State(state))]
    raise MeasureError(
        f"{fallback} is {type(given).__name__}, which holds no named tensors; give a path, what za.read_model returns, "
        "a module, a state dict or a zoo."
    )


def model_paths(folder: Path) -> list[Path]:
    """Files and folders below `folder` that hold one model each, in order; links to folders are not followed."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = sorted(here.iterdir())
        except OSError as error:
            raise StoreError(f"cannot list {here}: {error.strerror}; give folders you may read.") from error
        names = {entry.name for entry in entries}
        if any(name in names for name in PREFERRED):
            found.append(here)
            continue
        indices = [entry for entry in entries if entry.name.endswith(".index.json")]
        found += indices or [e for e in entries if e.is_file() and e.name.lower().endswith(WEIGHTS)]
        waiting += [entry for entry in entries if entry.is_dir() and not entry.is_symlink()][::-1]
        if len(found) > MAX_FILES:
            raise MeasureError(f"{folder} holds more than {MAX_FILES} files of weights; give a smaller folder.")
    return found


def _unique(names: list[tuple[str, ...]]) -> list[str]:
    """Paths cut to the last parts that tell them apart; what is still equal gets a number."""
    shown = ["/".join(parts) for parts in names]
    for depth in range(1, 8):
        shown = ["/".join(parts[-depth:]) for parts in names]
        if len(set(shown)) == len(names):
            return shown
    times: Counter[str] = Counter()
    for n, name in enumerate(shown):
        times[name] += 1
        shown[n] = name if times[name] == 1 else f"{name} ({times[name]})"
    return shown
