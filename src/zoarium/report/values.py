"""One value a cell for every stored quantity, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import polars as pl

from zoarium.report.curves import CURVES

if TYPE_CHECKING:
    from zoarium.zoo import Zoo


def cell_values(zoo: Zoo, table: pl.DataFrame, raw: pl.DataFrame, owner: Mapping[str, str]) -> pl.DataFrame:
    """Every stored quantity, as one value a cell."""
    parts = [_of_history(zoo, owner)]
    for name in zoo.store.table_names:
        folder, _, measure = name.partition("/")
        frame = zoo.store.table(name) if measure else None
        if frame is None or not {"quantity", "value"} <= set(frame.columns):
            continue
        frame = _latest(zoo.restrict(name, frame))
        if folder == "measures":
            parts.append(_of_models(frame, owner))
        elif folder == "pairs":
            parts.append(_of_pairs(frame, owner))
        else:
            known = raw.select("cell")
            parts.append(_tidy(frame.join(known, on="cell", how="semi", maintain_order="left")))
    whole = pl.concat([p for p in parts if len(p)] or [_tidy(pl.DataFrame(schema={"cell": pl.String}))])
    # What a measure says goes before what the trainer wrote down on the way: it says it of the stored weights.
    return whole.unique(["cell", "quantity"], keep="last", maintain_order=True)


def _latest(frame: pl.DataFrame) -> pl.DataFrame:
    keys = [c for c in ("id", "a", "b", "cell") if c in frame.columns]
    if "epoch" in frame.columns:
        frame = frame.sort("epoch", maintain_order=True)
    return frame.unique([*keys, "quantity"], keep="last", maintain_order=True)


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    kinds = {"cell": pl.String, "quantity": pl.String, "value": pl.Float64, "stderr": pl.Float64, "reason": pl.String}
    missing = [pl.lit(None, dtype=k).alias(n) for n, k in kinds.items() if n not in frame.columns]
    return frame.with_columns(missing).select(pl.col(n).cast(k) for n, k in kinds.items())


def _of_models(frame: pl.DataFrame, owner: Mapping[str, str]) -> pl.DataFrame:
    good = pl.col("value").is_finite()
    stderr = pl.col("stderr") if "stderr" in frame.columns else pl.lit(math.nan)
    reason = pl.col("reason") if "reason" in frame.columns else pl.lit("")
    return _tidy(
        frame.with_columns(cell=pl.col("id").replace_strict(owner, default=None, return_dtype=pl.String))
        .filter(pl.col("cell").is_not_null())
        .group_by("cell", "quantity", maintain_order=True)
        .agg(
            value=pl.col("value").filter(good).mean(),
            stderr=pl.when(good.sum() > 1)
            .then(pl.col("value").filter(good).std() / good.sum().sqrt())
            .otherwise(stderr.filter(good).first()),
            reason=reason.filter(~good).first(),
        )
    )


def _of_history(zoo: Zoo, owner: Mapping[str, str]) -> pl.DataFrame:
    """Losses and accuracies after the last epoch, for zoos that were grown but not measured."""
    history = zoo.history
    curves = [c for c in CURVES if c in history.columns]
    if not len(history) or not curves:
        return _tidy(pl.DataFrame(schema={"cell": pl.String}))
    last = history.sort("epoch", maintain_order=True).unique("id", keep="last", maintain_order=True)
    long = last.unpivot(curves, index="id", variable_name="quantity", value_name="value")
    return _of_models(long.filter(pl.col("value").is_not_nan() & pl.col("value").is_not_null()), owner)


def _of_pairs(frame: pl.DataFrame, owner: Mapping[str, str]) -> pl.DataFrame:
    first = pl.col("a").replace_strict(owner, default=None, return_dtype=pl.String)
    second = pl.col("b").replace_strict(owner, default=None, return_dtype=pl.String)
    inside = frame.with_columns(cell=first, _other=second).filter(pl.col("cell") == pl.col("_other"))
    good = pl.col("value").is_finite()
    reason = pl.col("reason") if "reason" in frame.columns else pl.lit("")
    means = inside.group_by("cell", "quantity", maintain_order=True).agg(
        value=pl.col("value").filter(good).mean(), reason=reason.filter(~good).first()
    )
    errors = jackknife(inside.filter(good))
    return _tidy(means.join(errors, on=["cell", "quantity"], how="left", maintain_order="left"))


def jackknife(pairs: pl.DataFrame) -> pl.DataFrame:
    """Standard error of the mean over each cell's pairs, leaving out one model at a time.

    Parameters
    ----------
    pairs : polars.DataFrame
        ``cell``, ``quantity``, ``a``, ``b``, ``value``.

    Returns
    -------
    polars.DataFrame
        ``cell``, ``quantity``, ``stderr``; null for fewer than three models, or where leaving one out leaves no pair.

    Examples
    --------
    >>> import polars as pl
    >>> pairs = pl.DataFrame({"a": ["p", "p", "q"], "b": ["q", "r", "r"], "value": [1.0, 2.0, 3.0]})
    >>> round(jackknife(pairs.with_columns(cell=pl.lit("c"), quantity=pl.lit("cka")))["stderr"][0], 3)
    1.155
    """
    by = ["cell", "quantity"]
    whole = pairs.group_by(by).agg(total=pl.col("value").sum(), pairs=pl.len())
    sides = pl.concat([pairs.select(*by, "value", model=pl.col(side)) for side in ("a", "b")])
    own = sides.group_by(*by, "model").agg(part=pl.col("value").sum(), inside=pl.len()).join(whole, on=by)
    left = pl.col("pairs") - pl.col("inside")
    without = own.with_columns(mean=pl.when(left > 0).then((pl.col("total") - pl.col("part")) / left))
    n = pl.len()
    spread = ((n - 1) / n * (pl.col("mean") - pl.col("mean").mean()).pow(2).sum()).sqrt()
    whole_cells = (n > 2) & (pl.col("mean").null_count() == 0)
    return without.group_by(by).agg(stderr=pl.when(whole_cells).then(spread))
