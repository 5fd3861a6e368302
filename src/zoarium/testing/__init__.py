"""Laws: what every method of a family must obey, ours or a plug-in's, and small populations to try them on."""

from zoarium.testing.cohorts import small_cohort, small_dataset
from zoarium.testing.measures import (
    MEASURE_LAWS,
    LawViolationError,
    Subject,
    as_regression,
    check_measure,
    subject_of,
)

__all__ = [
    "MEASURE_LAWS", "LawViolationError", "Subject", "as_regression", "check_measure", "small_cohort", "small_dataset",
    "subject_of",
]  # fmt: skip
