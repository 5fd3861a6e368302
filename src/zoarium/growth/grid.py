"""A declarative product of axes that expands to model configurations."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import yaml

from zoarium._core.digest import settings_hash
from zoarium._core.errors import GridError, unknown_name
from zoarium._core.files import write_text
from zoarium.data.registry import axes_of_data, full_name
from zoarium.zoo.config import ModelConfig, Training

if TYPE_CHECKING:
    from torch import nn

    from zoarium.data import Dataset

TOP = ("data", "data_fraction", "label_noise", "data_seed", "seed")
LOADS = ("width", "model_dim", "depth", "data_fraction", "label_noise", "beta")
MOST_MODELS = 10_000_000
TEMPERATURES = ("batch_size", "lr", "weight_decay", "momentum", "epochs", "steps")


class Grid:
    """Every combination of the values of its axes; a single value is an axis that does not vary.

    Parameters
    ----------
    net : str or callable, default "mlp"
        A registered architecture (see ``zoarium nets``), or your own factory: a function that returns an
        `torch.nn.Module`. Its keyword parameters are axes; it is given ``in_shape`` and ``n_outputs`` if it asks.
    data : str, Dataset or list of these, default "digits"
        A registered data set, or one made by ``za.data.from_arrays`` or ``za.data.from_torch``. The parameters of a
        single registered one are axes, too: ``Grid(data="convection", beta=[1, 10, 30])``.
    seed : int or iterable of int, default 0
        Draws initial weights and data order. Models that differ in the seed alone form a *cell*.
    load, temperature : str, optional
        Which axes play these roles in phase diagrams; by default the first varied one of ``width``, ``data_fraction``,
        ``label_noise``, ... and of ``batch_size``, ``lr``, ``weight_decay``, ...
    exceptions : sequence of mappings, optional
        Cells that depart from the product: ``{"when": {"width": 64, "batch_size": [512, 1024]}, "set":
        {"micro_batch": 512}}`` changes axes where all conditions hold. Later exceptions win.
    **axes
        Any parameter of the net or of training (:class:`zoarium.zoo.config.Training`): a value, or a list, tuple,
        range or array of values.

    Raises
    ------
    GridError
        For an unknown axis, a value out of range, an empty or repeating axis.

    Examples
    --------
    >>> grid = Grid(net="mlp", width=[2, 8], batch_size=[8, 64], seed=range(3), epochs=5)
    >>> len(grid), grid.varied, grid.load, grid.temperature
    (12, ['width', 'batch_size', 'seed'], 'width', 'batch_size')
    >>> Grid.from_yaml(grid.to_yaml()) == grid
    True
    """

    def __init__(
        self,
        net: str | Callable[..., nn.Module] = "mlp",
        *,
        data: Any = "digits",
        seed: int | Iterable[int] = 0,
        load: str | None = None,
        temperature: str | None = None,
        exceptions: Sequence[Mapping[str, Any]] = (),
        **axes: Any,
    ) -> None:
        self.factory = None if isinstance(net, str) else net
        self.net = net if isinstance(net, str) else getattr(net, "__name__", type(net).__name__).strip("<>")
        self.datasets: dict[str, Dataset] = {}
        names = [self._data_name(d) for d in (data if isinstance(data, list | tuple) else [data])]
        if not names:
            raise GridError("axis 'data' has no values; give at least one.")

        self._net_axes = _net_axes(net)
        self._data_axes = self._axes_of_data(data)
        known = self.known_axes
        for name in axes:
            if name not in known:
                raise GridError(unknown_name(f"axis of net {self.net!r}", name, known))
        missing = [k for k, default in self._net_axes.items() if default is inspect.Parameter.empty and k not in axes]
        if missing:
            raise GridError(
                f"net {self.net!r} needs a value for {', '.join(missing)}; pass {missing[0]}=... to the grid."
            )
        self.axes: dict[str, list[Any]] = {name: _values(name, value) for name, value in axes.items()}
        self.axes["data"] = names
        self.axes["seed"] = _values("seed", seed)
        self.exceptions = tuple(self._exception(one) for one in exceptions)
        if len(self) > MOST_MODELS:
            raise GridError(f"this grid has {len(self):,} models, more than {MOST_MODELS:,}; grow it in parts.")
        self.load = self._role("load", load, LOADS)
        self.temperature = self._role("temperature", temperature, TEMPERATURES)
        for name, values in self.axes.items():  # each value alone, so that an error names its axis
            for value in values:
                _check_kind(name, value, self._net_axes.get(name))
                self._config({"data": self.axes["data"][0], name: value})

    @property
    def known_axes(self) -> list[str]:
        """Every axis this grid could have."""
        return sorted({*TOP, *Training.model_fields, *self._net_axes, *self._data_axes})

    @property
    def varied(self) -> list[str]:
        """Axes with more than one value."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def __len__(self) -> int:
        n = 1
        for values in self.axes.values():
            n *= len(values)
        return n

    def __iter__(self) -> Iterator[ModelConfig]:
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            for exception in self.exceptions:
                if all(point.get(k) in among for k, among in exception["when"].items()):
                    point |= exception["set"]
            yield self._config(point)

    def expand(self) -> list[ModelConfig]:
        """One configuration a model, in the order of the axes."""
        return list(self)

    def _config(self, point: Mapping[str, Any]) -> ModelConfig:
        training = {k: v for k, v in point.items() if k in Training.model_fields}
        params = {k: v for k, v in self._net_axes.items() if v is not inspect.Parameter.empty}
        params |= {k: v for k, v in point.items() if k in self._net_axes}
        top = {k: v for k, v in point.items() if k in TOP}
        varied = {k: v for k, v in point.items() if k in self._data_axes and k in self.axes}
        if varied:
            top["data"] = full_name(top["data"], varied)
        try:
            return ModelConfig(
                net=self.net, net_params=params, data_params=varied, training=Training(**training), **top
            )
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = str(first["loc"][-1]) if first["loc"] else self.net
            raise GridError(f"axis {place!r}: {first['msg']}; found {first.get('input')!r}.") from error

    def _data_name(self, data: Any) -> str:
        if isinstance(data, str):
            return data
        from zoarium.data import Dataset

        if not isinstance(data, Dataset):
            raise GridError(
                f"data must be a name or a Dataset, found {type(data).__name__}; "
                "wrap arrays with za.data.from_arrays(x, y) or a torch dataset with za.data.from_torch(dataset)."
            )
        self.datasets[data.name] = data
        return data.name

    def _axes_of_data(self, data: Any) -> dict[str, Any]:
        """Parameters of a single registered data set; those a net or training has under the same name stay theirs."""
        if not isinstance(data, str):
            return {}
        taken = {*TOP, *Training.model_fields, *self._net_axes}
        return {k: v for k, v in axes_of_data(data).items() if k not in taken}

    def _exception(self, given: Any) -> dict[str, dict[str, Any]]:
        """An exception with conditions as lists, checked against the axes."""
        if not isinstance(given, Mapping) or set(given) != {"when", "set"}:
            raise GridError(f"an exception is {{'when': {{...}}, 'set': {{...}}}}, found {given!r}.")
        for name in given["when"]:
            if name not in self.axes:
                raise GridError(unknown_name("axis of this grid in an exception", name, self.axes))
        for name in given["set"]:
            if name not in self.known_axes or name in ("data", *self._data_axes):
                raise GridError(unknown_name(f"axis of net {self.net!r} in an exception", name, self.known_axes))
        when = {name: _values(name, value) for name, value in given["when"].items()}
        return {"when": when, "set": dict(given["set"])}

    def _role(self, role: str, chosen: str | None, candidates: tuple[str, ...]) -> str | None:
        if chosen is None:
            return next((name for name in candidates if name in self.varied), None)
        if not isinstance(chosen, str) or chosen not in self.axes:
            raise GridError(unknown_name(f"{role} axis", chosen, self.axes))
        return chosen

    # ------------------------------------------------------------------ as text

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain values; single values stand alone, a user's own net or data by name only."""
        axes = {name: _single(values) for name, values in self.axes.items()}
        roles = {"load": self.load, "temperature": self.temperature}
        content = {"net": self.net, **axes, **{k: v for k, v in roles.items() if v}}
        if self.exceptions:
            shown = [{"when": {k: _single(v) for k, v in e["when"].items()}, "set": e["set"]} for e in self.exceptions]
            content["exceptions"] = shown
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Grid:
        """A grid from plain values, as :meth:`to_dict` gives them; ``{range: [start, stop]}`` is a range."""
        if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
            raise GridError("a grid must be a mapping of axis names to values, such as 'width: [2, 8, 32]'.")
        if not isinstance(content.get("net", "mlp"), str):
            raise GridError(f"'net' must be a registered name, found {content['net']!r}.")
        plain = {key: value if key == "exceptions" else _plain(key, value) for key, value in content.items()}
        return cls(**plain)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The grid as YAML; also written to `path` if given."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None)
        if path is not None:
            write_text(Path(path), text)
        return text

    @classmethod
    def from_yaml(cls, source: str | Path) -> Grid:
        """A grid from YAML text, or from a file whose path ends in .yaml or .yml."""
        path = Path(source) if isinstance(source, Path) or str(source).endswith((".yaml", ".yml")) else None
        try:
            text = path.read_text(encoding="utf-8") if path else str(source)
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(
                f"cannot read the grid {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}."
            ) from error
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise GridError(f"{path or 'the grid'} is not valid YAML{place}.") from error
        return cls.from_dict(content)

    @property
    def digest(self) -> str:
        """Short hash of everything the grid says."""
        return settings_hash(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.to_dict().items())
        return f"Grid({inner})  # {len(self)} models"


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _net_axes(net: str | Callable[..., nn.Module]) -> dict[str, Any]:
    from zoarium.nets.registry import axes_of

    return axes_of(net)


