"""A zoo as the few plain tables a report is made of.

Everything the report shows is read here, once; charts, findings and the page know `ReportData` and nothing of zoos.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import ZoariumError
from zoarium.report.axes import Axis, axis_caveats, axis_text, choose_axes, pretty
from zoarium.report.curves import CURVES, Series, thin
from zoarium.report.quantities import ORDER, Quantity, quantity
from zoarium.report.tracking import Tracking, tracking
from zoarium.report.values import cell_values

if TYPE_CHECKING:
    from zoarium.measure.phases import PhaseResult
    from zoarium.zoo import Zoo

LEAST_CELLS = 3  # labelled cells that effects by phase need to mean anything
NO_PHASE = {"phase": pl.String, "point_phase": pl.String, "confidence": pl.Float64, "reason": pl.String}
EFFECT_COLUMNS = ("quantity", "phase", "n_cells", "mean", "low", "high", "baseline", "difference", "p", "q")


@dataclass(frozen=True, eq=False)
class ReportData:
    """What a report is made of.

    Parameters
    ----------
    title : str
        Heading of the page.
    summary : str
        What the zoo is, in a sentence.
    x, y : Axis or None
        The axes across and down: load and temperature where they are known.
    others : list of str
        Axes beyond those two; each combination of their values is a *slice* with maps of its own.
    cells : polars.DataFrame
        A row a cell: ``cell``, ``label``, ``x``, ``y``, ``slice`` (all text), the axes, ``n`` models, ``phase``,
        ``point_phase``, ``confidence``, ``reason``.
    values : polars.DataFrame
        Long: ``cell``, ``quantity``, ``value``, ``stderr``, ``reason``; mean over the cell's models or pairs.
    models : polars.DataFrame
        A row a model: ``id``, ``cell``, axes, ``seed``, ``status``, and a column a quantity.
    history : polars.DataFrame
        ``id``, ``cell``, ``epoch`` and the curves there are.
    quantities : list of Quantity
        In the order of the page.
    effects : polars.DataFrame
        A row a (quantity, phase), as :func:`zoarium.evaluate.effects_by_phase` returns it; empty without phases.
    thresholds : mapping of str to float
        Sentences of the phase rule, with a place for their number.
    settings : mapping
        Everything else worth recording, as nested plain values.
    caveats : list of str
        What a reader should know before believing a map.
    """

    title: str
    summary: str
    x: Axis | None
    y: Axis | None
    others: list[str]
    cells: pl.DataFrame
    values: pl.DataFrame
    models: pl.DataFrame
    history: pl.DataFrame
    quantities: list[Quantity]
    effects: pl.DataFrame
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    caveats: list[str] = field(default_factory=list)

    @cached_property
    def series(self) -> Series:
        """The lines of the learning curves, thinned."""
        return thin(self.history)

    @property
    def slices(self) -> list[str]:
        """Combinations of the other axes' values, in the order of the table; one empty text if there are none."""
        return self.cells["slice"].unique(maintain_order=True).to_list() or [""]

    @property
    def labelled(self) -> bool:
        """Whether any cell has a phase."""
        return self.cells["phase"].is_not_null().any()

    @cached_property
    def tracking(self) -> list[Tracking]:
        """How well each measure orders the cells by the gain from averaging, best first."""
        return tracking(self)

    @cached_property
    def _by_cell(self) -> dict[str, dict[str, tuple[float, float]]]:
        rows = self.values.filter(pl.col("value").is_finite()).select("quantity", "cell", "value", "stderr")
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for name, cell, value, stderr in rows.iter_rows():
            found.setdefault(name, {})[cell] = (value, math.nan if stderr is None else stderr)
        return found

    def by_cell(self, name: str) -> Mapping[str, tuple[float, float]]:
        """Finite values of one quantity with their standard errors (NaN where there is none), by cell."""
        return self._by_cell.get(name, {})

    def quantity(self, name: str) -> Quantity | None:
        """The quantity of that name, if it was measured."""
        return next((q for q in self.quantities if q.name == name), None)


