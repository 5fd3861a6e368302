"""Tables made from tables: cells, wide measures, the part of a table that a view sees."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl

NO_CELL = ("planned", "damaged")


def cell_table(models: pl.DataFrame, axes: Sequence[str]) -> pl.DataFrame:
    """Cells of a table of models: ``cell``, the axes, ``ids`` and ``n``, in the order of their first models."""
    axes = [name for name in axes if name in models.columns]
    by = [*axes, *(["relation"] if "relation" in models.columns else [])]
    if {"arch", "source"} <= set(models.columns):  # foreign models off the grid: those of one architecture
        outside = pl.all_horizontal(pl.col("status") == "foreign", *(pl.col(name).is_null() for name in axes))
        models = models.with_columns(pl.when(outside).then(pl.col("arch")).alias("arch"))
        by.append("arch")
    inside = models.filter(~pl.col("status").is_in(NO_CELL))
    if by:
        groups = inside.group_by(by, maintain_order=True).agg(pl.col("id").alias("ids"))
    else:
        groups = pl.DataFrame(
            {"ids": [inside["id"].to_list()] if len(inside) else []}, schema={"ids": pl.List(pl.String)}
        )
    keys = (
        [cell_key(dict(zip(by, row, strict=True))) for row in groups.select(by).iter_rows()]
        if by
        else ["all"] * len(groups)
    )
    return groups.select(
        pl.Series("cell", keys, dtype=pl.String), *axes, "ids", pl.col("ids").list.len().cast(pl.Int64).alias("n")
    )


def cell_key(values: dict[str, Any]) -> str:
    """Name of a cell, such as ``width=8,batch_size=32``; axes that do not apply are left out.

    >>> cell_key({"width": 8, "lr": 0.05, "activation": "relu", "depth": None})
    'width=8,lr=0.05,activation=relu'
    """
    parts = [f"{name}={_value_key(value)}" for name, value in values.items() if value is not None]
    return ",".join(parts) or "all"


def _value_key(value: Any) -> str:
    if isinstance(value, str) and not set(value) & set(',="'):
        return value
    return json.dumps(value, separators=(",", ":"), default=str)


def restrict(name: str, frame: pl.DataFrame, ids: pl.Series, cells: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """Rows of the table `name` about the models `ids`: both of a pair, or a cell all of whose name is theirs."""
    for columns in (("id",), ("a", "b")):
        if all(column in frame.columns for column in columns):
            for column in columns:
                frame = frame.join(pl.DataFrame({column: ids}), on=column, how="semi", maintain_order="left")
            return frame
    if "cell" in frame.columns:
        return frame.filter(pl.col("cell").is_in(cells()["cell"].to_list()))
    return frame


def wide_table(models: pl.DataFrame, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """`models` with a column for each quantity in long tables (id, epoch, quantity, value), the latest epoch's."""
    ids = models.select("id")
    for frame in frames:
        if not {"id", "quantity", "value"} <= set(frame.columns):
            continue
        latest = frame.join(ids, on="id", how="semi", maintain_order="left")
        if "epoch" in frame.columns:
            latest = latest.sort("epoch", maintain_order=True)
        latest = latest.unique(["id", "quantity"], keep="last", maintain_order=True)
        wide = latest.pivot("quantity", index="id", values="value")
        models = models.join(wide, on="id", how="left", maintain_order="left", suffix=" (measured)")
    return models


def closest(name: str, known: Iterable[str]) -> str:
    """A sentence that guesses which of many names was meant, or nothing."""
    guess = difflib.get_close_matches(name, list(known)[:10_000], n=1)
    return f" Did you mean {guess[0]!r}?" if guess else ""
