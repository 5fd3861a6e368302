"""Every figure of the report as a Vega-Lite specification: a plain dict, drawn alike on the page and in SVG or PNG.

Charts of cells share the data set ``cells`` with the columns ``cell``, ``label``, ``x``, ``y``, ``phase``, ``mark``,
``confidence``, ``value``, ``stderr`` and ``shown``, and the parameter ``selected``: the key of the selected cell. The
page sets that parameter in every chart, which is all that linked selection is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import unknown_name
from zoarium.report.curves import curve_rows, phase_means
from zoarium.report.errors import ReportError
from zoarium.report.quantities import Quantity, number
from zoarium.report.style import INK, ordered_phases, phase_style
from zoarium.report.tracking import TARGETS

if TYPE_CHECKING:
    from zoarium.report.axes import Axis
    from zoarium.report.tables import ReportData

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the language; nothing is fetched from there
FIT = {"type": "fit-x", "contains": "padding"}
SELECTED = {"name": "selected", "value": ""}
IS_SELECTED = "datum.cell === selected"
CURVE_CHARTS = {"test_accuracy": "Test accuracy", "train_loss": "Train loss", "test_loss": "Test loss"}


def chart_names(data: ReportData) -> list[str]:
    """Names of the charts this report has, in the order of the page.

    ``phases``, then a map a quantity by its own name, ``curve_…``, ``effect_…`` and ``tracking``.
    """
    maps = [q.name for q in data.quantities] if data.x else []
    curves = [f"curve_{c}" for c in CURVE_CHARTS if _has_curve(data, c)]
    effects = [f"effect_{q}" for q in data.effects["quantity"].unique(maintain_order=True)]
    order = {f"effect_{q.name}": n for n, q in enumerate(data.quantities)}
    effects.sort(key=lambda name: order.get(name, len(order)))
    return [
        *(["phases"] if data.x and data.labelled else []), *maps, *curves, *effects,
        *(["tracking"] if data.tracking else []),
    ]  # fmt: skip


def chart(data: ReportData, name: str, *, rows: bool = True, where: str | None = None) -> Spec:
    """One chart as a Vega-Lite specification.

    Parameters
    ----------
    data : ReportData
        What :func:`zoarium.report.collect` returns.
    name : str
        One of :func:`chart_names`.
    rows : bool, default True
        Whether the data are part of it; the page shares them between charts instead.
    where : str, optional
        The slice to draw, for zoos of more than two axes; default the first.

    Raises
    ------
    ReportError
        For an unknown chart, listing those there are.
    """
    if name not in chart_names(data):
        raise ReportError(unknown_name("chart", name, chart_names(data)))
    where = data.slices[0] if where is None else where
    if name == "phases":
        spec = phase_map(data)
    elif name == "tracking":
        spec = tracking_chart(data)
    elif name.startswith("curve_") and data.quantity(name) is None:
        spec = curve_chart(data, name.removeprefix("curve_"))
    elif name.startswith("effect_") and data.quantity(name) is None:
        spec = effect_chart(data, name.removeprefix("effect_"))
    else:
        shown = data.quantity(name)
        assert shown is not None  # chart_names lists it
        spec = measure_map(data, shown) if data.y else measure_line(data, shown)
        if rows:
            spec["data"]["values"] = cell_rows(data, name, where)
    if name == "phases" and rows:
        spec["data"]["values"] = cell_rows(data, None, where)
    return {"$schema": SCHEMA, "autosize": FIT, **spec}


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
               "likely": point or "", "confidence": _plain(confidence)}  # fmt: skip
        if shown:
            value, stderr = found.get(cell, (math.nan, math.nan))
            row |= {"value": _plain(value, shown.factor), "stderr": _plain(stderr, shown.factor)}
            row["shown"] = shown.show(value) + (
                f" ± {number(stderr * shown.factor, 2)}" if math.isfinite(stderr) and stderr else ""
            )
        rows.append(row)
    return rows


def _plain(value: float | None, factor: float = 1.0) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value * factor:.5g}")


# ------------------------------------------------------------------ maps


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
        {"mark": {"type": "rect", "filled": False, "strokeWidth": width, "style": style, "tooltip": None}, "encoding": shown}
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
        size = sorted(map(abs, values))[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)] or max(map(abs, values)) or 1.0
        return scale | {"domain": [-_plain_float(size), _plain_float(size)], "domainMid": 0, "reverse": True}
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if shown.scale == "log" else (low - 0.5, high + 0.5)
    return scale | {"domain": [_plain_float(low), _plain_float(high)]} | ({"type": "log"} if shown.scale == "log" else {})


def _plain_float(value: float) -> float:
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
    place = {"field": "value", "type": "quantitative", "scale": scale, "title": shown.unit or None, "axis": {"tickCount": 4}}
    colour = {
        "field": "phase", "type": "nominal", "legend": None,
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
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "cursor": "pointer", "strokeWidth": 2.5},
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


# ------------------------------------------------------------------ curves


def _has_curve(data: ReportData, name: str) -> bool:
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
    y = {"field": "value", "type": "quantitative", "title": "%" if percent == 100 else None, "scale": scale, "axis": axis}
    x = {"field": "epoch", "type": "quantitative", "title": "epoch", "axis": {"tickCount": 5, "grid": False, "format": "d"}}
    colour = {
        "field": "phase", "type": "nominal", "title": None,
        "scale": {"domain": [s.key for s in styles], "range": [s.colour for s in styles]},
        "legend": {"orient": "bottom", "symbolType": "stroke", "columns": 7} if focus and data.labelled else None,
    }
    return {
        "description": f"Learning curves of {CURVE_CHARTS[name].lower()}: {data.series.what} in grey, phase means in colour.",
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
                    "tooltip": [{"field": "series", "title": "of"}, {"field": "epoch"}, {"field": "shown", "title": name.replace("_", " ")}],
                },
            },
        ],
    }  # fmt: skip


# ------------------------------------------------------------------ effects


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
                "mean": _plain(row["mean"], shown.factor),
                # a single cell has no interval: its bar has no length
                "low": _plain(row["mean"] if low is None else low, shown.factor),
                "high": _plain(row["mean"] if high is None else high, shown.factor), "shown": shown.show(row["mean"]) + span,
            }
        )  # fmt: skip
    base = _plain(found["baseline"][0], shown.factor)
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
        {"measure": t.label, "rho": _plain(t.rho), "low": _plain(t.low), "high": _plain(t.high), "n": t.cells,
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


def standalone(data: ReportData, name: str, *, width: int | None = None, where: str | None = None) -> Spec:
    """A chart that stands alone, with a title, a width and its look: for notebooks, SVG and PNG.

    Parameters
    ----------
    data, name, where
        As for :func:`chart`.
    width : int, optional
        Width of the plot in pixels; default by kind of chart.
    """
    from zoarium.report.style import theme

    spec = chart(data, name, where=where)
    default = 440 if name == "phases" else 380 if name.startswith(("curve_", "tracking")) else 260
    heading, sub = heading_of(data, name)
    where = data.slices[0] if where is None else where
    title = {"text": f"{heading} ({where})" if where else heading, "subtitle": _wrapped(sub, (width or default) // 5)}
    if name == "phases":
        legend = " · ".join(f"{s.mark} {s.name}".strip() for s in ordered_phases(data.cells["phase"].to_list()))
        title["subtitle"] = _wrapped(legend, (width or default) // 5)
    return {**spec, "autosize": "pad", "width": width or default, "title": title, "config": theme()}


def _wrapped(text: str, columns: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(columns, 20))


def heading_of(data: ReportData, name: str) -> tuple[str, str]:
    """Title of a chart, and the sentence on what it means and how to read it."""
    if name == "phases":
        return "Phases", (
            "Each cell is one setting, averaged over its seeds. Letter and colour name its phase; the paler the cell, "
            "the less sure the label."
        )
    if name == "tracking":
        target = TARGETS[data.tracking[0].target]
        return "What tracks averaging", (
            f"Rank correlation of each measure with {target}, over cells that did not collapse, with 95 % intervals: "
            "far from zero means that the measure tells where it works."
        )
    shown = data.quantity(name)
    if shown is not None:
        return shown.label, f"{shown.meaning} {shown.hint}".strip() if data.y else shown.meaning
    kind, _, rest = name.partition("_")
    if kind == "curve":
        return CURVE_CHARTS[rest], f"Grey: {data.series.what}. Colour: the mean of each phase, or the selected cell."
    shown = data.quantity(rest)
    assert shown is not None
    return shown.label, shown.meaning


def check_names(names: Iterable[str], data: ReportData) -> list[str]:
    """The names, once each is known to be a chart of this report."""
    known = chart_names(data)
    for name in names:
        if name not in known:
            raise ReportError(unknown_name("chart", name, known))
    return list(names)
