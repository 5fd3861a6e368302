"""Data sets: registered ones by name, and any arrays that fit in memory.

>>> from zoarium import data
>>> data.load("iris")
Dataset('iris', 105 train + 45 test, input (4,), 3 classes)
"""

from zoarium.data.arrays import from_arrays, from_torch
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import DATA, dataset, load
from zoarium.data.shift import shifted_task

__all__ = ["DATA", "Dataset", "Split", "dataset", "from_arrays", "from_torch", "load", "shifted_task"]
