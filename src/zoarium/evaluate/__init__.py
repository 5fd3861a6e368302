"""Evaluate what a population is good for."""

from zoarium.evaluate.phases import effects_by_phase, stored_effects

__all__ = ["effects_by_phase", "stored_effects"]
