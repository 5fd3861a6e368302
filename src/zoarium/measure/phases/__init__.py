"""Phases of learning: the rule, its thresholds, labels of every cell, and the diagram in the terminal."""

from zoarium.measure.phases.axes import axis_roles, describe_axis
from zoarium.measure.phases.labels import PHASES, PhaseResult, phase_labels, zoo_phase_result, zoo_phases
from zoarium.measure.phases.map import Contiguity, PhaseMap, label_contiguity, phase_map_text
from zoarium.measure.phases.rule import Thresholds

__all__ = [
    "PHASES",
    "Contiguity",
    "PhaseMap",
    "PhaseResult",
    "Thresholds",
    "axis_roles",
    "describe_axis",
    "label_contiguity",
    "phase_labels",
    "phase_map_text",
    "zoo_phase_result",
    "zoo_phases",
]
