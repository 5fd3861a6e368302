"""A phase diagram in the terminal, and whether its phases hang together."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from rich.console import Group
from rich.table import Table
from rich.text import Text

from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.seeds import stream
from zoarium.measure.phases.axes import describe_axis

# Letters carry the meaning; colours (Okabe and Ito's, safe for the colour-blind) repeat it.
STYLES = {
    "I": ("I", "black on #d55e00"),
    "II": ("II", "black on #56b4e9"),
    "III": ("III", "black on #e69f00"),
    "IV-A": ("IVa", "black on #cc79a7"),
    "IV-B": ("IVb", "black on #009e73"),
    "ambiguous": ("?", "black on #bbbbbb"),
    "collapsed": ("col", "white on #333333"),
}
LEGEND = (
    "I under-fitted, under-sized · II under-fitted · III under-sized · IVa over-fitted · IVb generalising · "
    "? seeds disagree · col collapsed"
)
EMPTY = "·"


@dataclass(frozen=True)
class PhaseMap:
    """A phase diagram: print it with rich for colours, or with `str` for plain text.

    Parameters
    ----------
    panels : tuple
        ``(title, column labels, row labels, cells)`` for each combination of the remaining axes; a cell is a phase and
        what to write for it.
    load, temperature : str or None
        Axes along the columns and the rows.
    notes : tuple of str
        Lines below the map.
    """

    panels: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[tuple[tuple[str, str], ...], ...]], ...]
    load: str | None
    temperature: str | None
    notes: tuple[str, ...]

    @property
    def corner(self) -> str:
        """What rows and columns are."""
        return " \\ ".join(axis for axis in (self.temperature, self.load) if axis)

    def __str__(self) -> str:
        lines = []
        for title, columns, rows, cells in self.panels:
            if title:
                lines.append(title)
            body = [[row, *(text for _, text in line)] for row, line in zip(rows, cells, strict=True)]
            grid = [[self.corner, *columns], *body]
            widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
            lines += ["  ".join(map(str.rjust, line, widths)).rstrip() for line in grid]
            lines.append("")
        return "\n".join([*lines, *(textwrap.fill(note, 88) for note in self.notes)])

    def __rich__(self) -> Group:
        parts: list[Any] = []
        for title, columns, rows, cells in self.panels:
            table = Table(title=Text(title) if title else None, title_justify="left", show_edge=False, box=None)
            table.add_column(Text(self.corner), justify="right")
            for column in columns:
                table.add_column(Text(column), justify="center")
            for row, line in zip(rows, cells, strict=True):
                shown = [Text(text.center(5), STYLES[phase][1] if phase else "dim") for phase, text in line]
                table.add_row(Text(row, "bold"), *shown)
            parts += [table, Text("")]
        return Group(*parts, *(Text(note, "dim") for note in self.notes))


def phase_map_text(table: Any, load: str | None = None, temperature: str | None = None) -> PhaseMap:
    r"""Draw the phases of a zoo for the terminal.

    Parameters
    ----------
    table : polars.DataFrame or PhaseResult
        From ``zoo.phases()``; a result also shows its notes.
    load, temperature : str, optional
        Axes along the columns and rows; default those named in the table.

    Returns
    -------
    PhaseMap
        An ambiguous cell shows its most likely phase with a question mark.

    Examples
    --------
    >>> phases = pl.DataFrame({"cell": ["a", "b"], "width": [2, 64], "phase": ["I", "IV-B"]})
    >>> print("\n".join(str(phase_map_text(phases, load="width")).splitlines()[:2]))
    width  2   64
           I  IVb
    """
    notes: list[str] = list(getattr(table, "notes", ()))
    frame: pl.DataFrame = getattr(table, "table", table)
    load = load or _named(frame, "load_axis")
    temperature = temperature or _named(frame, "temperature_axis")
    axes = axes_of(frame)
    for role, axis in (("load", load), ("temperature", temperature)):
        if axis is not None and axis not in axes:
            raise MeasureError(unknown_name(f"axis for {role}", axis, axes))
    others = [axis for axis in axes if axis not in (load, temperature)]
    columns, rows = _levels(frame, load), _levels(frame, temperature)
    panels = []
    groups = frame.group_by(others, maintain_order=True) if others else [((), frame)]
    for key, part in groups:
        title = ", ".join(f"{axis} = {value}" for axis, value in zip(others, key, strict=True))
        shown = {
            (row.get(temperature or ""), row.get(load or "")): (row["phase"], _letters(row))
            for row in part.iter_rows(named=True)
        }
        cells = tuple(tuple(shown.get((r, c), ("", EMPTY)) for c in columns) for r in rows)
        panels.append((title, tuple(map(_show, columns)), tuple(map(_show, rows)), cells))
    described = [f"{axis}: {describe_axis(axis)}" for axis in (load, temperature) if axis]
    caveat = _named(frame, "caveat")
    if caveat and caveat not in notes:
        notes.append(caveat)
    return PhaseMap(tuple(panels), load, temperature, (LEGEND, *described, *notes))


def axes_of(table: pl.DataFrame) -> list[str]:
    """Axes in a table of phases: the columns between ``cell`` and ``phase``."""
    if "phase" not in table.columns:
        raise MeasureError(f"a table of phases needs the column 'phase'; found {', '.join(table.columns)}.")
    return [name for name in table.columns[: table.columns.index("phase")] if name != "cell"]


def _named(frame: pl.DataFrame, column: str) -> str | None:
    return frame[column][0] if column in frame.columns and len(frame) else None


def _levels(frame: pl.DataFrame, axis: str | None) -> list[Any]:
    return frame[axis].unique().sort().to_list() if axis else [None]


def _show(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _letters(row: dict[str, Any]) -> str:
    letters = STYLES.get(row["phase"], ("?", ""))[0]
    likely = row.get("point_phase")
    return f"{STYLES[likely][0]}?" if row["phase"] == "ambiguous" and likely in STYLES else letters


@dataclass(frozen=True)
class Contiguity:
    """How often neighbours on the grid share a label, beside the same labels dealt at random.

    Parameters
    ----------
    rate : float
        Share of neighbouring pairs of cells with the same label.
    chance, chance_99 : float
        Mean and 99th percentile of that share over permutations of the labels.
    p : float
        Share of permutations with a rate at least as large.
    neighbours : int
        Pairs compared.
    """

    rate: float
    chance: float
    chance_99: float
    p: float
    neighbours: int


def label_contiguity(
    table: pl.DataFrame, load: str | None = None, temperature: str | None = None, *, permutations: int = 1000,
    seed: int = 0, column: str = "phase", leave_out: Sequence[str] = (),
) -> Contiguity:  # fmt: skip
    """Whether equal labels lie side by side on the grid.

    Parameters
    ----------
    table : polars.DataFrame
        From ``zoo.phases()``.
    load, temperature : str, optional
        Axes of the grid; default those named in the table. Cells are neighbours when one of the two is a step apart and
        everything else is equal.
    permutations : int, default 1000
    seed : int, default 0
    column : str, default "phase"
        Labels to compare.
    leave_out : sequence of str, default ()
        Labels of cells that take no part, such as "collapsed".

    Returns
    -------
    Contiguity
        NaN where no two cells are neighbours.
    """
    axes = axes_of(table)
    chosen = [load or _named(table, "load_axis"), temperature or _named(table, "temperature_axis")]
    grid = [axis for axis in chosen if axis is not None]
    for axis in grid:
        if axis not in axes:
            raise MeasureError(unknown_name("axis", axis, axes))
    if not grid:
        raise MeasureError(f"name the axes of the grid, load and temperature; found {', '.join(axes)}.")
    steps = {axis: {value: n for n, value in enumerate(_levels(table, axis))} for axis in grid}
    kept = table.filter(~pl.col(column).is_in(list(leave_out)) & pl.col(column).is_not_null()).sort(axes)
    place = {
        tuple(steps[axis][row[axis]] if axis in steps else row[axis] for axis in axes): n
        for n, row in enumerate(kept.iter_rows(named=True))
    }
    pairs = []
    for key, n in place.items():
        for axis in grid:
            k = axes.index(axis)
            other = place.get((*key[:k], key[k] + 1, *key[k + 1 :]))
            if other is not None:
                pairs.append((n, other))
    if not pairs:
        return Contiguity(np.nan, np.nan, np.nan, np.nan, 0)
    codes = np.unique(kept[column].to_list(), return_inverse=True)[1]
    i, j = np.array(pairs).T
    rate = float((codes[i] == codes[j]).mean())
    random = np.random.default_rng(stream("label_contiguity", seed))
    dealt = random.permuted(np.broadcast_to(codes, (permutations, len(codes))), axis=1)
    chance = (dealt[:, i] == dealt[:, j]).mean(1)
    as_large = int((chance >= rate - 1e-12).sum())
    return Contiguity(
        rate, float(chance.mean()), float(np.quantile(chance, 0.99)), (1 + as_large) / (1 + permutations), len(pairs)
    )