def collect(zoo: Zoo, *, phases: pl.DataFrame | PhaseResult | None = None, title: str | None = None) -> ReportData:
    """Read everything a report shows from a zoo.

    Parameters
    ----------
    zoo : Zoo
        A zoo or a view of one.
    phases : PhaseResult or polars.DataFrame, optional
        Labels found before, or your own: ``cell`` (or the axes), ``phase`` and, if you have them, ``point_phase``,
        ``confidence`` and ``reason``. By default they are found anew; a zoo that lacks the measures for it is reported
        without phases.
    title : str, optional
        Heading; default the folder's name.

    Notes
    -----
    A cell's value of a measure of models is their mean, its standard error that over seeds; for a measure of pairs it
    is the mean over the cell's pairs, its standard error the jackknife over models, since pairs share them.
    """
    table = zoo.table
    axes = [a for a in zoo.axes if a != "seed" and a in table.columns]
    raw = _base_cells(zoo, table)
    x, y, others = choose_axes(table, axes, zoo.load, zoo.temperature)
    owner = {i: cell for cell, ids in raw.select("cell", "ids").iter_rows() for i in ids}
    caveats = axis_caveats(x, y, table)
    found, problem = (phases, "") if phases is not None else _phases_of(zoo)
    labels = found if found is None or isinstance(found, pl.DataFrame) else found.table
    notes = [problem, *getattr(found, "notes", ())]
    caveats += [note for note in notes if note and note not in caveats]
    cells = _with_phases(_placed(raw, axes, x, y, others), labels, axes)
    values = cell_values(zoo, table, raw, owner)
    quantities = [
        quantity(name, part["value"].to_list()) for (name,), part in values.group_by("quantity", maintain_order=True)
    ]
    quantities.sort(key=lambda q: ORDER.get(q.name, len(ORDER)))
    models = _models(zoo, table, axes, owner)
    history = zoo.history.with_columns(cell=pl.col("id").replace_strict(owner, default=None, return_dtype=pl.String))
    status = dict(table["status"].value_counts().iter_rows())
    if status.get("diverged"):
        caveats.append(
            f"{status['diverged']} of {len(table)} models diverged; their cells use the models that did not."
        )
    return ReportData(
        title=title or zoo.path.resolve().name,
        summary=_summary(zoo, table, axes),
        x=x, y=y, others=others, cells=cells, values=values, models=models, history=history, quantities=quantities,
        effects=_effects(values, cells, quantities), thresholds=_thresholds(found), settings=_settings(zoo),
        caveats=caveats,
    )  # fmt: skip


def _base_cells(zoo: Zoo, table: pl.DataFrame) -> pl.DataFrame:
    """Cells of models that were grown; merged or pruned ones would lie on top of them in a map."""
    cells = zoo.cells()
    if "relation" not in table.columns or not table["relation"].is_not_null().any():
        return cells
    grown = set(table.filter(pl.col("relation").is_null() | (pl.col("relation") == ""))["id"])
    return cells.filter([ids[0] in grown for ids in cells["ids"].to_list()])


def _placed(
    raw: pl.DataFrame, axes: Sequence[str], x: Axis | None, y: Axis | None, others: Sequence[str]
) -> pl.DataFrame:
    """Cells with their place in the maps, as text, which is what the charts' scales are made of."""
    rows = []
    for row in raw.select("cell", *axes, "n").iter_rows(named=True):
        place = {"x": axis_text(row[x.name]) if x else "", "y": axis_text(row[y.name]) if y else ""}
        where = ", ".join(f"{pretty(a)} {axis_text(row[a])}" for a in others)
        label = ", ".join(f"{pretty(a)} {axis_text(row[a])}" for a in axes) or "all models"
        rows.append({"cell": row["cell"], "label": label, **place, "slice": where, "n": row["n"]})
    kinds = {"cell": pl.String, "label": pl.String, "x": pl.String, "y": pl.String, "slice": pl.String, "n": pl.Int64}
    placed = pl.DataFrame(rows, schema=kinds)
    return placed.hstack([raw[a].alias(a) for a in axes if a not in kinds])


def _phases_of(zoo: Zoo) -> tuple[PhaseResult | None, str]:
    from zoarium.measure.phases import zoo_phase_result

    try:
        return zoo_phase_result(zoo), ""
    except ZoariumError as error:
        return None, f"Cells have no phase labels: {error}"


def _with_phases(cells: pl.DataFrame, phases: pl.DataFrame | None, axes: Sequence[str]) -> pl.DataFrame:
    if phases is None:
        return cells.with_columns(pl.lit(None, dtype=kind).alias(name) for name, kind in NO_PHASE.items())
    on = ["cell"] if "cell" in phases.columns else list(axes)
    have = [name for name in NO_PHASE if name in phases.columns]
    joined = cells.join(
        phases.select(*on, *(pl.col(n).cast(NO_PHASE[n]) for n in have)).unique(on),
        on=on,
        how="left",
        maintain_order="left",
    )
    return joined.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in NO_PHASE.items() if name not in have
    )


RULE = {  # the phase rule's thresholds in words
    "loss": "train loss above {} is high",
    "hessian": "Hessian trace above {} is large",
    "mc_band": "mode connectivity within ±{} pp is near zero",
    "cka": "CKA above {} is large",
    "collapsed_error": "test error from {} is collapsed",
    "min_confidence": "confidence below {} is ambiguous",
}


