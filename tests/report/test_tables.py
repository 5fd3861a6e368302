from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoarium.report import collect
from zoarium.report.axes import choose_axes
from zoarium.report.curves import MOST_NUMBERS, MOST_POINTS, thin
from zoarium.report.quantities import number, quantity
from zoarium.report.values import jackknife


def test_a_cells_value_is_the_mean_over_its_models_with_the_error_over_seeds(card, card_data):
    zoo, _ = card
    cell, ids = zoo.cells().filter(pl.col("width") == 8).select("cell", "ids").row(0)
    own = zoo.values("hessian_trace").filter(pl.col("id").is_in(ids))["value"]
    value, stderr = card_data.by_cell("hessian_trace")[cell]
    assert value == pytest.approx(own.mean())
    assert stderr == pytest.approx(own.std() / 3**0.5)


def test_the_last_epoch_stands_in_for_measures_that_were_not_run(card, card_data):
    zoo, _ = card
    cell, ids = zoo.cells().select("cell", "ids").row(10)
    last = zoo.history.filter(pl.col("id").is_in(ids) & (pl.col("epoch") == 30))["test_accuracy"]
    assert card_data.by_cell("test_accuracy")[cell][0] == pytest.approx(last.mean())


@given(st.integers(3, 5), st.integers(0, 10))
@settings(max_examples=15, deadline=None)
def test_the_jackknife_over_models_agrees_with_its_definition(n, seed):
    pairs = list(itertools.combinations(range(n), 2))
    value = np.random.default_rng(seed).normal(size=len(pairs))
    without = [np.mean([v for p, v in zip(pairs, value, strict=True) if m not in p]) for m in range(n)]
    expected = np.sqrt((n - 1) / n * ((without - np.mean(without)) ** 2).sum())
    a, b = zip(*pairs, strict=True)
    frame = pl.DataFrame({"cell": "c", "quantity": "q", "a": map(str, a), "b": map(str, b), "value": value})
    assert jackknife(frame)["stderr"][0] == pytest.approx(expected)


def test_two_models_give_no_standard_error_of_a_pair():
    frame = pl.DataFrame({"cell": ["c"], "quantity": ["q"], "a": ["m"], "b": ["n"], "value": [1.0]})
    assert jackknife(frame)["stderr"][0] is None


def test_load_goes_across_and_temperature_down_whatever_the_order():
    table = pl.DataFrame({"batch_size": [8, 16], "width": [2, 4]})
    x, y, others = choose_axes(table, ["batch_size", "width"], "width", "batch_size")
    assert (x.name, y.name, others) == ("width", "batch_size", [])
    assert x.ends == ("high load", "low load") and y.ends == ("hot", "cold")


def test_axes_without_physics_get_no_direction():
    table = pl.DataFrame({"activation": ["relu", "tanh"], "optimizer": ["sgd", "adam"]})
    x, y, _ = choose_axes(table, ["activation", "optimizer"], None, None)
    assert (x.role, y.role) == ("axis", "axis")
    assert x.title() == "activation"


def test_a_large_learning_rate_is_hot_and_comes_first():
    table = pl.DataFrame({"lr": [0.01, 0.1, 0.1], "width": [2, 4, 4]})
    _, y, _ = choose_axes(table, ["lr", "width"], None, None)
    assert y.values == ("0.1", "0.01") and y.ends == ("hot", "cold")


def test_further_axes_become_slices(card):
    zoo, phases = card
    data = collect(zoo, phases=phases)
    assert data.slices == [""] and data.others == []


def test_many_learning_curves_become_means_of_cells_and_stay_small():
    n, epochs = 3000, 100
    history = pl.DataFrame(
        {
            "id": np.repeat([f"m{i}" for i in range(n)], epochs),
            "cell": np.repeat([f"c{i // 3}" for i in range(n)], epochs),
            "epoch": np.tile(np.arange(epochs), n),
            "train_loss": np.ones(n * epochs),
        }
    )
    series = thin(history)
    epochs_kept = series.table["epoch"].unique().to_list()
    assert series.table["series"].n_unique() == 1000 and "mean of its models" in series.what
    assert max(epochs_kept) == 99 and min(epochs_kept) == 0 and len(epochs_kept) <= MOST_POINTS
    assert len(series.table) <= MOST_NUMBERS


def test_a_logarithmic_quantity_with_a_value_below_zero_is_drawn_on_a_line():
    assert quantity("hessian_trace", [1.0, 10.0]).scale == "log"
    assert quantity("hessian_trace", [-1.0, 10.0]).scale == "linear"


def test_cka_of_a_layer_is_named_after_it():
    assert quantity("cka:fc1").label == "CKA similarity, fc1"


@given(st.floats(-1e9, 1e9))
def test_numbers_for_people_have_three_significant_digits(value):
    shown = float(number(value).replace("−", "-").replace(",", ""))
    assert shown == pytest.approx(value, rel=0.06 if not 1e-4 <= abs(value) < 1e5 else 6e-3)
