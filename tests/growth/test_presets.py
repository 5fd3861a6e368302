"""The published zoos by name, and their offline twins."""

from __future__ import annotations

import math

import pytest
import torch

import zoarium as za
from zoarium._core.errors import GridError
from zoarium.data import DATA, load
from zoarium.growth.grid import Grid
from zoarium.growth.presets import PRESETS, preset
from zoarium.measure.driver import resolve
from zoarium.nets import build

TWINS = [name for name in PRESETS if name.endswith("-twin")]
PUBLISHED = [name for name in PRESETS if name not in TWINS]
MODELS = {  # as published
    **{f"{data}-resnet{n}": 192 for data in ("svhn", "cifar10", "cifar100", "tiny-imagenet") for n in (18, 50)},
    "cifar10-vit": 147, "cifar100-vit": 147, "openwebtext-gpt2": 264, "convection-pinn": 700,
    "cifar10-resnet18-taxonomy": 845,
}  # fmt: skip


def test_the_twelve_published_zoos_and_the_grid_behind_the_phases_have_their_published_sizes():
    assert {name: len(preset(name)) for name in PUBLISHED} == MODELS


def test_every_published_zoo_has_a_twin_on_the_same_axes():
    twins = {preset(name).twin_of: preset(name) for name in TWINS}
    for name in PUBLISHED:
        if name != "cifar10-resnet18-taxonomy":
            one, twin = preset(name).grid, twins[name].grid
            assert (one.load, one.temperature, one.axes["optimizer"]) == (
                twin.load, twin.temperature, twin.axes["optimizer"]
            )  # fmt: skip


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_expands_to_models_of_distinct_ids_and_survives_yaml(name):
    grid = preset(name).grid
    assert len({config.id for config in grid}) == len(grid)
    assert Grid.from_yaml(grid.to_yaml()) == grid
    assert preset(name).published
    assert preset(name).chosen


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_architecture_of_a_preset_can_be_built_for_its_data(name):
    one = preset(name)
    sizes = []
    for params in {str(c.net_params): c.net_params for c in one.grid}.values():
        with torch.device("meta"):
            net = build(one.grid.net, params, in_shape=one.in_shape, n_outputs=one.n_outputs)
        sizes.append(sum(p.numel() for p in net.parameters()))
    assert sizes == sorted(sizes) or one.grid.load != "width"
    if name in MODELS:
        assert 5_000 < min(sizes) <= max(sizes) < 900e6


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_data_of_a_preset_are_registered_and_its_measures_and_settings_known(name):
    one = preset(name)
    assert one.grid.axes["data"][0].partition("(")[0] in DATA
    if one.measures:
        resolve([dict(one.measures)], {})


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_told_the_shape_of_its_data_truly_and_fits_in_it(name):
    one = preset(name)
    config = next(iter(one.grid))
    data = load(config.data)
    assert (data.in_shape, data.n_outputs) == (one.in_shape, one.n_outputs)
    assert max(one.grid.axes["batch_size"]) <= len(data.train)


def test_wide_resnet50s_take_their_largest_batches_in_parts_of_the_published_sizes():
    found = {
        (c.net_params["width"], c.training.batch_size): c.training.micro_batch
        for c in preset("cifar10-resnet50").grid
        if c.training.micro_batch
    }
    assert found == {
        (64, 1024): 512, (128, 512): 256, (128, 1024): 256, (256, 256): 128, (256, 512): 128, (256, 1024): 128,
    }  # fmt: skip


def test_the_published_resnet_recipe_is_followed():
    config = next(iter(preset("cifar100-resnet18").grid)).training
    facts = (config.optimizer, config.lr, config.momentum, config.nesterov, config.weight_decay, config.schedule)
    assert facts == ("sgd", 0.1, 0.9, False, 5e-4, "one_cycle")
    assert config.warmup == 0.3
    assert config.clip_norm is None
    assert config.epochs == 150
    assert config.augment == "crop_flip_rotate"
    assert next(iter(preset("tiny-imagenet-resnet50").grid)).training.epochs == 100


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(GridError, match=r"unknown preset 'cifar10-resnet19'. Did you mean 'cifar10-resnet18'"):
        za.preset("cifar10-resnet19")


def test_a_preset_grows_by_name(tmp_path, monkeypatch):
    small = preset("convection-pinn-twin")
    tiny = Grid(**{**small.grid.to_dict(), "beta": [1, 5], "lr": [1e-3, 1e-2], "epochs": 2})
    monkeypatch.setitem(PRESETS._methods, "convection-pinn-twin", lambda: za.Preset(**{**vars(small), "grid": tiny}))
    zoo = za.grow("preset:convection-pinn-twin", tmp_path / "zoo", workers=1)
    assert len(zoo) == 8
    assert (zoo.load, zoo.temperature) == ("beta", "lr")
    assert sorted(zoo.table["beta"].unique()) == [1, 5]
    assert sorted(zoo.summary()["data"]) == sorted({c.data for c in tiny})
    zoo.measure("performance", "pde_error", "hessian_trace", samples=16, max_products=4)
    assert math.isfinite(zoo.values("relative_error")["value"].sum())
