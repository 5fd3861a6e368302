"""Maps of cells over load and temperature, and what stands for them where there is one axis.

Charts of cells share the data set ``cells`` with the columns ``cell``, ``label``, ``x``, ``y``, ``phase``, ``mark``,
``confidence``, ``value``, ``stderr`` and ``shown``, and the parameter ``selected``: the key of the selected cell. The
page sets that parameter in every chart, which is all that linked selection is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium.report.quantities import Quantity, number
from zoarium.report.style import INK, ordered_phases, phase_style

if TYPE_CHECKING:
    from zoarium.report.axes import Axis
    from zoarium.report.tables import ReportData

Spec = dict[str, Any]

SELECTED = {"name": "selected", "value": ""}
IS_SELECTED = "datum.cell === selected"


def cell_rows(data: ReportData, name: str | None, where: str) -> list[dict[str, Any]]:
    """Rows of the data set ``cells`` for one quantity (or none) in one slice."""
    shown = data.quantity(name) if name else None
    found = data.by_cell(name) if name else {}
    rows = []
    columns = ("cell", "label", "x", "y", "phase", "point_phase", "confidence")
    for cell, label, x, y, phase, point, confidence in (
        data.cells.filter(pl.col("slice") == where).select(columns).iter_rows()
    ):
        style = phase_style(phase)
        row = {"cell": cell, "label": label, "x": x, "y": y, "phase": style.key, "mark": style.mark,
               "likely": point or "", "confidence": plain(confidence)}  # fmt: skip
        if shown:
            value, stderr = found.get(cell, (math.nan, math.nan))
            row |= {"value": plain(value, shown.factor), "stderr": plain(stderr, shown.factor)}
            row["shown"] = shown.show(value) + (
                f" ± {number(stderr * shown.factor, 2)}" if math.isfinite(stderr) and stderr else ""
            )
        rows.append(row)
    return rows


def plain(value: float | None, factor: float = 1.0) -> float | None:
    """A number with five significant digits, None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value * factor:.5g}")


def _band(axis: Axis | None, horizontal: bool) -> Spec:
    """A position channel with one band a value of the axis."""
    field = "x" if horizontal else "y"
    if axis is None:
        return {"field": field, "type": "nominal", "axis": None}
    angle = {"labelAngle": 0, "labelOverlap": True} if horizontal else {"labelOverlap": True}
    return {
        "field": field, "type": "nominal", "title": axis.title(horizontal), "axis": {**angle, "grid": False},
        "scale": {"domain": list(axis.values), "paddingInner": 0.04, "paddingOuter": 0},
    }  # fmt: skip


def _height(data: ReportData, row: int) -> int:
    """Height of a map whose rows are `row` pixels high, within reason."""
    return min(max(row * len(data.y.values), 130), 14 * row) if data.y else row + 6


def phase_map(data: ReportData) -> Spec:
    """Phases over load and temperature: letter and colour say which, the depth of colour how sure."""
    styles = ordered_phases(data.cells["phase"].to_list())
    crowded = data.x is not None and len(data.x.values) > 14
    tip = [{"field": "label", "title": "cell"}, {"field": "phase"}, {"field": "likely", "title": "most likely"},
           {"field": "confidence", "title": "confidence", "format": ".2f"}]  # fmt: skip
    layers: list[Spec] = [
        {"mark": {"type": "rect", "fill": "#ffffff", "tooltip": None}},
        {
            "mark": {"type": "rect", "cursor": "pointer"},
            "encoding": {
                "fill": {
                    "field": "phase", "type": "nominal", "title": None, "legend": None,
                    "scale": {"domain": [s.key for s in styles], "range": [s.colour for s in styles]},
                },
                "fillOpacity": {
                    "field": "confidence", "type": "quantitative", "legend": None,
                    "scale": {"domain": [0.4, 1], "range": [0.35, 1], "clamp": True},
                },
                "tooltip": tip,
            },
        },
    ]  # fmt: skip
    if not crowded:
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 13, "fontWeight": 600, "fill": INK, "cursor": "pointer"},
                "encoding": {"text": {"field": "mark"}, "tooltip": tip},
            }
        )
    layers += _outline()
    return {
        "description": "Map of phases. " + _axes_text(data),
        "params": [SELECTED], "width": "container", "height": _height(data, 46), "data": {"name": "cells"},
        "encoding": {"x": _band(data.x, True), "y": _band(data.y, False)}, "layer": layers,
    }  # fmt: skip


