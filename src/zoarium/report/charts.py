"""Every figure of the report as a Vega-Lite specification: a plain dict, drawn alike on the page and in SVG or PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from zoarium._core.errors import unknown_name
from zoarium.report.errors import ReportError
from zoarium.report.maps import Spec, cell_rows, measure_line, measure_map, phase_map
from zoarium.report.plots import CURVE_CHARTS, curve_chart, effect_chart, has_curve, tracking_chart
from zoarium.report.style import ordered_phases, theme
from zoarium.report.tracking import TARGETS

if TYPE_CHECKING:
    from zoarium.report.tables import ReportData

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the language; nothing is fetched from there
FIT = {"type": "fit-x", "contains": "padding"}


def chart_names(data: ReportData) -> list[str]:
    """Names of the charts this report has, in the order of the page.

    ``phases``, then a map a quantity by its own name, ``curve_…``, ``effect_…`` and ``tracking``.
    """
    maps = [q.name for q in data.quantities] if data.x else []
    curves = [f"curve_{c}" for c in CURVE_CHARTS if has_curve(data, c)]
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


def standalone(data: ReportData, name: str, *, width: int | None = None, where: str | None = None) -> Spec:
    """A chart that stands alone, with a title, a width and its look: for notebooks, SVG and PNG.

    Parameters
    ----------
    data, name, where
        As for :func:`chart`.
    width : int, optional
        Width of the plot in pixels; default by kind of chart.
    """
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