def _thresholds(phases: Any) -> dict[str, float]:
    """Sentences of the rule that gave the labels, with their numbers; nothing for labels of somebody else's rule."""
    used = getattr(phases, "thresholds", None)
    found = {words: getattr(used, name, None) for name, words in RULE.items()}
    return {words: float(value) for words, value in found.items() if value is not None}


def _models(zoo: Zoo, table: pl.DataFrame, axes: Sequence[str], owner: Mapping[str, str]) -> pl.DataFrame:
    wide = zoo.measured
    measured = [c for c in wide.columns if c not in table.columns and wide.schema[c].is_numeric()]
    out = wide.with_columns(cell=pl.col("id").replace_strict(owner, default=None, return_dtype=pl.String))
    history = zoo.history
    curves = [c for c in CURVES if c in history.columns and c not in measured]
    if curves and len(history):
        last = history.sort("epoch", maintain_order=True).unique("id", keep="last", maintain_order=True)
        out = out.join(last.select("id", *curves), on="id", how="left", maintain_order="left")
    else:
        curves = []
    settled = [c for c in ("seed", "status", "relation") if c in table.columns]
    if "relation" in settled and not table["relation"].is_not_null().any():
        settled.remove("relation")
    shown = sorted([*curves, *measured], key=lambda name: ORDER.get(name, len(ORDER)))
    return out.select("id", "cell", *axes, *settled, *shown)


def _effects(values: pl.DataFrame, cells: pl.DataFrame, quantities: Iterable[Quantity]) -> pl.DataFrame:
    """Effects by phase; collapsed cells are a row of their own but not part of what a phase is compared with."""
    names = [q.name for q in quantities if q.group == "use"]
    labelled = cells.filter(pl.col("phase").is_not_null() & ~pl.col("phase").is_in(["collapsed", "unlabelled"]))
    wanted = values.filter(pl.col("quantity").is_in(names) & pl.col("value").is_finite())
    if len(labelled) < LEAST_CELLS or not len(wanted):
        return pl.DataFrame(
            schema=dict.fromkeys(EFFECT_COLUMNS, pl.Float64) | {"quantity": pl.String, "phase": pl.String}
        )
    from zoarium.evaluate import effects_by_phase

    return effects_by_phase(wanted, labelled.select("cell", "phase"))


def _summary(zoo: Zoo, table: pl.DataFrame, axes: Sequence[str]) -> str:
    nets = ", ".join(map(str, table["net"].unique(maintain_order=True))) if "net" in table.columns else ""
    data = ", ".join(map(str, table["data"].unique(maintain_order=True))) if "data" in table.columns else ""
    seeds = table["seed"].n_unique() if "seed" in table.columns else 1
    many = f"{len(table):,} model{'s' if len(table) != 1 else ''}"
    spans = " × ".join(f"{table[a].n_unique()} {_several(pretty(a))}" for a in axes if table[a].n_unique() > 1)
    counted = " × ".join(p for p in (spans, f"{seeds} seeds" if seeds > 1 else "") if p)
    what = f" of the net {nets}" if nets else ""
    return f"{many}{what}{f' trained on {data}' if data else ''}{f': {counted}' if counted else ''}."


def _several(axis: str) -> str:
    return f"{axis} values" if axis.endswith(("s", "noise", "fraction", "decay", "momentum", "dim")) else f"{axis}s"


def _settings(zoo: Zoo) -> dict[str, Any]:
    """Everything recorded with the zoo, and what all of its models have in common."""
    info = dict(zoo.info)
    table = zoo.table
    first = table.row(0, named=True) if len(table) else {}
    shared = {
        c: first[c]
        for c in table.columns
        if len(table) and c not in ("id", "arch", "parents", "relation", "net_params", "n_params")
        and table.schema[c] != pl.List(pl.String) and table[c].n_unique() == 1
    }  # fmt: skip
    parts: dict[str, Any] = {
        "grid": info.pop("grid", None), "training shared by all models": shared,
        "data": info.pop("data", None), "measures": measure_settings(info.pop("measure_settings", None)),
        "software": info.pop("software", None),
    }  # fmt: skip
    parts["zoo"] = {k: v for k, v in info.items() if k != "axes"}
    return {k: v for k, v in parts.items() if v}


def measure_settings(stored: Any) -> dict[str, Any]:
    """Settings by measure instead of by their hash."""
    out: dict[str, Any] = {}
    for digest, settings in (stored or {}).items() if isinstance(stored, Mapping) else []:
        own = dict(settings) if isinstance(settings, Mapping) else {"settings": settings}
        name = str(own.pop("measure", digest))
        out[name if name not in out else f"{name} ({digest})"] = own or "defaults"
    return out
