"""A zoo as one line and as a small HTML block for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import ZoariumError

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo

ROWS = 8


def zoo_text(zoo: Zoo) -> str:
    """The zoo in one line."""
    table = zoo.table
    axes = ", ".join(f"{name}: {table[name].n_unique()}" for name in zoo.axes if name in table.columns)
    seeds = f" x {table['seed'].n_unique()} seeds" if "seed" in table.columns and len(table) else ""
    counts = {s: n for s, n in sorted(table["status"].value_counts().iter_rows()) if s != "trained"}
    notes = "".join(f", {n} {status}" for status, n in counts.items())
    return f"Zoo({str(zoo.path)!r}, {len(table)} models{f' over {axes}{seeds}' if axes else ''}{notes})"


def zoo_html(zoo: Zoo) -> str:
    """First rows, counts, and phases if they are stored; everything that comes from files is escaped."""
    table = zoo.table
    shown = ["id", *zoo.axes, "seed", "status"]
    columns = [name for name in dict.fromkeys(shown) if name in table.columns]
    rows = [_row(columns, "th"), *(_row(row, "td") for row in table.select(columns).head(ROWS).iter_rows())]
    more = f"<div>… {len(table) - ROWS} more</div>" if len(table) > ROWS else ""
    phases = _phases(zoo)
    return f"<div><b>{escape(zoo_text(zoo))}</b>{phases}<table>{''.join(rows)}</table>{more}</div>"


def _row(values: Any, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values) + "</tr>"


def _phases(zoo: Zoo) -> str:
    try:
        table = zoo.store.table("cells/phases")
    except ZoariumError as error:  # a notebook still shows the rest
        return f"<div>{escape(str(error))}</div>"
    if table is None or "phase" not in table.columns:
        return ""
    counts = zoo.restrict("cells/phases", table)["phase"].value_counts(sort=True).iter_rows()
    return "<div>" + escape(", ".join(f"{phase}: {n} cells" for phase, n in counts)) + "</div>"
