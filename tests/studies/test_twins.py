"""Twins: small published zoos that grow offline."""

from __future__ import annotations

import json

import pytest

import zoarium as za
from zoarium._core.errors import StoreError
from zoarium.growth.grid import Grid
from zoarium.growth.presets import PRESETS, preset
from zoarium.studies.twins import run_twin, twins_page

NAME = "openwebtext-gpt2-twin"
FEW = {"model_dim": [4, 8], "batch_size": [32, 64], "epochs": 1, "n_layers": 1}
FAST = {"hessian_trace": {"samples": 8, "max_products": 4}, "mode_connectivity": {"epochs": 1}, "cka": {"samples": 16}}


@pytest.fixture
def small(monkeypatch):
    """The language twin with few models, quickly measured."""
    full = preset(NAME)
    grid = Grid(**{**full.grid.to_dict(), **FEW, "data": "pydoc_topics(context=16, n_train=64, n_test=32)"})
    measures = {"performance": {}, **FAST}
    one = za.Preset(**{**vars(full), "grid": grid, "measures": measures, "in_shape": (16,)})
    monkeypatch.setitem(PRESETS._methods, NAME, lambda: one)


def test_a_twin_is_grown_labelled_and_told_on_the_page(small, tmp_path):
    result = run_twin(NAME, tmp_path / "zoo", workers=1)
    assert result.models == 8
    assert len(result.phases) == len(result.values) == 4
    assert result.values["test_perplexity"].min() > 1
    home = result.save(tmp_path / "results")
    assert json.loads((home / "result.json").read_text())["map"] == result.map
    page = twins_page(tmp_path / "results", assets=tmp_path / "pictures")
    assert result.map.splitlines()[0] in page
    assert "Stands for *openwebtext-gpt2*: 8 models" in page
    assert (tmp_path / "pictures" / f"twin-{NAME}.svg").read_text().startswith("<svg")
    assert page == twins_page(tmp_path / "results", assets=tmp_path / "pictures")


def test_a_published_zoo_is_no_twin():
    with pytest.raises(StoreError, match="'cifar10-resnet18' is a published zoo, not a twin"):
        run_twin("cifar10-resnet18")


def test_a_page_of_nothing_says_how_to_run_the_twins(tmp_path):
    with pytest.raises(StoreError, match="zoarium twins run --all"):
        twins_page(tmp_path, assets=tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "result.json").write_text("{")
    with pytest.raises(StoreError, match=r"result\.json is not a stored twin"):
        twins_page(tmp_path, assets=tmp_path)
