"""Studies: claims of published methods as code that runs, judges and may refute them.

A study is thin over the public API and holds no method's logic. Thresholds are calibrated on zoo seed 0, frozen in the
code, and judged on fresh seeds; a claim that fails stays, marked *not reproduced*.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from zoarium._core.errors import ZoariumError
from zoarium._core.registry import Registry
from zoarium.studies.result import Check, StudyResult

if TYPE_CHECKING:
    import polars as pl

Budget = Literal["full", "small"]
Progress = Callable[[float, float, str], None]


class StudyError(ZoariumError):
    """A study that cannot be run or read as asked."""


STUDIES = Registry("study", modules=("zoarium.studies.s01_phase_zoo",), error=StudyError)


@dataclass(frozen=True)
class Findings:
    """What a study's function returns: tables, figures (Altair charts) and checks."""

    tables: Mapping[str, pl.DataFrame]
    checks: Sequence[Check]
    figures: Mapping[str, Any] = field(default_factory=dict)


def study(
    number: str,
    *,
    title: str,
    claim: str,
    data: str,
    baseline: str,
    falsifier: str,
    seeds: Sequence[int],
    thresholds: Sequence[str],
    reference: str,
) -> Callable[[Callable], Callable]:
    """Register ``f(seeds, *, budget, workers, progress) -> Findings`` as a study.

    Parameters
    ----------
    number : str
        Two digits, e.g. "01".
    title, claim, data, baseline : str
        A sentence each: what it is called, what is claimed, on what, and against what.
    falsifier : str
        The outcome that would refute the claim, written before the run.
    seeds : sequence of int
        Fresh seeds it is judged on; 0 was used for calibration.
    thresholds : sequence of str
        One phrase a judged check.
    reference : str
        The paper.
    """
    return STUDIES.register(
        number, reference=reference, title=title, claim=claim, data=data, baseline=baseline, falsifier=falsifier,
        thresholds=list(thresholds), seeds=list(seeds),
    )  # fmt: skip


def run_study(
    number: str,
    *,
    seeds: Sequence[int] | None = None,
    budget: Budget = "full",
    workers: int | None = None,
    on_progress: Progress = lambda done, total, note: None,
) -> StudyResult:
    """Run a study and judge its claims.

    Parameters
    ----------
    number : str
        Its number, e.g. "01".
    seeds : sequence of int, optional
        Seeds to judge on; default the study's own fresh seeds.
    budget : {"full", "small"}, default "full"
        "small" is a quick run on less work, to see that everything runs; its verdicts mean nothing and say so.
    workers : int, optional
        Processes; default one a core.
    on_progress : callable
        Called with (done, total, note).

    Returns
    -------
    StudyResult
        Tables, figures, checks and their verdicts; it prints.

    Raises
    ------
    StudyError
        For an unknown study, no seeds, repeating or negative ones, or an unknown budget.
    """
    method = STUDIES[number]
    chosen = list(method.facts["seeds"] if seeds is None else seeds)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise StudyError(f"study {number} needs distinct seeds that are not negative, found {chosen}; e.g. 1,2,3.")
    if budget not in ("full", "small"):
        raise StudyError(f"unknown budget {budget!r}. Known: full, small.")
    start = time.perf_counter()
    findings = method(chosen, budget=budget, workers=workers, progress=on_progress)
    return StudyResult(
        number=number, reference=method.reference, seeds=chosen, budget=budget, seconds=time.perf_counter() - start,
        checks=tuple(findings.checks), tables=dict(findings.tables), figures=dict(findings.figures),
        **{k: method.facts[k] for k in ("title", "claim", "data", "baseline", "falsifier")},
    )  # fmt: skip
