"""Models from elsewhere, read tensor by tensor; no file read here can run code.

Every length, offset and count is checked against the file before memory is taken for it, and every problem is one
sentence (`StoreError` or `DamagedError`) that names the file and a way out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoarium.zoo.foreign.model import ForeignModel, TensorInfo
from zoarium.zoo.foreign.reader import read_model
from zoarium.zoo.foreign.source import SourceFile

if TYPE_CHECKING:
    from zoarium.zoo.foreign.adding import Added, add
    from zoarium.zoo.foreign.ray_zoo import read_zoo

__all__ = ["Added", "ForeignModel", "SourceFile", "TensorInfo", "add", "read_model", "read_zoo"]

_LATER = {"Added": "adding", "add": "adding", "read_zoo": "ray_zoo"}  # these write zoos, which are built on the readers


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"zoarium.zoo.foreign.{_LATER[name]}"), name)
    raise AttributeError(f"module 'zoarium.zoo.foreign' has no attribute {name!r}")
