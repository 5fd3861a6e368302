"""Data sets: registered ones by name, and any arrays that fit in memory.

>>> from zoarium import data
>>> data.load("iris")
Dataset('iris', 105 train + 45 test, input (4,), 3 classes)
"""

from zoarium.data.arrays import from_arrays, from_torch
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import DATA, dataset, load, needs, tokenizer
from zoarium.data.shift import shifted_task
from zoarium.data.text import from_text
from zoarium.data.tokens import Tokenizer, learn_tokenizer

__all__ = [
    "DATA", "Dataset", "Split", "Tokenizer", "dataset", "from_arrays", "from_text", "from_torch", "learn_tokenizer",
    "load", "needs", "shifted_task", "tokenizer",
]  # fmt: skip
