from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from zoarium._core.errors import MeasureError
from zoarium.evaluate import effects_by_phase, stored_effects


def tables(gap: float, cells: int = 30, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    draw = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(cells)]
    phase = ["I" if i % 3 else "IV-B" for i in range(cells)]
    value = draw.normal(size=cells) + gap * np.array([p == "I" for p in phase])
    effects = pl.DataFrame({"cell": names * 2, "quantity": ["gain"] * cells + ["noise"] * cells,
                            "value": [*value, *draw.normal(size=cells)], "stderr": [0.1] * (2 * cells)})  # fmt: skip
    return effects, pl.DataFrame({"cell": names, "phase": phase})


def test_the_baseline_is_the_mean_over_all_cells_and_differences_are_from_it():
    effects, phases = tables(3.0)
    got = effects_by_phase(effects, phases)
    gain = effects.filter(pl.col("quantity") == "gain")["value"]
    for row in got.filter(pl.col("quantity") == "gain").iter_rows(named=True):
        assert row["baseline"] == pytest.approx(gain.mean())
        assert row["difference"] == pytest.approx(row["mean"] - row["baseline"])
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert got["n_cells"].to_list() == [20, 10, 20, 10]


def test_a_phase_that_differs_is_found_and_one_that_does_not_is_not():
    got = effects_by_phase(*tables(3.0))
    assert got.filter(pl.col("quantity") == "gain")["q"].max() < 0.01
    assert got.filter(pl.col("quantity") == "noise")["q"].min() > 0.05


def test_correction_only_ever_raises_p():
    got = effects_by_phase(*tables(0.5))
    assert (got["q"] >= got["p"] - 1e-12).all()


def test_labels_at_random_give_uniform_p():
    p = [effects_by_phase(*tables(0.0, 18, seed), bootstrap=200)["p"][0] for seed in range(60)]
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) < 0.1) < 0.25


def test_missing_values_and_unlabelled_cells_are_left_out():
    effects, phases = tables(1.0)
    effects = effects.with_columns(
        pl.when(pl.col("cell") == "c0").then(float("nan")).otherwise(pl.col("value")).alias("value")
    )
    phases = phases.with_columns(pl.when(pl.col("cell") == "c1").then(None).otherwise(pl.col("phase")).alias("phase"))
    got = effects_by_phase(effects, phases)
    assert got["n_cells"].to_list() == [19, 9, 19, 9]


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    effects, phases = tables(1.0)
    got = effects_by_phase(effects, phases)
    assert got.equals(effects_by_phase(effects.reverse(), phases.reverse()))
    assert not got.equals(effects_by_phase(effects, phases, seed=1))


def test_a_phase_of_one_cell_has_no_interval():
    effects, phases = tables(1.0, 4)
    got = effects_by_phase(effects, phases.with_columns(pl.Series("phase", ["I", "I", "I", "II"])))
    assert got.filter(pl.col("phase") == "II")["low"].to_list() == [None, None]


def test_one_phase_for_all_differs_from_nothing():
    effects, phases = tables(1.0)
    got = effects_by_phase(effects, phases.with_columns(phase=pl.lit("I")))
    assert got["difference"].abs().max() < 1e-12
    assert got["p"].to_list() == [1.0, 1.0]


def test_no_effects_give_an_empty_table():
    effects, phases = tables(1.0)
    got = effects_by_phase(effects.clear(), phases)
    assert got.is_empty()
    assert "q" in got.columns


def test_stored_effects_are_those_of_cell_measures_in_the_view():
    import zoarium as za

    zoo = za.grow(za.Grid("mlp", width=[2, 4], seed=range(2), epochs=1, data="iris", batch_size=16), workers=1)
    assert stored_effects(zoo).is_empty()
    zoo.measure("performance", "ensembling", "seed_averaging", workers=1)
    got = zoo.effects()
    assert set(got["quantity"]) == {
        "ensembling_gain", "ensembling_loss_gain", "plain_averaging_delta", "aligned_averaging_delta",
    }  # fmt: skip
    assert got["cell"].n_unique() == 2
    assert got["value"].is_finite().all()
    assert zoo.where(width=2).effects()["cell"].n_unique() == 1


def test_a_missing_column_is_named():
    effects, phases = tables(1.0)
    with pytest.raises(MeasureError, match=r"phases has no column 'phase'"):
        effects_by_phase(effects, phases.drop("phase"))
