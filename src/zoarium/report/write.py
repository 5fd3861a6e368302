"""Write a report, or its charts one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import unknown_name
from zoarium._core.files import write_bytes, write_error, write_text
from zoarium.report.bundle import warm_up
from zoarium.report.charts import chart_names, check_names, standalone
from zoarium.report.errors import ReportError
from zoarium.report.page import page
from zoarium.report.tables import ReportData, collect

if TYPE_CHECKING:
    import altair

    from zoarium.zoo import Zoo

FORMATS = ("svg", "png", "json")

__all__ = ["chart", "save_charts", "warm_up", "write_report"]


def _data(source: Zoo | ReportData) -> ReportData:
    return source if isinstance(source, ReportData) else collect(source)


def write_report(source: Zoo | ReportData, path: str | Path) -> Path:
    """Write one HTML file that shows a zoo and needs nothing else: no network, no server, no other file.

    Parameters
    ----------
    source : Zoo or ReportData
        What to show.
    path : path
        The file; its folder is made if need be.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StoreError
        If it cannot be written.

    Notes
    -----
    About 1 MB of the file is the charts' JavaScript. The first report after an installation takes two seconds longer.
    """
    path = Path(path)
    content = page(_data(source))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def chart(
    source: Zoo | ReportData, name: str = "phases", *, width: int | None = None, where: str | None = None
) -> altair.Chart:
    """One chart as an `altair.Chart`, which notebooks show.

    Parameters
    ----------
    source : Zoo or ReportData
    name : str, default "phases"
        ``phases``, a quantity such as ``hessian_trace``, ``curve_test_accuracy``, ``effect_ensembling_gain``,
        ``tracking``, ...
    width : int, optional
        Width of the plot in pixels.
    where : str, optional
        The slice, for zoos with more than two axes.

    Raises
    ------
    ReportError
        For an unknown chart, listing those there are.
    """
    import altair

    return altair.Chart.from_dict(standalone(_data(source), name, width=width, where=where))


def save_charts(
    source: Zoo | ReportData,
    folder: str | Path,
    formats: Sequence[str] = ("svg", "png"),
    *,
    names: Sequence[str] | None = None,
    scale: float = 2.0,
) -> list[Path]:
    """Write every chart of the report to a folder.

    Parameters
    ----------
    source : Zoo or ReportData
    folder : path
        Made if need be; files in it are replaced.
    formats : sequence of {"svg", "png", "json"}
        ``json`` is the Vega-Lite specification with its data.
    names : sequence of str, optional
        Which charts; default all.
    scale : float, default 2
        Pixels of a PNG per pixel of the chart.

    Returns
    -------
    list of Path
        The files, in the order of the report.

    Raises
    ------
    ReportError
        For an unknown chart or format.
    """
    data = _data(source)
    for name in formats:
        if name not in FORMATS:
            raise ReportError(unknown_name("format of charts", name, FORMATS))
    wanted = chart_names(data) if names is None else check_names(names, data)
    files = []
    for name in wanted:
        sliced = name == "phases" or data.quantity(name) is not None
        for n, where in enumerate(data.slices if sliced else data.slices[:1]):
            spec = standalone(data, name, where=where)
            stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name) + (f"-{n + 1}" if len(data.slices) > 1 and sliced else "")
            for format in formats:
                path = Path(folder) / f"{stem}.{format}"
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(path, _drawn(spec, format, scale))
                except OSError as error:
                    raise write_error(path, error) from error
                files.append(path)
    return files


def _drawn(spec: dict[str, Any], format: str, scale: float) -> bytes:
    if format == "json":
        return json.dumps(spec, indent=1, ensure_ascii=False).encode()
    import vl_convert

    spec = {**spec, "background": "white"}
    if format == "svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    return vl_convert.vegalite_to_png(spec, scale=scale)
