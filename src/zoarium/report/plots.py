"""Learning curves, effects by phase, and which measure tracks averaging."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl

from zoarium.report.curves import curve_rows, phase_means
from zoarium.report.maps import Spec, plain
from zoarium.report.quantities import number
from zoarium.report.style import ordered_phases, phase_style
from zoarium.report.tracking import TARGETS

if TYPE_CHECKING:
    from zoarium.report.tables import ReportData

CURVE_CHARTS = {"test_accuracy": "Test accuracy", "train_loss": "Train loss", "test_loss": "Test loss"}


def has_curve(data: ReportData, name: str) -> bool:
    """Whether any model has a finite value of this curve."""
    return name in data.history.columns and bool(data.history[name].is_finite().any())


def curve_chart(data: ReportData, name: str) -> Spec:
    """Learning curves: every model (or cell) in grey, the mean of each phase in its colour."""
    percent = 100.0 if name.endswith("accuracy") else 1.0
    rows = curve_rows(data, name, percent)
    focus = phase_means(data, name, percent)
    styles = ordered_phases([*data.cells["phase"].to_list(), *(row["phase"] for row in focus)])
    scale: Spec = {"zero": False}
    axis: Spec = {"tickCount": 5, "grid": True}
    values = [row["value"] for row in rows]
    if not name.endswith("accuracy") and values and min(values) > 0:
        scale = {"type": "log"}
        decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        if len(decades) > 2:  # lines at powers of ten only
            axis |= {"values": [10.0**d for d in decades], "format": ".4~g"}
    y = {
        "field": "value",
        "type": "quantitative",
        "title": "%" if percent == 100 else None,
        "scale": scale,
        "axis": axis,
    }
    x = {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "axis": {"tickCount": 5, "grid": False, "format": "d"},
    }
    colour = {
        "field": "phase",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [s.key for s in styles], "range": [s.colour for s in styles]},
        "legend": {"orient": "bottom", "symbolType": "stroke", "columns": 7} if focus and data.labelled else None,
    }
    return {
        "description": f"Curves of {CURVE_CHARTS[name].lower()}: {data.series.what} in grey, phase means in colour.",
        "width": "container", "height": 240,
        "encoding": {"x": x, "y": y, "detail": {"field": "series", "type": "nominal"}},
        "layer": [
            {
                "data": {"name": "context", "values": rows},
                "mark": {"type": "line", "strokeWidth": 0.7, "strokeOpacity": 0.7, "style": "context", "tooltip": None},
            },
            {
                "data": {"name": "focus", "values": focus},
                "mark": {"type": "line", "strokeWidth": 2.25, "clip": True},
                "encoding": {
                    "stroke": colour,
                    "tooltip": [
                        {"field": "series", "title": "of"}, {"field": "epoch"},
                        {"field": "shown", "title": name.replace("_", " ")},
                    ],
                },
            },
        ],
    }  # fmt: skip


def effect_chart(data: ReportData, name: str) -> Spec:
    """Mean of an effect in each phase with its 95 % interval, beside the mean over all cells."""
    shown = data.quantity(name)
    assert shown is not None  # effects are quantities
    found = data.effects.filter(pl.col("quantity") == name)
    styles = ordered_phases(found["phase"].to_list())
    rows = []
    for row in found.iter_rows(named=True):
        low, high = row["low"], row["high"]
        span = "" if low is None else f" [{number(low * shown.factor)}, {number(high * shown.factor)}]"
        rows.append(
            {
                "phase": row["phase"], "name": phase_style(row["phase"]).name, "n": row["n_cells"],
                "mean": plain(row["mean"], shown.factor),
                # a single cell has no interval: its bar has no length
                "low": plain(row["mean"] if low is None else low, shown.factor),
                "high": plain(row["mean"] if high is None else high, shown.factor),
                "shown": shown.show(row["mean"]) + span,
            }
        )  # fmt: skip
    base = plain(found["baseline"][0], shown.factor)
    x = {"field": "mean", "type": "quantitative", "title": shown.unit or None, "axis": {"tickCount": 5, "grid": True},
         "scale": {"zero": True, "nice": True}}  # fmt: skip
    y = {"field": "phase", "type": "nominal", "title": None, "sort": [s.key for s in styles]}
    tip = [{"field": "phase"}, {"field": "name", "title": "means"}, {"field": "n", "title": "cells"},
           {"field": "shown", "title": "mean [95 %]"}]  # fmt: skip
    colour = {"field": "phase", "type": "nominal", "legend": None,
              "scale": {"domain": [s.key for s in styles], "range": [s.colour for s in styles]}}  # fmt: skip
    return {
        "description": f"{shown.label} by phase, with 95 % intervals; the dashed line is the mean over all cells.",
        "width": "container", "height": 26 * len(rows),
        "data": {"name": "effects", "values": rows},
        "layer": [
            {"data": {"values": [{"base": base}]},
             "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.25, "style": "baseline"},
             "encoding": {"x": {"field": "base", "type": "quantitative"}}},
            {"mark": {"type": "rule", "strokeWidth": 2.5},
             "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "stroke": colour}},
            {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
             "encoding": {"x": x, "y": y, "fill": colour, "tooltip": tip}},
        ],
    }  # fmt: skip


def tracking_chart(data: ReportData) -> Spec:
    """How well each measure orders the cells by the gain from averaging: Spearman's correlation with its interval."""
    found = data.tracking
    rows = [
        {"measure": t.label, "rho": plain(t.rho), "low": plain(t.low), "high": plain(t.high), "n": t.cells,
         "shown": f"{number(t.rho)} [{number(t.low)}, {number(t.high)}]"}
        for t in found
    ]  # fmt: skip
    x = {"field": "rho", "type": "quantitative", "title": "Spearman’s ρ over cells", "scale": {"domain": [-1, 1]},
         "axis": {"tickCount": 5, "grid": True}}  # fmt: skip
    y = {"field": "measure", "type": "nominal", "title": None, "sort": [r["measure"] for r in rows],
         "axis": {"labelLimit": 170}}  # fmt: skip
    return {
        "description": f"Rank correlation of each measure with {TARGETS[found[0].target]}.",
        "width": "container", "height": 22 * len(rows), "data": {"name": "tracking", "values": rows},
        "layer": [
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "style": "baseline", "strokeWidth": 1},
             "encoding": {"x": {"field": "zero", "type": "quantitative"}}},
            {"mark": {"type": "rule", "strokeWidth": 2, "style": "baseline"},
             "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}},
            {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "style": "ink"},
             "encoding": {"x": x, "y": y, "tooltip": [{"field": "measure"}, {"field": "shown", "title": "ρ [95 %]"},
                                              {"field": "n", "title": "cells"}]}},
        ],
    }  # fmt: skip
