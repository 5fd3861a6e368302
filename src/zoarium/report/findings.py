"""The most useful things a zoo shows, in words with their numbers, computed from its tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from zoarium.report.quantities import number
from zoarium.report.style import phase_style
from zoarium.report.tables import ReportData, collect
from zoarium.report.tracking import TARGETS, advantage

if TYPE_CHECKING:
    from zoarium.zoo import Zoo

NO_PHASES = ("collapsed", "ambiguous", "unlabelled")
LEAST_MAP = 6  # cells; fewer cover nothing
LEAST_CELLS = 2  # a phase is quoted only with an interval, which needs more than one cell


@dataclass(frozen=True)
class Finding:
    """One finding.

    Parameters
    ----------
    title : str
        What it is about, in a few words.
    text : str
        A sentence or two with the numbers.
    numbers : dict of str to float
        The numbers themselves.
    """

    title: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


def findings(source: Zoo | ReportData, count: int = 3) -> list[Finding]:
    """The most useful findings first.

    Where averaging works by phase; which measure tells so; what alignment gains; the best cell; what ensembling gains
    by phase; which phases the grid covers. A finding whose measures are missing is left out.

    Parameters
    ----------
    source : Zoo or ReportData
        What to look at.
    count : int, default 3
        How many to return at most.
    """
    data = source if isinstance(source, ReportData) else collect(source)
    makers: tuple[Callable[[ReportData], Finding | None], ...] = (
        averaging_by_phase, best_tracker, alignment, best_cell, ensembling_by_phase, coverage, population,
    )  # fmt: skip
    found = []
    for maker in makers:
        finding = maker(data)
        if finding is not None:
            found.append(finding)
        if len(found) == count:
            break
    return found


def averaging_by_phase(data: ReportData) -> Finding | None:
    """Where the average of the seeds' weights is as good as the seeds."""
    words = "after their hidden units are matched"
    ends = _best_and_worst(data, "aligned_averaging_delta")
    if ends is None:
        words = "as they are"
        ends = _best_and_worst(data, "plain_averaging_delta")
    if ends is None:
        return None
    best, worst = ends
    text = (
        f"Averaging the weights of a cell’s seeds {words} {_change(best)} in phase {_phase(best)} "
        f"but {_change(worst)} in phase {_phase(worst)}; over all labelled cells it {_change_of(best['baseline'])}."
    )
    return Finding("Where averaging works", text, _ends(best, worst))


def ensembling_by_phase(data: ReportData) -> Finding | None:
    """Where an ensemble of the seeds pays."""
    ends = _best_and_worst(data, "ensembling_gain")
    if not ends:
        return None
    best, worst = ends
    text = (
        f"Averaging predictions instead of weights {_change(best)} in phase {_phase(best)} and {_change(worst)} "
        f"in phase {_phase(worst)}: ensembling pays most where the seeds differ."
    )
    return Finding("Where ensembling pays", text, _ends(best, worst))


def best_tracker(data: ReportData) -> Finding | None:
    """The measure that best orders the cells by the averaging gain, with the runner-up and the training loss."""
    ranked = data.tracking
    if not ranked:
        return None
    best = ranked[0]
    text = (
        f"Of {len(ranked)} measures, {_lower(best.label)} tracks {TARGETS[best.target]} best: Spearman ρ = "
        f"{number(best.rho)} [{number(best.low)}, {number(best.high)}] over {best.cells} cells"
    )
    numbers = {"rho": best.rho, "low": best.low, "high": best.high, "cells": float(best.cells)}
    loss = next((t for t in ranked if t.measure == "train_loss"), None)
    rival = loss if loss is not None and loss is not best else ranked[1] if len(ranked) > 1 else None
    if rival is not None:
        gap, low, high = advantage(data, best, rival)
        numbers |= {"rival_rho": rival.rho, "gap": gap, "gap_low": low, "gap_high": high}
        verdict = "weaker" if low > 0 else "not told apart"
        text += (
            f"; {_lower(rival.label)} alone gives {number(rival.rho)}, {verdict} over resampled cells "
            f"(difference {number(gap)} [{number(low)}, {number(high)}])"
        )
    return Finding("What tells where averaging works", text + ".", numbers)


