"""Growing populations: declare a grid, train all of it as few programs."""

from zoarium.growth.dry_run import dry_run
from zoarium.growth.grid import Grid
from zoarium.growth.grow import grow
from zoarium.growth.presets import PRESETS, Preset, preset

__all__ = ["PRESETS", "Grid", "Preset", "dry_run", "grow", "preset"]
