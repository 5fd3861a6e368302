"""Models from elsewhere, read tensor by tensor; no file read here can run code.

Every length, offset and count is checked against the file before memory is taken for it, and every problem is one
sentence (`StoreError` or `DamagedError`) that names the file and a way out.
"""

from __future__ import annotations

from zoarium.zoo.foreign.model import ForeignModel, TensorInfo
from zoarium.zoo.foreign.reader import read_model
from zoarium.zoo.foreign.source import SourceFile

__all__ = ["ForeignModel", "SourceFile", "TensorInfo", "read_model"]
