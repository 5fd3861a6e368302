"""What a Ray-era zoo measured of its own models, as measures of ours whose settings say where they come from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.digest import settings_hash
from zoarium._core.errors import ZoariumError
from zoarium.zoo.foreign.intake import Incoming
from zoarium.zoo.foreign.ray_trial import COLUMNS, number
from zoarium.zoo.foreign.reader import read_json
from zoarium.zoo.tables import cell_key

if TYPE_CHECKING:
    from zoarium.zoo.transaction import Transaction
    from zoarium.zoo.zoo import Zoo

LOAD = ("width", "depth", "data_fraction")
TEMPERATURE = ("batch_size", "lr", "weight_decay", "momentum", "epochs")
NO_AXIS = ("seed",)
CELL_WIDE = "one value for the whole cell (mean over seeds), given to each of its models"
WHILE_TRAINING = "taken while training, with augmentation and batch norm in training mode"
AS_STORED = "as stored"
EXP = "the exponential of what is stored, a natural logarithm"
POINTS = "a hundred times what is stored, a share"

# key of result.json: table, quantity, how it is turned into ours, remark
BY_MODEL = {
    "train_loss": ("performance", "train_loss", AS_STORED, WHILE_TRAINING),
    "test_loss": ("performance", "test_loss", AS_STORED, ""),
    "train_acc": ("performance", "train_accuracy", AS_STORED, WHILE_TRAINING),
    "test_acc": ("performance", "test_accuracy", AS_STORED, ""),
    "log_hessian_trace": ("hessian_trace", "hessian_trace", EXP, CELL_WIDE),
    "log_hessian_trace_train": ("hessian_trace", "hessian_trace", EXP, CELL_WIDE),
    "log_hessian_top_ev": ("hessian_top_eigenvalue", "hessian_top_eigenvalue", EXP, CELL_WIDE),
    "log_hessian_top_ev_train": ("hessian_top_eigenvalue", "hessian_top_eigenvalue", EXP, CELL_WIDE),
}
BY_PAIR = {
    "representation_similarity": ("cka", "cka", "biased, of logits, a mean over batches and pairs of seeds"),
    "curve_mc_train_error": ("mode_connectivity", "mode_connectivity", "a mean over pairs of seeds"),
    "curve_mc_test_error": ("mode_connectivity", "mode_connectivity_test", "a mean over pairs of seeds"),
}
PAIRS = "representation_similarity_pairs"  # one value a pair of seeds, where it is stored
BY_CELL = {
    "wiseft_acc_test_delta": ("epoch_averaging", "epoch_averaging_delta", "the last 5 epochs, batch norm not renewed"),
    "gitrebasin_acc_test_delta": ("seed_averaging", "aligned_averaging_delta", "weight matching to seed 0"),
}
DERIVED = {"train_error": "train_accuracy", "test_error": "test_accuracy"}
OTHERS = "published"  # a table for whatever has no place among our measures, under its own key
MAX_INDEX = 10 * 2**20

Rows = dict[str, list[dict[str, Any]]]


def keep_values(zoo: Zoo, transaction: Transaction, taken: Mapping[str, Incoming], root: Path) -> None:
    """Store axes, load, temperature and what the trials among `taken` had measured."""
    trials = {id: incoming for id, incoming in taken.items() if "trial_config" in incoming.columns}
    if not trials:
        return
    axes = _set_axes(zoo, transaction, trials)
    settings: dict[str, Any] = {}
    tables: Rows = {}
    for id, incoming in trials.items():
        for epoch in _epochs(incoming):
            _model_values(tables, settings, id, epoch, incoming.published[epoch])
    cells: dict[str, list[str]] = {}
    for id, incoming in trials.items():
        cells.setdefault(cell_key({axis: incoming.columns.get(axis) for axis in axes}), []).append(id)
    for cell, ids in cells.items():
        ids.sort(key=lambda id: (trials[id].columns.get("seed") or 0, id))
        for epoch in sorted({epoch for id in ids for epoch in _epochs(trials[id])}):
            lines = {id: trials[id].published.get(epoch, {}) for id in ids}
            _pair_values(tables, settings, ids, epoch, lines)
            _cell_values(tables, settings, cell, epoch, lines)
    keys = {"measures": ["id"], "pairs": ["a", "b"], "cells": ["cell"]}
    for name, rows in tables.items():
        if not rows:
            continue
        frame = pl.DataFrame(rows, infer_schema_length=None)
        transaction.upsert(name, frame, key=[*keys[name.partition("/")[0]], "epoch", "quantity"])
    known = dict(zoo.info.get("measure_settings") or {})
    transaction.update_header(measure_settings={**known, **settings}, **_index(root))


def _index(root: Path) -> dict[str, Any]:
    """``index_dict.json``, which says where each layer lies in vectors made of these models."""
    path = root / "index_dict.json"
    try:
        return {"index_dict": read_json(path)} if path.is_file() and path.stat().st_size <= MAX_INDEX else {}
    except (ZoariumError, OSError):
        return {}


def _set_axes(zoo: Zoo, transaction: Transaction, trials: Mapping[str, Incoming]) -> list[str]:
    """Axes are the columns that vary among the trials, besides the seed."""
    ours = [name for name, _ in COLUMNS.values() if name not in NO_AXIS]
    varied = [name for name in ours if len({_plain(t.columns.get(name)) for t in trials.values()}) > 1]
    axes = list(dict.fromkeys([*zoo.axes, *varied]))
    load = zoo.load or next((axis for axis in LOAD if axis in axes), None)
    temperature = zoo.temperature or next((axis for axis in TEMPERATURE if axis in axes), None)
    transaction.update_header(axes=axes, load=load, temperature=temperature)
    return axes


def _plain(value: Any) -> Any:
    return repr(value)


def _epochs(incoming: Incoming) -> list[int]:
    """Epochs whose landscape was measured, or else the last that has results."""
    curves = {"train_loss", "test_loss", "train_acc", "test_acc"}
    measured = [epoch for epoch, line in sorted(incoming.published.items()) if set(line) - curves]
    return measured or sorted(incoming.published)[-1:]


def _row(epoch: int, quantity: str, value: float, digest: str) -> dict[str, Any]:
    return {
        "epoch": epoch, "quantity": quantity, "value": value, "stderr": math.nan, "samples": 0, "products": 0,
        "seconds": 0.0, "settings": digest, "reason": "" if math.isfinite(value) else "not finite in result.json",
    }  # fmt: skip


def _settings(known: dict[str, Any], measure: str, key: str, how: str, remark: str) -> str:
    what = {"measure": measure, "source": "result.json", "key": key, "value": how, "remark": remark}
    digest = settings_hash(what)
    known[digest] = what
    return digest


def _turned(value: float, how: str) -> float:
    if how == EXP:
        return math.exp(value) if value < 700 else math.inf
    return 100 * value if how == POINTS else value


def _model_values(tables: Rows, settings: dict[str, Any], id: str, epoch: int, line: Mapping[str, Any]) -> None:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for key, (measure, quantity, how, remark) in BY_MODEL.items():
        value = number(line.get(key))
        if value is None:
            continue
        digest = _settings(settings, measure, key, how, remark)
        rows[measure, quantity] = {"id": id, **_row(epoch, quantity, _turned(value, how), digest)}
    for quantity, accuracy in DERIVED.items():
        old = rows.get(("performance", accuracy))
        if old is not None:
            rows["performance", quantity] = {**old, "quantity": quantity, "value": 1 - old["value"]}
    if ("performance", "train_accuracy") in rows and ("performance", "test_accuracy") in rows:
        train, test = (rows["performance", f"{part}_accuracy"] for part in ("train", "test"))
        gap = train["value"] - test["value"]
        rows["performance", "generalization_gap"] = {**train, "quantity": "generalization_gap", "value": gap}
    for key, raw in line.items():
        value = number(raw)
        if value is not None and key not in BY_MODEL and key not in BY_PAIR and key not in BY_CELL:
            digest = _settings(settings, OTHERS, key, AS_STORED, "")
            rows[OTHERS, key] = {"id": id, **_row(epoch, key, value, digest)}
    for (measure, _), row in rows.items():
        tables.setdefault(f"measures/{measure}", []).append(row)


def _pair_values(
    tables: Rows, settings: dict[str, Any], ids: Sequence[str], epoch: int, lines: Mapping[str, Mapping[str, Any]]
) -> None:
    pairs = list(itertools.combinations(ids, 2))
    for key, (measure, quantity, remark) in BY_PAIR.items():
        rows = tables.setdefault(f"pairs/{measure}", [])
        each = [_numbers(line.get(PAIRS)) for line in lines.values()] if measure == "cka" else []
        listed = next((values for values in each if len(values) == len(pairs)), None)
        for n, (a, b) in enumerate(pairs):
            stored = [value for i in (a, b) if (value := number(lines[i].get(key))) is not None]
            if listed:
                digest = _settings(settings, measure, PAIRS, AS_STORED, "pairs in the order of their seeds")
                rows.append({"a": a, "b": b, **_row(epoch, quantity, listed[n], digest)})
            elif stored:
                digest = _settings(settings, measure, key, AS_STORED, remark)
                rows.append({"a": a, "b": b, **_row(epoch, quantity, sum(stored) / len(stored), digest)})


def _numbers(value: Any) -> list[float]:
    """A list of plain numbers; empty for anything else."""
    found = [number(item) for item in value] if isinstance(value, list) else []
    return [item for item in found if item is not None] if None not in found else []


def _cell_values(
    tables: Rows, settings: dict[str, Any], cell: str, epoch: int, lines: Mapping[str, Mapping[str, Any]]
) -> None:
    for key, (measure, quantity, remark) in BY_CELL.items():
        stored = [value for line in lines.values() if (value := number(line.get(key))) is not None]
        if stored:
            digest = _settings(settings, measure, key, POINTS, remark)
            row = _row(epoch, quantity, 100 * sum(stored) / len(stored), digest)
            tables.setdefault(f"cells/{measure}", []).append({"cell": cell, **row})
