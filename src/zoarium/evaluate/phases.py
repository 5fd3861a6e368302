"""Effects per phase, beside the baseline that knows no phases.

For each quantity and phase: the mean over the phase's cells with a percentile-bootstrap interval over cells, the mean
over all cells (what one would expect knowing no phase), their difference, and the probability of a difference as large
when phase labels are dealt to cells at random, with Benjamini and Hochberg's correction over all rows of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from zoarium._core.errors import MeasureError
from zoarium._core.seeds import stream
from zoarium._core.statistics import benjamini_hochberg

if TYPE_CHECKING:
    from zoarium.zoo import Zoo

LEVEL = 0.95
STORED = {"cell": pl.String, "quantity": pl.String, "value": pl.Float64, "stderr": pl.Float64, "samples": pl.Int64,
          "reason": pl.String}  # fmt: skip


def stored_effects(zoo: Zoo) -> pl.DataFrame:
    """Every stored value of a cell measure, at the latest epoch measured.

    Parameters
    ----------
    zoo : Zoo
        A zoo or a view of it.

    Returns
    -------
    polars.DataFrame
        Columns ``cell``, ``quantity``, ``value``, ``stderr``, ``samples`` and ``reason`` (why a value is NaN); empty
        where nothing was measured, e.g. by ``zoo.measure("seed_averaging", "ensembling", "pruning")``.
    """
    frames = [pl.DataFrame(schema=STORED)]
    for name in zoo.store.table_names:
        if name.startswith("cells/"):
            frame = zoo.restrict(name, zoo.store.frame(name)).sort("epoch", maintain_order=True)
            frame = frame.unique(["cell", "quantity"], keep="last", maintain_order=True)
            frames.append(frame.select(pl.col(column).cast(kind) for column, kind in STORED.items()))
    return pl.concat(frames).sort("quantity", "cell", maintain_order=True)


def effects_by_phase(
    effects: pl.DataFrame, phases: pl.DataFrame, *, bootstrap: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """Compare what each phase is good for with the average cell.

    Parameters
    ----------
    effects : polars.DataFrame
        Columns ``cell``, ``quantity``, ``value``; other columns are ignored, NaN and null values left out.
    phases : polars.DataFrame
        Columns ``cell`` and ``phase``. Cells without a phase are left out.
    bootstrap : int, default 2000
        Resamples of cells, and permutations of labels.
    seed : int, default 0
        Draws both.

    Returns
    -------
    polars.DataFrame
        A row a (quantity, phase): ``n_cells``, ``mean``, ``low``, ``high`` (95 %), ``baseline`` (mean over all cells
        of the quantity), ``difference`` from it with ``difference_low`` and ``difference_high``, permutation ``p``
        (two-sided) and ``q``, p after correction. Intervals are null for a single cell; with three or four cells they
        are known to be too narrow.

    Raises
    ------
    MeasureError
        When a column is missing.

    Examples
    --------
    >>> import polars as pl
    >>> effects = pl.DataFrame({"cell": ["a", "b", "c", "d"], "quantity": ["gain"] * 4, "value": [1.0, 2, 9, 10]})
    >>> phases = pl.DataFrame({"cell": ["a", "b", "c", "d"], "phase": ["I", "I", "II", "II"]})
    >>> effects_by_phase(effects, phases).select("phase", "n_cells", "mean", "baseline", "difference").rows()
    [('I', 2, 1.5, 5.5, -4.0), ('II', 2, 9.5, 5.5, 4.0)]
    """
    for table, name, needed in (
        (effects, "effects", ("cell", "quantity", "value")),
        (phases, "phases", ("cell", "phase")),
    ):
        for column in needed:
            if column not in table.columns:
                raise MeasureError(f"the table of {name} has no column {column!r}; it has {', '.join(table.columns)}.")
    joined = (
        effects.select("cell", "quantity", pl.col("value").cast(pl.Float64))
        .join(phases.select("cell", "phase").unique(), on="cell", how="inner")
        .filter(pl.col("value").is_finite() & pl.col("phase").is_not_null())
        .sort("quantity", "phase", "cell")  # so that the draws do not depend on the order of the rows given
    )
    rows = []
    for (quantity,), part in joined.group_by("quantity", maintain_order=True):
        rows += _one_quantity(str(quantity), part, bootstrap, seed)
    table = pl.DataFrame(rows, schema=SCHEMA)
    return table.with_columns(pl.Series("q", benjamini_hochberg(table["p"].to_numpy()), dtype=pl.Float64))


SCHEMA = {
    "quantity": pl.String, "phase": pl.String, "n_cells": pl.Int64, "mean": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "baseline": pl.Float64, "difference": pl.Float64, "difference_low": pl.Float64,
    "difference_high": pl.Float64, "p": pl.Float64,
}  # fmt: skip


def _one_quantity(quantity: str, part: pl.DataFrame, bootstrap: int, seed: int) -> list[dict[str, object]]:
    value = part["value"].to_numpy()
    labels = part["phase"].to_numpy()
    phases = sorted(set(labels))
    draw = np.random.default_rng(stream("effects_by_phase", seed, quantity))
    share = np.array([np.mean(labels == phase) for phase in phases])
    # Resampled within phases: the sizes of phases are the design's, and none of them may vanish from a resample.
    means = np.stack([_resampled_means(value[labels == phase], bootstrap, draw) for phase in phases])  # (phases, B)
    differences = means - share @ means
    chance = _permuted_means(value, labels, phases, bootstrap, draw)  # (phases, B)
    baseline = float(value.mean())
    rows = []
    for n, phase in enumerate(phases):
        own = value[labels == phase]
        low, high = _interval(means[n], len(own))
        difference_low, difference_high = _interval(differences[n], len(own))
        difference = float(own.mean()) - baseline
        as_large = np.abs(chance[n] - baseline) >= abs(difference) - 1e-12 * max(1.0, abs(baseline))
        rows.append(
            {
                "quantity": quantity, "phase": phase, "n_cells": len(own), "mean": float(own.mean()), "low": low,
                "high": high, "baseline": baseline, "difference": difference, "difference_low": difference_low,
                "difference_high": difference_high, "p": float((1 + as_large.sum()) / (1 + bootstrap)),
            }
        )  # fmt: skip
    return rows


def _resampled_means(values: np.ndarray, bootstrap: int, draw: np.random.Generator) -> np.ndarray:
    return values[draw.integers(len(values), size=(bootstrap, len(values)))].mean(1)


def _permuted_means(
    value: np.ndarray, labels: np.ndarray, phases: list[str], bootstrap: int, draw: np.random.Generator
) -> np.ndarray:
    mixed = draw.permuted(np.broadcast_to(value, (bootstrap, len(value))), axis=1)  # (B, cells)
    return np.stack([mixed[:, labels == phase].mean(1) for phase in phases])


def _interval(draws: np.ndarray, cells: int) -> tuple[float | None, float | None]:
    if cells < 2 or len(draws) == 0:
        return None, None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
