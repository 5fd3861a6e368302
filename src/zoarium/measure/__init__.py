"""Measures of models, of pairs and of cells; see :mod:`zoarium.measure.registry` for the contract."""

from zoarium.measure.driver import measure_zoo
from zoarium.measure.registry import MEASURES, measure

__all__ = ["MEASURES", "measure", "measure_zoo"]
