"""A grown and measured zoo with every kind of file, and all it says as plain values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import zoarium as za
from zoarium.data.dataset import Dataset
from zoarium.zoo import Zoo


def blobs() -> Dataset:
    """Sixty points of three features in two classes."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return za.data.from_arrays(x, (x[:, 0] > 0).long(), name="blobs")


def blob_grid(**axes: object) -> za.Grid:
    """Four small models in two cells."""
    return za.Grid(**{"net": "mlp", "width": [2, 3], "batch_size": [8], "seed": range(2), "epochs": 4,
                      "data": blobs(), **axes})  # fmt: skip


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = za.grow(blob_grid(), tmp_path_factory.mktemp("faults") / "whole", workers=1, checkpoints=[2, 4])
    zoo.measure("performance", "cka", "seed_averaging", workers=1)
    return zoo


@pytest.fixture
def zoo(_whole: Zoo, tmp_path: Path) -> Zoo:
    """A zoo that has every kind of file; a copy of its own for each test."""
    return za.open(_whole.save(tmp_path / "zoo").path)


@pytest.fixture
def grid() -> Callable[..., za.Grid]:
    return blob_grid


def everything(zoo: Zoo) -> dict[str, object]:
    """All a zoo says but when it was made: tables (sorted, without seconds), header, weights, data."""
    keys = ("id", "a", "b", "cell", "epoch", "quantity")
    tables = {}
    for name in sorted(zoo.store.table_names):
        frame = zoo.store.table(name)
        assert frame is not None
        tables[name] = frame.drop("seconds", strict=False).sort([c for c in keys if c in frame.columns]).write_json()
    weights = {
        (row["id"], row["epoch"]): {k: v.tolist() for k, v in zoo[row["id"]].state_dict(row["epoch"]).items()}
        for row in zoo.checkpoints.iter_rows(named=True)
    }
    header = {k: v for k, v in zoo.info.items() if k not in ("generation", "created")}
    data = {name: (d.fingerprint, d.train.x.tolist()) for name in zoo.info["data"] for d in [zoo.base_data(name)]}
    return {"tables": tables, "weights": weights, "header": header, "data": data}


@pytest.fixture
def content() -> Callable[[Zoo], dict[str, object]]:
    return everything
