"""Zoos on disk: the store, its models, and views of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium.zoo.model import Model
from zoarium.zoo.zoo import Zoo

if TYPE_CHECKING:
    from zoarium.zoo.cohort import Cohort
    from zoarium.zoo.transaction import Transaction
    from zoarium.zoo.weights import WeightsFile, write_weights

__all__ = ["Cohort", "Model", "Transaction", "WeightsFile", "Zoo", "open", "write_weights"]

_LATER = {  # these load torch, which opening and querying a zoo does not need
    "Cohort": "zoarium.zoo.cohort",
    "Transaction": "zoarium.zoo.transaction",
    "WeightsFile": "zoarium.zoo.weights",
    "write_weights": "zoarium.zoo.weights",
}


def open(path: str | Path) -> Zoo:
    """Open the zoo in a folder; see :meth:`Zoo.open`."""
    return Zoo.open(path)


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'zoarium.zoo' has no attribute {name!r}")
