"""Edit models: pruning."""

from zoarium.edit.pruning import EditError, magnitude_prune, prunable, zero_smallest

__all__ = ["EditError", "magnitude_prune", "prunable", "zero_smallest"]
