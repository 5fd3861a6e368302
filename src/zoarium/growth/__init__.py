"""Growing populations: declare a grid, train all of it as few programs."""

from zoarium.growth.grid import Grid
from zoarium.growth.grow import grow

__all__ = ["Grid", "grow"]