def _check_kind(name: str, value: Any, default: Any) -> None:
    """A net's parameter must be of the kind of its default: the factory's own message would come late and unclear."""
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    allowed = kinds.get(type(default))
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise GridError(f"axis {name!r} takes {type(default).__name__} values, found {value!r}.")


def _values(name: str, value: Any) -> list[Any]:
    """The values of an axis: a list as given, a single value as a list of one."""
    if isinstance(value, range) and len(value) > MOST_MODELS:
        raise GridError(f"axis {name!r} has {len(value):,} values, more than {MOST_MODELS:,} models; grow it in parts.")
    value = getattr(value, "tolist", lambda: value)()  # arrays and tensors
    if isinstance(value, Iterator | range | set | frozenset):
        value = list(value)
    many = isinstance(value, list | tuple)
    if name == "step_milestones":  # a single value is a sequence itself
        many = many and any(isinstance(item, list | tuple) for item in value)
    if not many:
        return [tuple(value) if isinstance(value, list) else value]
    values = [tuple(item) if isinstance(item, list) else item for item in value]
    if not values:
        raise GridError(f"axis {name!r} has no values; give at least one.")
    try:
        repeated = len(set(values)) < len(values)
    except TypeError as error:
        raise GridError(f"axis {name!r}: values must be plain numbers or text, found {values[0]!r}.") from error
    if repeated:
        raise GridError(f"axis {name!r} repeats a value: {values}; each value may stand once.")
    return values


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        bounds = value.get("range")
        if set(value) != {"range"} or not isinstance(bounds, list) or not all(type(b) is int for b in bounds):
            raise GridError(
                f"axis {name!r}: found {dict(value)!r}; write a value, a list, or {{range: [start, stop]}}."
            )
        try:
            return range(*bounds)
        except (TypeError, ValueError) as error:
            raise GridError(f"axis {name!r}: {bounds} is not a range; write {{range: [start, stop]}}.") from error
    return value
