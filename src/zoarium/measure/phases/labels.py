"""Label the phase of every cell of a zoo; :mod:`zoarium.measure.phases.rule` has the rule.

Confidence comes from resampling the seeds of every cell and finding the cuts anew, so it covers the spread over seeds
and what it does to the thresholds, but not the choice of the rule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from zoarium._core.errors import DamagedError, MeasureError, StoreError
from zoarium.measure.phases.axes import axis_roles, equal_epochs_caveat
from zoarium.measure.phases.rule import (
    BY_MODEL,
    BY_PAIR,
    CODES,
    LEAST_CKA_GAP,
    Thresholds,
    label_cells,
    resample,
    typical_band,
)  # fmt: skip

if TYPE_CHECKING:
    from zoarium.zoo import Zoo

PHASES = {
    "I": "under-fitted and under-sized",
    "II": "under-fitted",
    "III": "under-sized",
    "IV-A": "over-fitted",
    "IV-B": "generalising",
    "ambiguous": "the seeds do not agree on a phase",
    "collapsed": "no better than a constant answer",
}
MEASURE_OF = {
    "train_loss": "performance", "test_error": "performance", "hessian_trace": "hessian_trace",
    "mode_connectivity": "mode_connectivity", "cka": "cka",
}  # fmt: skip
EVENLY_SPREAD = 0.75  # Otsu's separation of numbers without any gap
LARGEST = 1e100  # beyond it a number is as good as infinite: its square is
AT_ONCE = 2**22  # resampled means held at a time


@dataclass(frozen=True)
class PhaseResult:
    """Labels with all that decided them.

    Parameters
    ----------
    table : polars.DataFrame
        A row a cell.
    thresholds : Thresholds
        The values used, found or given; None where the data allow none.
    separation : dict of str to float
        Share of the variance between the two sides of each cut found from the data; about 0.75 for numbers without a
        gap.
    notes : tuple of str
        Sentences to read with the labels.
    """

    table: pl.DataFrame
    thresholds: Thresholds
    separation: dict[str, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = self.table["phase"].value_counts().sort("phase")
        return ", ".join(f"{n} {phase}" for phase, n in counts.iter_rows())


def phase_labels(
    cells: pl.DataFrame, *, thresholds: Thresholds | None = None, bootstrap: int = 1000, seed: int = 0
) -> PhaseResult:
    """Label cells by the rule of this module.

    Parameters
    ----------
    cells : polars.DataFrame
        A row a cell: ``cell``, any columns of axes, and lists of numbers: ``train_loss``, ``hessian_trace`` and
        ``test_error`` (a share) hold one number a seed; ``mode_connectivity`` (percentage points) and ``cka`` one a
        pair of seeds, in the order of ``itertools.combinations``. An empty list is a quantity not measured.
    thresholds : Thresholds, optional
        Values given here replace those found from the data, one by one.
    bootstrap : int, default 1000
        Resamples of the seeds of every cell; each finds its cuts anew, except the band of mode connectivity. 0 gives no
        confidence and no ambiguous labels.
    seed : int, default 0
        Draws the resamples; each cell has a stream of its own.

    Returns
    -------
    PhaseResult
        The table has the given columns with means for lists, and after the axes ``phase``, ``confidence`` (share of
        resamples with the label of all seeds), ``point_phase`` (that label, also where it is ambiguous), ``n_seeds``,
        ``hessian_agrees`` and ``reason`` (why a cell has no label of its own).

    Raises
    ------
    MeasureError
        When a column is missing or holds no lists of numbers.

    Notes
    -----
    Few seeds say little of their spread: three give a rough confidence, and a cell of one seed or one pair counts as
    certain but for the cuts. A resample that draws one seed only has no pairs and is drawn again.

    Examples
    --------
    >>> cells = pl.DataFrame({
    ...     "cell": ["narrow", "wide"], "width": [2, 64],
    ...     "train_loss": [[0.9, 1.0, 1.1], [0.01, 0.01, 0.02]], "hessian_trace": [[20.0] * 3, [4.0] * 3],
    ...     "mode_connectivity": [[-9.0, -8.0, -9.0], [-0.1, 0.0, -0.2]], "cka": [[0.3, 0.4, 0.3], [0.97, 0.98, 0.97]],
    ...     "test_error": [[0.3, 0.3, 0.4], [0.02, 0.02, 0.03]],
    ... })
    >>> phase_labels(cells).table.select("cell", "phase", "confidence").rows()
    [('narrow', 'I', 1.0), ('wide', 'IV-B', 1.0)]
    """
    values = {name: _lists(cells, name) for name in (*BY_MODEL, *BY_PAIR)}
    given = thresholds or Thresholds()
    measured = {name: np.array([len(v) > 0 for v in lists], dtype=bool) for name, lists in values.items()}
    given = replace(
        given,
        mc_band=typical_band(values["mode_connectivity"]) if given.mc_band is None else given.mc_band,
        collapsed_error=0.6 if given.collapsed_error is None else given.collapsed_error,
        min_confidence=0.6 if given.min_confidence is None else given.min_confidence,
    )
    means = {name: np.array([_mean(v) for v in lists])[None] for name, lists in values.items()}  # (1, cells) each
    labels, cuts = label_cells(means, given, measured)
    point = labels[0]

    votes = np.zeros(len(cells))
    if len(cells) and bootstrap > 0:
        step = max(1, min(bootstrap, AT_ONCE // len(cells)))
        names = [str(cell) for cell in cells["cell"].to_list()]
        for start in range(0, bootstrap, step):
            draws = resample(values, names, min(step, bootstrap - start), (seed, start))
            votes += (label_cells(draws, given, measured)[0] == point).sum(0)
    confidence = np.where(point > 0, votes / max(bootstrap, 1), 0.0)

    doubtful = (confidence < (given.min_confidence or 0.0)) & (bootstrap > 0) & (point < 6)
    phase = np.where(doubtful | (point == 0), "ambiguous", CODES[point])
    high = means["train_loss"][0] > cuts["loss"][0]
    large = means["hessian_trace"][0] > cuts["hessian"][0]
    known = (point > 0) & (point < 6) & np.isfinite(means["hessian_trace"][0]) & np.isfinite(cuts["hessian"][0])
    table = cells.drop(*values).with_columns(
        pl.Series("phase", phase.tolist(), dtype=pl.String),
        pl.Series("confidence", confidence if bootstrap > 0 else [None] * len(cells), dtype=pl.Float64),
        pl.Series("point_phase", [CODES[c] or None for c in point], dtype=pl.String),
        *(pl.Series(name, means[name][0], dtype=pl.Float64) for name in values),
        pl.Series("n_seeds", [len(v) for v in values["train_loss"]], dtype=pl.Int64),
        pl.Series("hessian_agrees", [bool(a) if k else None for a, k in zip(high == large, known, strict=True)],
                  dtype=pl.Boolean),
        pl.Series("reason", _reasons(point, doubtful, confidence, means, cuts), dtype=pl.String),
    )  # fmt: skip
    found = {name: _number(cuts[name][0]) for name in ("loss", "hessian", "cka")}
    separation = {name: float(cuts[f"{name}_separation"][0]) for name in found if f"{name}_separation" in cuts}
    separation = {name: value for name, value in separation.items() if math.isfinite(value)}
    return PhaseResult(table, replace(given, **found), separation, _notes(separation, cuts, thresholds, table))


def _lists(cells: pl.DataFrame, name: str) -> list[np.ndarray]:
    if "cell" not in cells.columns or name not in cells.columns:
        missing = "cell" if "cell" not in cells.columns else name
        raise MeasureError(f"phases need the column {missing!r}; found {', '.join(cells.columns)}.")
    try:
        column = cells[name].cast(pl.List(pl.Float64), strict=True)
    except pl.exceptions.PolarsError as error:
        raise MeasureError(
            f"column {name!r} must hold lists of numbers, one list a cell; found {cells[name].dtype}."
        ) from error
    lists = [np.array([math.nan if v is None else v for v in row or []], dtype=float) for row in column.to_list()]
    low, high = (-1.0, 1.0) if name == "cka" else (-LARGEST, LARGEST)
    return [np.where(np.abs(v) <= LARGEST, v.clip(low, high), math.nan) for v in lists]


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _reasons(
    point: np.ndarray, doubtful: np.ndarray, confidence: np.ndarray, means: Mapping[str, np.ndarray],
    cuts: Mapping[str, np.ndarray],
) -> list[str]:  # fmt: skip
    """Why each cell has no phase of its own; empty where it has one."""
    reasons = []
    for n, code in enumerate(point):
        lacking = [name for name in ("train_loss", *BY_PAIR) if not math.isfinite(means[name][0, n])]
        if code == 6:
            error = means["test_error"][0, n]
            reasons.append(f"test error {error:.0%}" if math.isfinite(error) else "outputs not finite or constant")
        elif code == 0 and lacking:
            reasons.append(f"no {' or '.join(lacking)}")
        elif code == 0:
            uncut = [name for name in ("loss", "cka") if not math.isfinite(cuts[name][0])]
            reasons.append(f"cells do not differ, so there is no cut of {' or '.join(uncut)}; give a threshold")
        elif doubtful[n]:
            reasons.append(f"{CODES[code]} in only {confidence[n]:.0%} of the resamples")
        else:
            reasons.append("")
    return reasons


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _notes(
    separation: Mapping[str, float], cuts: Mapping[str, np.ndarray], thresholds: Thresholds | None, table: pl.DataFrame
) -> tuple[str, ...]:
    notes = []
    if separation.get("loss", 1.0) < EVENLY_SPREAD:
        notes.append(
            f"Training losses show no gap (the cut explains {separation['loss']:.0%} of their variance, and "
            f"{EVENLY_SPREAD:.0%} for evenly spread numbers): where high loss begins is a convention here."
        )
    found = thresholds is None or thresholds.cka is None
    if found and not bool(cuts["cka_clear"][0]) and table["point_phase"].is_in(["IV-A", "IV-B"]).any():
        notes.append(
            f"Cells of phase IV differ by less than {LEAST_CKA_GAP} in CKA, so small and large CKA are told apart by a "
            "cut over all cells."
        )
    known = table["hessian_agrees"].drop_nulls()
    if len(known) and known.mean() < 0.75:  # type: ignore[operator]
        notes.append(
            f"The Hessian trace agrees with the training loss in only {known.mean():.0%} of the cells; "
            "the labels follow the loss."
        )
    return tuple(notes)


# ---------------------------------------------------------------------------------------------------------- of a zoo


def zoo_phases(
    zoo: Zoo, *, load: str | None = None, temperature: str | None = None, thresholds: Thresholds | None = None,
    bootstrap: int = 1000, seed: int = 0,
) -> pl.DataFrame:  # fmt: skip
    """The phase of every cell of a zoo: the table of :func:`zoo_phase_result`."""
    return zoo_phase_result(
        zoo, load=load, temperature=temperature, thresholds=thresholds, bootstrap=bootstrap, seed=seed
    ).table


def zoo_phase_result(
    zoo: Zoo, *, load: str | None = None, temperature: str | None = None, thresholds: Thresholds | None = None,
    bootstrap: int = 1000, seed: int = 0,
) -> PhaseResult:  # fmt: skip
    """Label the cells of a measured zoo.

    Parameters
    ----------
    zoo : Zoo
        Measured by ``performance``, ``hessian_trace``, ``mode_connectivity`` and ``cka``.
    load, temperature : str, optional
        Axes that play these parts; default the zoo's own, or the first known ones (:func:`describe_axis`). They do not
        change the labels, only how they are drawn and described.
    thresholds, bootstrap, seed
        See :func:`phase_labels`.

    Returns
    -------
    PhaseResult
        The table also has ``load_axis`` and ``temperature_axis`` (one value throughout) and ``caveat`` (null, or a
        warning that holds for the whole table).

    Raises
    ------
    MeasureError
        When a measure is missing, naming what to run; when an axis is unknown, listing the axes.
    """
    axes = list(zoo.axes)
    load, temperature = axis_roles(axes, load or _own(zoo.load, axes), temperature or _own(zoo.temperature, axes))
    values = {name: _values(zoo, name) for name in (*BY_MODEL, *BY_PAIR)}
    lacking = list(dict.fromkeys(MEASURE_OF[name] for name, found in values.items() if not found))
    if lacking:
        call = ", ".join(f'"{name}"' for name in lacking)
        raise MeasureError(f"phases need measures this zoo does not have: run zoo.measure({call}) first.")

    table = zoo.table
    cells = _grown(zoo.cells(), table)
    diverged = set()
    if "status" in table.columns:
        diverged = set(table.filter(pl.col("status") == "diverged")["id"].to_list())
    columns: dict[str, list[list[float]]] = {name: [] for name in values}
    for ids in cells["ids"].to_list():
        measured = [i for i in ids if (i,) in values["train_loss"] or i in diverged]
        for name, found in values.items():
            keys = [(i,) for i in measured] if name in BY_MODEL else list(itertools.combinations(measured, 2))
            own = [found.get(key, found.get(key[::-1])) for key in keys]
            gone = all(v is None for v in own) and not diverged & set(measured)
            columns[name].append([] if gone else [math.nan if v is None else v for v in own])
    lists = cells.select("cell", *[axis for axis in axes if axis in cells.columns]).with_columns(
        *(pl.Series(name, rows, dtype=pl.List(pl.Float64)) for name, rows in columns.items())
    )
    given = thresholds or Thresholds()
    if given.collapsed_error is None:
        given = replace(given, collapsed_error=_collapsed_error(zoo))
    result = phase_labels(lists, thresholds=given, bootstrap=bootstrap, seed=seed)
    caveat = equal_epochs_caveat(table) if "batch_size" in axes else ""
    table = result.table.with_columns(
        load_axis=pl.lit(load, dtype=pl.String),
        temperature_axis=pl.lit(temperature, dtype=pl.String),
        caveat=pl.lit(caveat or None, dtype=pl.String),
    )
    return replace(result, table=table, notes=(*result.notes, *([caveat] if caveat else [])))


def _grown(cells: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    """The cells of models that were trained on the grid; merged or edited ones have no place on it."""
    if "relation" not in models.columns:
        return cells
    derived = models.filter(pl.col("relation").is_not_null() & (pl.col("relation") != ""))["id"].implode()
    return cells.filter(~pl.col("ids").list.first().is_in(derived))


def _own(axis: str | None, axes: Sequence[str]) -> str | None:
    """The zoo's own choice, unless a view has left that axis with one value."""
    return axis if axis in axes else None


def _values(zoo: Zoo, quantity: str) -> dict[tuple[str, ...], float]:
    """Values by (id,) or (a, b), at the last epoch measured; empty where nothing is."""
    try:
        frame = zoo.values(quantity)
    except DamagedError:
        raise
    except (MeasureError, StoreError):  # not measured
        return {}
    keys = ["a", "b"] if quantity in BY_PAIR else ["id"]
    if "epoch" in frame.columns:
        frame = frame.sort("epoch", maintain_order=True)
    frame = frame.unique(keys, keep="last", maintain_order=True)
    return {row[:-1]: math.nan if row[-1] is None else row[-1] for row in frame.select(*keys, "value").iter_rows()}


def _collapsed_error(zoo: Any) -> float:
    """Two thirds of the error of guessing: 0.6 for ten classes."""
    described = zoo.info.get("data") or {}
    names = zoo.table["data"].unique().to_list() if "data" in zoo.table.columns else []
    data = described.get(names[0]) if len(names) == 1 else None
    if not data or data["task"] == "regression" or data["n_outputs"] < 2:
        return 0.6
    return 2 / 3 * (1 - 1 / data["n_outputs"])