def _outline() -> list[Spec]:
    """A frame around the selected cell, in two tones so that it shows on any colour."""
    shown = {"strokeOpacity": {"condition": {"test": IS_SELECTED, "value": 1}, "value": 0}}
    return [
        {
            "mark": {"type": "rect", "filled": False, "strokeWidth": width, "style": style, "tooltip": None},
            "encoding": shown,
        }
        for style, width in (("halo", 5), ("chosen", 2.5))
    ]


def colour_scale(data: ReportData, shown: Quantity) -> Spec:
    """The colour scale of a quantity; collapsed cells are coloured by it but do not stretch it."""
    kept = dict(data.cells.select("cell", "phase").iter_rows())
    found = data.by_cell(shown.name)
    inside = [v * shown.factor for c, (v, _) in found.items() if kept.get(c) != "collapsed"]
    values = inside or [v * shown.factor for v, _ in found.values()]
    scale: Spec = {"scheme": shown.scheme, "clamp": True}
    if not values:
        return scale
    if shown.scale == "diverging":
        # One strong outlier would turn every other cell white, so the ends hold 95 % of the cells.
        size = (
            sorted(map(abs, values))[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)]
            or max(map(abs, values))
            or 1.0
        )
        return scale | {"domain": [-_four_digits(size), _four_digits(size)], "domainMid": 0, "reverse": True}
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if shown.scale == "log" else (low - 0.5, high + 0.5)
    return (
        scale | {"domain": [_four_digits(low), _four_digits(high)]} | ({"type": "log"} if shown.scale == "log" else {})
    )


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def measure_map(data: ReportData, shown: Quantity) -> Spec:
    """One quantity over load and temperature."""
    unit = f"{shown.label}{f' ({shown.unit})' if shown.unit else ''}"
    legend = {
        "orient": "bottom", "title": None, "gradientLength": {"expr": "width"}, "offset": 8, "tickCount": 4,
        "labelOverlap": "greedy", "format": ".4~g", "titleAnchor": "start",
    }  # fmt: skip
    tip = [{"field": "label", "title": "cell"}, {"field": "shown", "title": shown.label}, {"field": "phase"}]
    return {
        "description": f"Map of {unit}. " + _axes_text(data),
        "params": [SELECTED], "width": "container", "height": _height(data, 25), "data": {"name": "cells"},
        "encoding": {"x": _band(data.x, True), "y": _band(data.y, False)},
        "layer": [
            {
                "transform": [{"filter": "!isValid(datum.value)"}],
                "mark": {"type": "rect", "style": "missing", "cursor": "pointer"},
                "encoding": {"tooltip": tip},
            },
            {
                "transform": [{"filter": "isValid(datum.value)"}],
                "mark": {"type": "rect", "cursor": "pointer"},
                "encoding": {
                    "fill": {
                        "field": "value", "type": "quantitative", "scale": colour_scale(data, shown), "legend": legend,
                    },
                    "tooltip": tip,
                },
            },
            *_outline(),
        ],
    }  # fmt: skip


def measure_line(data: ReportData, shown: Quantity) -> Spec:
    """One quantity along the only axis, with its standard errors."""
    assert data.x is not None
    styles = ordered_phases(data.cells["phase"].to_list())
    tip = [{"field": "label", "title": "cell"}, {"field": "shown", "title": shown.label}, {"field": "phase"}]
    scale: Spec = {"type": "log"} if shown.scale == "log" else {"zero": shown.scale == "diverging"}
    place = {
        "field": "value",
        "type": "quantitative",
        "scale": scale,
        "title": shown.unit or None,
        "axis": {"tickCount": 4},
    }
    colour = {
        "field": "phase",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": [s.key for s in styles], "range": [s.colour for s in styles]},
    }
    return {
        "description": f"{shown.label} along {data.x.label}.",
        "params": [SELECTED], "width": "container", "height": 170, "data": {"name": "cells"},
        "transform": [
            {"filter": "isValid(datum.value)"},
            {"calculate": "datum.value - (datum.stderr || 0)", "as": "low"},
            {"calculate": "datum.value + (datum.stderr || 0)", "as": "high"},
        ],
        "encoding": {"x": _band(data.x, True)},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "style": "baseline"},
                "encoding": {"y": {**place, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {
                    "type": "point", "filled": True, "size": 80, "opacity": 1, "cursor": "pointer", "strokeWidth": 2.5,
                },
                "encoding": {
                    "y": place, "fill": colour, "tooltip": tip,
                    "stroke": {"condition": {"test": IS_SELECTED, "value": "#808890"}, "value": "transparent"},
                },
            },
        ],
    }  # fmt: skip


def _axes_text(data: ReportData) -> str:
    across = f"Across: {data.x.sentence}" if data.x else ""
    down = f" Down: {data.y.sentence}" if data.y else ""
    return across + down
