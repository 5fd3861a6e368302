"""Studies: claims of published methods as code that runs, judges and may refute them."""

from zoarium.studies.registry import STUDIES, Findings, StudyError, run_study, study
from zoarium.studies.result import Check, StudyResult, studies_page

__all__ = ["STUDIES", "Check", "Findings", "StudyError", "StudyResult", "run_study", "studies_page", "study"]
