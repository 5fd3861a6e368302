"""What the page's script works with: every table as columns, every number once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium.report.axes import pretty
from zoarium.report.charts import FIT, chart, chart_names
from zoarium.report.curves import phase_means
from zoarium.report.maps import SELECTED
from zoarium.report.quantities import CATALOGUE
from zoarium.report.style import ordered_phases, phase_style, theme

if TYPE_CHECKING:
    from zoarium.report.tables import ReportData

MOST_ROWS = 20_000  # models in the table
PAGE_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def payload(data: ReportData) -> dict[str, Any]:
    """The data of the page as JSON-like values."""
    cells = data.cells
    keys = cells["cell"].to_list()
    row = {cell: n for n, cell in enumerate(keys)}
    return {
        "labelled": data.labelled,
        "axes": {
            name: None if axis is None else {"label": axis.label, "values": list(axis.values)}
            for name, axis in (("x", data.x), ("y", data.y))
        },
        "slices": data.slices,
        "phases": {
            s.key: {"mark": s.mark, "name": s.name, "meaning": s.meaning, "colour": s.colour}
            for s in ordered_phases(cells["phase"].to_list())
        },
        "cells": {
            "cell": keys, "label": cells["label"].to_list(), "x": cells["x"].to_list(), "y": cells["y"].to_list(),
            "slice": cells["slice"].to_list(), "n": cells["n"].to_list(),
            "phase": [phase_style(p).key for p in cells["phase"]],
            "likely": [p or "" for p in cells["point_phase"]],
            "confidence": [_short(c, 1.0) for c in cells["confidence"]],
            "reason": [r or "" for r in cells["reason"]],
        },
        "quantities": [
            {"name": q.name, "label": q.label, "unit": q.unit, "scale": q.scale, "group": q.group, "main": q.main}
            for q in data.quantities
        ],
        "values": {q.name: _columns(data.by_cell(q.name), keys, q.factor) for q in data.quantities},
        "models": models(data, row),
        "series": series(data, row),
        "charts": charts(data),
        "themes": {"light": theme(font=PAGE_FONT), "dark": theme(dark=True, font=PAGE_FONT)},
    }  # fmt: skip


def _columns(found: Mapping[str, tuple[float, float]], keys: Sequence[str], factor: float) -> dict[str, list]:
    nothing = (math.nan, math.nan)
    return {
        "value": [_short(found.get(cell, nothing)[0], factor, 7) for cell in keys],
        "stderr": [_short(found.get(cell, nothing)[1], factor) for cell in keys],
    }


def _short(value: float | None, factor: float, digits: int = 4) -> float | None:
    """A number with few digits. Three are shown; cells keep more, so that ranks have no ties of our making."""
    return None if value is None or not math.isfinite(value) else float(f"{value * factor:.{digits}g}")


def models(data: ReportData, row: dict[str, int]) -> dict[str, Any]:
    """The table of models; of more than 20,000 an even choice, which the page says."""
    frame = data.models
    if len(frame) > MOST_ROWS:
        frame = frame.gather_every(math.ceil(len(frame) / MOST_ROWS))
    measured = {q.name: q for q in data.quantities} | {n: q for n, q in CATALOGUE.items() if n in frame.columns}
    columns, rows = [], {}
    for n, name in enumerate(c for c in frame.columns if c != "cell"):
        numeric = frame.schema[name].is_numeric()
        own = measured.get(name) if numeric else None
        label = f"{own.label}{f' ({own.unit})' if own.unit else ''}" if own else pretty(name)
        key = f"c{n}"  # a column may be called anything, also __proto__
        columns.append({"name": key, "label": label, "numeric": numeric, "key": own is None})
        values = frame[name].to_list()
        if own is not None:
            rows[key] = [_short(v, own.factor) for v in values]
        else:
            rows[key] = [v if v is None or isinstance(v, str | int | float | bool) else str(v) for v in values]
    return {"columns": columns, "rows": rows, "cell": [row.get(c) for c in frame["cell"]], "all": len(data.models)}


def series(data: ReportData, row: dict[str, int]) -> dict[str, Any]:
    """Learning curves: a list of values a line, over common epochs."""
    table = data.series.table.filter(pl.col("cell").is_in(list(row)))
    curves = [c for c in table.columns if c not in ("series", "cell", "epoch")]
    epochs = table["epoch"].unique().sort().to_list()
    names = table["series"].unique(maintain_order=True).to_list()
    place = {name: n for n, name in enumerate(names)}
    owner = dict(table.select("series", "cell").unique().iter_rows())
    found: dict[str, list] = {}
    for curve in curves:
        factor = 100.0 if curve.endswith("accuracy") else 1.0
        wide = table.pivot("epoch", index="series", values=curve, aggregate_function="first")
        columns = [wide[str(e)].to_list() for e in epochs]
        lines: list[list] = [[] for _ in names]
        for n, name in enumerate(wide["series"].to_list()):
            lines[place[name]] = [_short(column[n], factor) for column in columns]
        found[curve] = lines
    context = [place[name] for name in data.series.context if name in place]
    return {
        "names": names,
        "cell": [row[owner[n]] for n in names],
        "epochs": epochs,
        "curves": found,
        "context": context,
    }


def charts(data: ReportData) -> list[dict[str, Any]]:
    """Specifications without the rows that the page shares between them."""
    out = []
    for n, name in enumerate(chart_names(data)):
        item: dict[str, Any] = {"id": n, "name": name, "kind": "plain"}
        spec = chart(data, name, rows=False)
        if name == "phases" or data.quantity(name) is not None:
            item |= {"kind": "cells", "quantity": None if name == "phases" else name}
        elif name.startswith("curve_"):
            curve = name.removeprefix("curve_")
            item |= {"kind": "curve", "curve": curve}
            item["focus"] = phase_means(data, curve, 100.0 if curve.endswith("accuracy") else 1.0)
            for layer in spec["layer"]:
                layer["data"]["values"] = []
        out.append(item | {"spec": spec})
    if explorable(data):
        out.append({"id": len(out), "name": "explore", "kind": "explore", "spec": explore_chart(data)})
    return out


def explorable(data: ReportData) -> bool:
    """Whether there is anything to plot against anything."""
    return len(data.quantities) > 1 and len(data.cells) > 2


def explore_chart(data: ReportData) -> dict[str, Any]:
    """Any quantity against any other, a point a cell; the page fills in which."""
    styles = ordered_phases(data.cells["phase"].to_list())
    return {
        "description": "One measure against another, a point a cell.",
        "autosize": FIT, "params": [SELECTED], "width": "container", "height": 340, "data": {"name": "cells"},
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 0.9, "cursor": "pointer", "strokeWidth": 3},
        "encoding": {
            "x": {"field": "value", "type": "quantitative", "axis": {"grid": True, "tickCount": 6}},
            "y": {"field": "other", "type": "quantitative", "axis": {"grid": True, "tickCount": 6}},
            "fill": {
                "field": "phase", "type": "nominal", "title": None,
                "scale": {"domain": [s.key for s in styles], "range": [s.colour for s in styles]},
                "legend": {"orient": "bottom", "symbolType": "circle"} if data.labelled else None,
            },
            "stroke": {"condition": {"test": "datum.cell === selected", "value": "#7b838d"}, "value": "transparent"},
            "tooltip": [
                {"field": "label", "title": "cell"}, {"field": "shown"}, {"field": "otherShown"}, {"field": "phase"},
            ],
        },
    }  # fmt: skip