def alignment(data: ReportData) -> Finding | None:
    """How much of the loss from plain averaging alignment wins back."""
    plain, aligned = data.by_cell("plain_averaging_delta"), data.by_cell("aligned_averaging_delta")
    collapsed = set(data.cells.filter(pl.col("phase") == "collapsed")["cell"])
    cells = [c for c in plain if c in aligned and c not in collapsed]
    if len(cells) < LEAST_CELLS:
        return None
    before, after = (np.array([table[c][0] for c in cells]) for table in (plain, aligned))
    gain = after - before
    half = 1.96 * float(gain.std(ddof=1)) / math.sqrt(len(gain))
    mean = float(gain.mean())
    share = float((gain > 0).mean())
    text = (
        f"Matching hidden units before averaging changes the mean result from {number(float(before.mean()))} to "
        f"{number(float(after.mean()))} points ({number(mean)} ± {number(half, 2)}) and helps in {100 * share:.0f} % "
        f"of {len(cells)} cells."
    )
    return Finding(
        "What alignment gains", text,
        {
            "plain": float(before.mean()), "aligned": float(after.mean()), "gain": mean, "half_width": half,
            "share": share,
        },
    )  # fmt: skip


def best_cell(data: ReportData) -> Finding | None:
    """The cell one would pick."""
    for name, sign in (("test_accuracy", 1), ("test_loss", -1)):
        shown, values = data.quantity(name), data.by_cell(name)
        if shown is None or not values:
            continue
        cell = max(values, key=lambda c: sign * values[c][0])
        value, stderr = values[cell]
        row = data.cells.filter(pl.col("cell") == cell).row(0, named=True)
        spread = f" ± {number(stderr * shown.factor, 2)}" if math.isfinite(stderr) and stderr else ""
        where = f" in {row['label']}" if row["label"] != "all models" else ""
        phase = f", phase {row['phase']}" if row["phase"] else ""
        text = (
            f"The best {_lower(shown.label)} is {number(value * shown.factor)}{spread}{shown.short_unit}{where}{phase}"
            f", the mean of {row['n']} model{'s' if row['n'] != 1 else ''}."
        )
        return Finding("The best cell", text, {name: value, "stderr": stderr})
    return None


def coverage(data: ReportData) -> Finding | None:
    """Which phases the grid reaches."""
    labelled = data.cells.filter(pl.col("phase").is_not_null())
    if len(labelled) < LEAST_MAP:
        return None
    counts = dict(labelled["phase"].value_counts(sort=True).iter_rows())
    reached = [p for p in counts if p not in NO_PHASES]
    listed = ", ".join(f"{phase} ({n})" for phase, n in counts.items())
    missing = [p for p in ("I", "II", "III", "IV-A", "IV-B") if p not in counts]
    text = f"The grid reaches {len(reached)} of 5 phases over {len(labelled)} cells: {listed}" + (
        f"; not reached: {', '.join(missing)}." if missing else "."
    )
    return Finding("Phases reached", text, {k: float(v) for k, v in counts.items()})


def population(data: ReportData) -> Finding | None:
    """How many models there are: the last thing to say of a zoo that has no values yet."""
    total = len(data.models)
    if not total:
        return Finding("An empty zoo", "No model has been grown yet.", {"models": 0.0})
    status = data.models["status"].value_counts(sort=True) if "status" in data.models.columns else pl.DataFrame()
    parts = ", ".join(f"{n} {name}" for name, n in status.iter_rows()) if len(status) else str(total)
    return Finding(
        "The population",
        f"{total:,} model{'s' * (total != 1)} in {len(data.cells):,} cell{'s' * (len(data.cells) != 1)}: {parts}.",
        {"models": float(total)},
    )


# ------------------------------------------------------------------ words


def _best_and_worst(data: ReportData, name: str) -> tuple[dict, dict] | None:
    rows = data.effects.filter(
        (pl.col("quantity") == name) & (pl.col("n_cells") >= LEAST_CELLS) & ~pl.col("phase").is_in(NO_PHASES)
    ).sort("mean", descending=True)
    if len(rows) < 2:
        return None
    return rows.row(0, named=True), rows.row(-1, named=True)


def _phase(row: dict) -> str:
    return f"{row['phase']} ({phase_style(row['phase']).name}, {row['n_cells']} cells)"


def _change(row: dict) -> str:
    span = "" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]"
    return _change_of(row["mean"]) + span


def _change_of(value: float) -> str:
    return f"costs {number(-value)} points" if value < 0 else f"gains {number(value)} points"


def _ends(best: dict, worst: dict) -> dict[str, float]:
    out = {}
    for row in (best, worst):
        out |= {f"{row['phase']}": row["mean"]}
        if row["low"] is not None:
            out |= {f"{row['phase']}_low": row["low"], f"{row['phase']}_high": row["high"]}
    return out | {"baseline": best["baseline"]}


def _lower(label: str) -> str:
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
