"""Which measure tells where averaging works: rank correlations over cells, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from zoarium.report.tables import ReportData

TARGETS = {  # the effect that is tracked: the first that was measured
    "aligned_averaging_delta": "the change from averaging aligned seeds",
    "plain_averaging_delta": "the change from averaging seeds",
    "ensembling_gain": "the gain from ensembling seeds",
}
LEAST_CELLS = 8
RESAMPLES = 2000
Z = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Tracking:
    """How well one measure orders the cells by an effect."""

    measure: str
    label: str
    target: str
    rho: float
    low: float
    high: float
    cells: int


def tracking(data: ReportData) -> list[Tracking]:
    """Spearman's correlation of every measure with the first of `TARGETS` there is, strongest first.

    Cells that collapsed are left out: their measures say nothing, and they would carry any correlation. So are barriers
    on the straight line, which are nearly the effect itself, the variants of a measure that has a map of its own, and
    measures known in fewer than 8 of the cells, or equal in all.
    """
    target = next((t for t in TARGETS if data.quantity(t)), None)
    if target is None:
        return []
    collapsed = set(data.cells.filter(pl.col("phase") == "collapsed")["cell"])
    effect = {c: v for c, (v, _) in data.by_cell(target).items() if c not in collapsed}
    found = []
    for shown in data.quantities:
        if shown.group == "use" or not shown.main or shown.name.endswith("_barrier"):
            continue  # the average of two models lies on the line whose height a barrier measures: no surprise there
        measured = data.by_cell(shown.name)
        cells = [c for c in effect if c in measured]
        rho = spearman([measured[c][0] for c in cells], [effect[c] for c in cells])
        if len(cells) >= LEAST_CELLS and math.isfinite(rho):
            found.append(Tracking(shown.name, shown.label, target, rho, *interval(rho, len(cells)), len(cells)))
    return sorted(found, key=lambda t: -abs(t.rho))


def advantage(data: ReportData, best: Tracking, rival: Tracking) -> tuple[float, float, float]:
    """|rho| of one measure minus that of another over the cells both have: value and 95 % interval.

    A paired bootstrap over cells; it does not correct for the choice of the best among several measures.
    """
    from scipy.stats import rankdata

    one, two, effect = (data.by_cell(name) for name in (best.measure, rival.measure, best.target))
    collapsed = set(data.cells.filter(pl.col("phase") == "collapsed")["cell"])
    cells = [c for c in effect if c in one and c in two and c not in collapsed]
    table = np.array([[t[c][0] for c in cells] for t in (one, two, effect)])  # (3, cells)
    draws = np.random.default_rng(0).integers(0, len(cells), (RESAMPLES, len(cells)))
    rows = np.concatenate([np.arange(len(cells))[None], draws])  # the sample itself first
    ranks = rankdata(table[:, rows], axis=-1)  # (3, 1 + resamples, cells)
    ranks -= ranks.mean(-1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=-1, keepdims=True).clip(1e-12)
    gaps = np.abs((ranks[0] * ranks[2]).sum(-1)) - np.abs((ranks[1] * ranks[2]).sum(-1))
    low, high = np.quantile(gaps[1:], [0.025, 0.975])
    return float(gaps[0]), float(low), float(high)


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; NaN where one side does not vary.

    Examples
    --------
    >>> spearman([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.5
    """
    if len(a) < 2:
        return math.nan
    x = pl.Series(a, dtype=pl.Float64).rank("average").to_numpy()
    y = pl.Series(b, dtype=pl.Float64).rank("average").to_numpy()
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(np.clip(x @ y / size, -1, 1)) if size else math.nan


def interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of a Spearman correlation over n cells.

    tanh(artanh ρ ± 1.96 √((1 + ρ²/2)/(n - 3))), Bonett & Wright, "Sample size requirements for estimating Pearson,
    Kendall and Spearman correlations", 2000.
    """
    if n <= 3:
        return -1.0, 1.0
    middle = math.atanh(max(-0.999999, min(0.999999, rho)))
    half = Z * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return math.tanh(middle - half), math.tanh(middle + half)
