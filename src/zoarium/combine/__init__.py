"""Combine models: averages of weights, ensembles of predictions."""

from zoarium.combine.averaging import (
    CombineError,
    average,
    average_epochs,
    average_groups,
)
from zoarium.combine.ensembling import ensemble_outputs, ensemble_probabilities

__all__ = [
    "CombineError", "average", "average_epochs", "average_groups", "ensemble_outputs", "ensemble_probabilities",
]  # fmt: skip
