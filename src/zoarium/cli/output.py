"""Printing: tables for people, JSON for machines, one sentence for a mistake."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoarium.cli.interrupts import Interrupted

if TYPE_CHECKING:
    import polars as pl

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
TEXT_WIDTH = 24  # columns a text needs at least; it gets what is left, and folds


def print_json(content: Any) -> None:
    """Print `content` as JSON; NaN and infinity, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(_plain(content), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def print_frame(frame: pl.DataFrame, *, as_json: bool, title: str = "", rows: int = 40) -> None:
    """Print a table; with `as_json` all of it, else at most `rows` rows and the columns that fit the terminal."""
    if as_json:
        print_json(frame.to_dicts())
        return
    shown = [[show(value) for value in row] for row in frame.head(rows).iter_rows()]
    numeric = [kind.is_numeric() for kind in frame.dtypes]
    table = Table(title=escape(title) or None, title_justify="left", header_style="bold")
    room, kept = out.width - 1, []
    for n, name in enumerate(frame.columns):
        width = max([len(name), *(len(row[n]) for row in shown)])
        width = width if numeric[n] else min(width, TEXT_WIDTH)  # text may fold, a number may not
        if kept and room < width + 3:
            continue
        room -= width + 3
        kept.append(n)
        table.add_column(escape(name), justify="right" if numeric[n] else "left", no_wrap=numeric[n], overflow="fold")
    for row in shown:
        table.add_row(*(escape(row[n]) for n in kept))
    out.print(table)
    left = [name for n, name in enumerate(frame.columns) if n not in kept]
    if left:
        out.print(f"{len(left)} more columns: {escape(', '.join(left))}.")
    if len(frame) > rows:
        out.print(f"{len(frame) - rows:,} more rows.")
    if left or len(frame) > rows:
        out.print("--json prints everything.")


def show(value: Any) -> str:
    """One cell of a table."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def print_zoo(zoo: Any, as_json: bool) -> None:
    """A zoo in one line, or its summary as JSON."""
    if as_json:
        print_json(zoo.summary())
    else:
        out.print(escape(str(zoo)), soft_wrap=True)


@contextmanager
def progress(label: str, *, quiet: bool) -> Iterator[Callable[[float, float, str], None]]:
    """A bar on standard error: call what is yielded with (done, total, note); silent when quiet or not a terminal.

    An interrupt inside the block says how to resume and ends the program with 130, as a shell expects. What the work
    prints meanwhile (Ray's notes about lost workers, a net of the user's) goes to standard error: the output is ours.
    """
    try:
        with redirect_stdout(sys.stderr):
            if quiet or not err.is_terminal:
                yield lambda done, total, note: None
            else:
                with _bar(label) as update:
                    yield update
    except KeyboardInterrupt:
        err.print("interrupted: what was done is saved; run the same command again to resume.")
        raise Interrupted from None


@contextmanager
def _bar(label: str) -> Iterator[Callable[[float, float, str], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=escape(note))
