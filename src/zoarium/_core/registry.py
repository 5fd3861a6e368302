"""One generic registry: a family of named methods that share a contract, open to plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from zoarium._core.errors import ZoariumError, unknown_name


@dataclass(frozen=True)
class Method:
    """A registered function with its name, its source in the literature and its family's own facts."""

    name: str
    function: Callable[..., Any]
    reference: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]


class Registry(Mapping[str, Method]):
    """Methods of one kind by name.

    `modules` are imported, and the entry-point group ``zoarium.KIND`` is loaded, when a name is first asked for, so
    that `import zoarium` stays light and a plug-in needs no call of ours.
    """

    def __init__(self, kind: str, modules: tuple[str, ...] = (), error: type[ZoariumError] = ZoariumError) -> None:
        self.kind = kind
        self._modules = modules
        self._error = error
        self._methods: dict[str, Method] = {}
        self._loaded = False

    def register(self, name: str, *, reference: str = "", **facts: Any) -> Callable[[Callable], Callable]:
        """Decorate a function to add it under `name`; a name can be taken once."""

        def add(function: Callable) -> Callable:
            taken = self._methods.get(name)
            if taken is not None and taken.function.__module__ != function.__module__:
                raise self._error(
                    f"{self.kind} {name!r} is already registered by {taken.function.__module__}; choose another name."
                )
            self._methods[name] = Method(name, function, reference, facts)
            return function

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._modules:
            import_module(module)
        for point in entry_points(group=f"zoarium.{self.kind}"):
            point.load()

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            self._load()
        try:
            return self._methods[name]
        except KeyError:
            raise self._error(unknown_name(self.kind, name, self._methods)) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._methods))

    def __len__(self) -> int:
        self._load()
        return len(self._methods)
