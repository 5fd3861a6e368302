"""Populations of neural networks: grow them, measure every model, label phases, put them to use.

    import zoarium as za

    zoo = za.grow(za.Grid(net="mlp", width=[2, 8, 32, 128], batch_size=[8, 32, 128], seed=range(3), data="digits"))
    zoo.measure("performance", "hessian_trace", "cka", "mode_connectivity")
    zoo.phases()                # a polars DataFrame, one row a cell
    zoo.report("report.html")

Importing this package does no work: each name below is loaded, and torch with it, at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoarium import data, measure
    from zoarium._core.errors import ZoariumError
    from zoarium._core.estimates import Estimates
    from zoarium.data import Dataset
    from zoarium.growth import Grid, Preset, grow, preset
    from zoarium.measure.similarity import weight_similarity
    from zoarium.nets import net
    from zoarium.zoo import Cohort, Model, Zoo, open
    from zoarium.zoo.foreign import add, read_model, read_zoo

__version__ = "0.1.0"

_HOMES = {
    "Cohort": "zoarium.zoo",
    "Dataset": "zoarium.data",
    "Estimates": "zoarium._core.estimates",
    "Grid": "zoarium.growth",
    "Model": "zoarium.zoo",
    "Preset": "zoarium.growth",
    "ZoariumError": "zoarium._core.errors",
    "Zoo": "zoarium.zoo",
    "add": "zoarium.zoo.foreign",
    "grow": "zoarium.growth",
    "net": "zoarium.nets",
    "open": "zoarium.zoo",
    "preset": "zoarium.growth",
    "read_model": "zoarium.zoo.foreign",
    "weight_similarity": "zoarium.measure.similarity",
    "read_zoo": "zoarium.zoo.foreign",
}

__all__ = [
    "Cohort",
    "Dataset",
    "Estimates",
    "Grid",
    "Model",
    "Preset",
    "ZoariumError",
    "Zoo",
    "__version__",
    "add",
    "data",
    "grow",
    "measure",
    "net",
    "open",
    "preset",
    "read_model",
    "read_zoo",
    "weight_similarity",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in ("data", "measure"):
        return import_module(f"zoarium.{name}")
    raise AttributeError(f"module 'zoarium' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
