"""Learning curves, thinned so that a page of ten thousand models stays small and a chart of them stays readable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium.report.quantities import number
from zoarium.report.style import phase_style

if TYPE_CHECKING:
    from zoarium.report.tables import ReportData

CURVES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
MOST_MODELS = 500  # with more, a line is the mean of a cell
MOST_LINES = 300  # grey lines in a chart; more only darken it
MOST_POINTS = 60  # epochs a line
MOST_NUMBERS = 240_000  # of all lines together


@dataclass(frozen=True)
class Series:
    """Lines of the learning curves.

    Parameters
    ----------
    table : polars.DataFrame
        ``series``, ``cell``, ``epoch`` and the curves, sorted; every line has the same epochs where it can.
    what : str
        What a line is, in words.
    context : list of str
        The lines drawn in grey.
    """

    table: pl.DataFrame
    what: str
    context: list[str]


def thin(history: pl.DataFrame) -> Series:
    """Choose lines and epochs.

    Parameters
    ----------
    history : polars.DataFrame
        ``id``, ``cell``, ``epoch`` and some of the curves.
    """
    curves = [c for c in CURVES if c in history.columns]
    rows = history.filter(pl.col("cell").is_not_null()).select(
        pl.col("id").alias("series"), "cell", "epoch", *(pl.col(c).cast(pl.Float64).fill_nan(None) for c in curves)
    )
    models = rows["series"].n_unique()
    means = models > MOST_MODELS
    if means:
        rows = rows.group_by("cell", "epoch").agg(pl.col(c).mean() for c in curves).with_columns(series=pl.col("cell"))
    lines = rows["series"].n_unique()
    points = max(8, min(MOST_POINTS, MOST_NUMBERS // max(1, lines * max(1, len(curves)))))
    epochs = rows["epoch"].unique().sort()
    if len(epochs) > points:
        kept = epochs.gather(sorted({round(n * (len(epochs) - 1) / (points - 1)) for n in range(points)}))
        rows = rows.filter(pl.col("epoch").is_in(kept.implode()))
    rows = rows.select("series", "cell", "epoch", *curves).sort("series", "epoch")
    names = rows["series"].unique(maintain_order=True).to_list()
    step = math.ceil(len(names) / MOST_LINES) if names else 1
    context = names[::step]
    what = "the mean of each cell" if means else "every model"
    if step > 1:
        what = f"{len(context)} of the {len(names):,} cells, each the mean of its models"
    return Series(rows, what, context)


def curve_rows(data: ReportData, name: str, factor: float) -> list[dict[str, Any]]:
    """Rows of the grey lines of one curve."""
    series = data.series
    rows = series.table.filter(pl.col("series").is_in(series.context) & pl.col(name).is_finite())
    return [
        {"series": s, "epoch": e, "value": float(f"{v * factor:.4g}")}
        for s, e, v in rows.select("series", "epoch", name).iter_rows()
    ]


def phase_means(data: ReportData, name: str, factor: float) -> list[dict[str, Any]]:
    """Rows of the coloured lines: the mean over each phase's models, or over all where there are no phases."""
    rows = data.series.table.filter(pl.col(name).is_finite()).join(
        data.cells.select("cell", "phase"), on="cell", how="inner", maintain_order="left"
    )
    means = rows.group_by("phase", "epoch").agg(pl.col(name).mean()).sort("phase", "epoch")
    out = []
    for phase, epoch, value in means.iter_rows():
        key = phase_style(phase).key
        label = f"mean of {key}" if phase else "mean"
        shown = number(value * factor)
        out.append(
            {"series": label, "phase": key, "epoch": epoch, "value": float(f"{value * factor:.4g}"), "shown": shown}
        )
    return out
