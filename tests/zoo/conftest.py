"""A zoo of six small networks, weights and tables and data included, for every test of the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from zoarium.data.dataset import Dataset, Split
from zoarium.zoo import Zoo

WIDTHS, SEEDS = (2, 3), (0, 1, 2)


def small_data(name: str = "tiny", seed: int = 0) -> Dataset:
    """Twelve training and six test samples of four features in three classes."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(18, 4, generator=draw), torch.randint(0, 3, (18,), generator=draw)
    return Dataset(name, Split(x[:12], y[:12]), Split(x[12:], y[12:]), "classification", 3)


def small_params(width: int, n: int = len(SEEDS), seed: int = 0) -> dict[str, torch.Tensor]:
    """Stacked parameters of n MLPs 4-width-3."""
    draw = torch.Generator().manual_seed(100 * width + seed)
    shapes = {"fc1.weight": (width, 4), "fc1.bias": (width,), "out.weight": (3, width), "out.bias": (3,)}
    return {name: torch.randn(n, *shape, generator=draw) for name, shape in shapes.items()}


def small_models() -> pl.DataFrame:
    """A row for each width and seed."""
    return pl.DataFrame(
        [
            {
                "id": f"mlp-w{width}-s{seed}", "net": "mlp", "net_params": json.dumps({"width": width}), "width": width,
                "data": "tiny", "seed": seed, "arch": f"mlp-w{width}", "status": "trained",
            }
            for width in WIDTHS
            for seed in SEEDS
        ]
    )  # fmt: skip


def fill(zoo: Zoo) -> Zoo:
    """Put the six models, two checkpoints each, a history, a measure of each scope and the data into a zoo."""
    models = small_models()
    with zoo.writing() as transaction:
        transaction.set_models(models)
        transaction.add_data("tiny", small_data())
        for width in WIDTHS:
            ids = models.filter(pl.col("width") == width)["id"].to_list()
            for epoch in (1, 2):
                transaction.add_weights(f"w{width}", epoch, 10 * epoch, ids, small_params(width, seed=epoch))
        history = models.select("id").join(pl.DataFrame({"epoch": [1, 2], "train_loss": [0.5, 0.25]}), how="cross")
        transaction.upsert("history", history, key=["id", "epoch"])
        values = {"epoch": 2, "quantity": "norm", "value": 1.5, "stderr": 0.0}
        transaction.upsert(
            "measures/norm",
            models.select("id").with_columns(**{k: pl.lit(v) for k, v in values.items()}),
            key=["id", "epoch", "quantity"],
        )
        pair = {"a": ["mlp-w2-s0"], "b": ["mlp-w2-s1"], "epoch": [2], "quantity": ["cka"], "value": [0.9]}
        transaction.upsert("pairs/cka", pl.DataFrame(pair), key=["a", "b", "epoch", "quantity"])
        cell = {"cell": ["width=2"], "epoch": [2], "quantity": ["gain"], "value": [0.1]}
        transaction.upsert("cells/gain", pl.DataFrame(cell), key=["cell", "epoch", "quantity"])
    return zoo


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return fill(Zoo.create(tmp_path / "zoo", axes=["width"], load="width", grid={"width": list(WIDTHS)}))


@pytest.fixture
def filled() -> Callable[[Zoo], Zoo]:
    return fill


@pytest.fixture
def tiny() -> Callable[..., Dataset]:
    return small_data


@pytest.fixture
def stacked() -> Callable[..., dict[str, torch.Tensor]]:
    return small_params


def everything(zoo: Zoo) -> dict[str, object]:
    """All a zoo says, as plain values: tables, header, weights, data."""
    weights = {
        (row["id"], row["epoch"]): {k: v.tolist() for k, v in zoo[row["id"]].state_dict(row["epoch"]).items()}
        for row in zoo.checkpoints.iter_rows(named=True)
    }
    tables = {
        name: zoo.store.frame(name).to_dicts()
        if name in ("models", "checkpoints", "history")
        else zoo.store.table(name).to_dicts()
        for name in sorted(zoo.store.table_names)
    }
    header = {k: v for k, v in zoo.info.items() if k != "generation"}
    base = {name: zoo.base_data(name) for name in zoo.info["data"]}
    data = {name: (d.fingerprint, d.train.x.tolist(), d.classes) for name, d in base.items()}
    return {"header": header, "tables": tables, "weights": weights, "data": data}


@pytest.fixture
def content() -> Callable[[Zoo], dict[str, object]]:
    return everything
