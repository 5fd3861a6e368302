from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from zoarium._core.errors import MeasureError
from zoarium.evaluate.weight_statistics import (
    WeightStatisticsPredictor,
    _balanced_accuracy,
    _deal,
    _r_squared,
    _resamples,
    predict_from_weights,
    weight_statistics,
)  # fmt: skip
from zoarium.nets import build
from zoarium.zoo import Cohort


@dataclass
class Ref:
    """A cohort not loaded yet."""

    cohort: Cohort

    @property
    def ids(self) -> tuple[str, ...]:
        return self.cohort.ids

    def load(self) -> Cohort:
        return self.cohort


class FakeZoo:
    """Nets of two widths and depths; `scale` sets how large a model's weights are, and is what targets depend on."""

    axes = ("width", "batch_size")

    def __init__(self, cells: int = 24, seeds: int = 2) -> None:
        draw = np.random.default_rng(0)
        groups: dict[int, list[tuple[str, torch.nn.Module]]] = {}
        rows = []
        for cell in range(cells):
            width, scale = (3, 6)[cell % 2], float(draw.uniform(0.2, 2))
            for seed in range(seeds):
                net = build(
                    "mlp", {"width": width, "depth": width // 3}, in_shape=(4,), n_outputs=3, seed=100 * cell + seed
                )
                net.load_state_dict({k: scale * v for k, v in net.state_dict().items()})
                groups.setdefault(width, []).append((f"c{cell}s{seed}", net))
                rows.append({"id": f"c{cell}s{seed}", "width": width, "batch_size": 2 + cell // 2, "scale": scale})
        self.table = pl.DataFrame(rows)
        self.refs = [Ref(Cohort.from_modules([n for _, n in g], [i for i, _ in g])) for g in groups.values()]

    @property
    def measured(self) -> pl.DataFrame:
        return self.table.with_columns(
            size=pl.when(pl.col("scale") > 1).then(pl.lit("large")).otherwise(pl.lit("small")), none=pl.lit(1.0)
        )

    def cohorts(self) -> list[Ref]:
        return self.refs

    def cells(self) -> pl.DataFrame:
        cells = self.table.group_by("width", "batch_size", maintain_order=True).agg(pl.col("id").alias("ids"))
        return cells.with_columns(cell=pl.format("width={},batch_size={}", "width", "batch_size"))

    def phases(self) -> pl.DataFrame:
        labels = (
            self.cells()
            .explode("ids")
            .join(self.measured, left_on="ids", right_on="id")
            .unique("cell", maintain_order=True)
        )
        first = pl.int_range(pl.len()) < 3
        return labels.select("cell", phase=pl.when(first).then(pl.lit("ambiguous")).otherwise(pl.col("size")))


def test_statistics_are_those_of_numpy_layer_by_layer():
    nets = [build("mlp", {"width": 4, "depth": 3}, in_shape=(5,), n_outputs=2, seed=s) for s in range(2)]
    cohort = Cohort.from_modules(nets, ["a", "b"])
    table = weight_statistics(cohort)
    roles = {"first": "fc1", "hidden1": "fc2", "hidden2": "fc3", "last": "out"}
    assert table.width == 1 + len(roles) * 2 * 7
    for role, layer in roles.items():
        for own in ("weight", "bias"):
            for row in range(2):
                w = cohort.params[f"{layer}.{own}"][row].double().numpy().ravel()
                expected = [w.mean(), w.std(), *np.quantile(w, [0, 0.25, 0.5, 0.75, 1])]
                got = [table[f"{role}.{own}.{s}"][row] for s in ("mean", "sd", "q0", "q25", "q50", "q75", "q100")]
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_roles_line_up_the_first_and_last_layers_of_nets_of_any_depth_and_norms_apart():
    def columns(net: str, **params: object) -> list[str]:
        made = build(net, params, in_shape=(1, 4, 4), n_outputs=2)
        return [
            c.removesuffix(".weight.mean")
            for c in weight_statistics(Cohort.from_modules([made])).columns
            if c.endswith("weight.mean")
        ]

    assert columns("mlp", depth=0) == ["last"]
    assert columns("mlp", depth=1) == ["first", "last"]
    assert columns("mlp", depth=3) == ["first", "hidden1", "hidden2", "last"]
    assert columns("cnn", depth=2, batch_norm=True) == ["first", "norm1", "hidden1", "norm2", "last"]


def test_statistics_do_not_change_when_hidden_units_are_reordered():
    cohort = Cohort.from_modules([build("mlp", {"width": 6}, in_shape=(5,), n_outputs=3)])
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    p = cohort.params
    moved = {
        **p,
        "fc1.weight": p["fc1.weight"][:, order],
        "fc1.bias": p["fc1.bias"][:, order],
        "out.weight": p["out.weight"][:, :, order],
    }
    a, b = (weight_statistics(c).drop("id").to_numpy() for c in (cohort, cohort.with_params(moved)))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_predictor_keeps_scikit_learns_contract(task):
    check_estimator(WeightStatisticsPredictor(task=task, learner="ridge"), on_skip=None)


@pytest.mark.parametrize("learner", ["boosting", "ridge"])
def test_both_learners_take_missing_layers_and_beat_the_mean(learner):
    draw = np.random.default_rng(1)
    x = draw.normal(size=(80, 4))
    y = x[:, 0]
    x[::3, 3] = np.nan
    model = WeightStatisticsPredictor(learner=learner)
    assert cross_val_score(clone(model), x, y).mean() > 0.8
    classes = WeightStatisticsPredictor("classification", learner).fit(x, np.where(y > 0, "up", "down"))
    assert classes.score(x, np.where(y > 0, "up", "down")) > 0.9


def test_an_unknown_task_or_learner_is_said_when_fitting():
    with pytest.raises(ValueError, match=r"'regression' or 'classification'.*'forest'"):
        WeightStatisticsPredictor(learner="forest").fit([[0.0], [1.0]], [0.0, 1.0])


def test_weights_predict_what_hyperparameters_cannot_know():
    table = predict_from_weights(FakeZoo(), ("scale", "size"), learner="ridge", bootstrap=200)
    assert table["predictor"].to_list() == 2 * ["weights", "hyperparameters", "constant"]
    assert table["score"].to_list() == 3 * ["R²"] + 3 * ["balanced accuracy"]
    value = table["value"].to_list()
    assert value[0] > 0.9 > 0.3 > value[1]
    assert value[2] <= 0
    assert value[3] > 0.85 > value[4]
    assert value[5] == 0.5
    assert table["n_models"].unique().to_list() == [48]
    assert table["n_cells"].unique().to_list() == [24]
    rest = table.filter(pl.col("predictor") != "weights")
    assert (rest["ahead_low"] > 0).all()
    assert (rest["ahead_low"] < rest["ahead"]).all() and (rest["ahead"] < rest["ahead_high"]).all()
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_the_same_call_gives_the_same_bits_and_the_order_of_targets_does_not_matter():
    one = predict_from_weights(FakeZoo(8), ("scale", "size"), folds=3, bootstrap=50)
    two = predict_from_weights(FakeZoo(8), ("size", "scale"), folds=3, bootstrap=50)
    assert one.sort("target", maintain_order=True).equals(two.sort("target", maintain_order=True))


def test_cells_of_ambiguous_phase_are_left_out():
    table = predict_from_weights(FakeZoo(), ("phase",), learner="ridge", bootstrap=20)
    assert table["n_cells"].unique().to_list() == [21]
    assert table["value"][0] > 0.8


def test_a_target_that_cannot_be_predicted_gives_a_reason_and_leaves_the_others():
    table = predict_from_weights(FakeZoo(), ("none", "sclae", "scale"), learner="ridge", bootstrap=20)
    assert table["value"].is_null().to_list() == [True, True, False, False, False]
    assert "nothing to predict" in table["reason"][0]
    assert "Did you mean 'scale'" in table["reason"][1]


def test_no_cell_straddles_two_folds_and_every_fold_is_used():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(11), 3)
    y = draw.normal(size=33)
    fold = _deal(y, groups, 4, draw)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in range(11))
    assert sorted(np.bincount(fold) // 3) == [2, 3, 3, 3]


def test_resampling_within_classes_keeps_every_class_and_whole_cells():
    groups, y = np.repeat(np.arange(9), 2), np.repeat([0.0, 1, 1, 2, 2, 2, 2, 2, 2], 2)
    weight = _resamples(y, groups, 50, np.random.default_rng(0))
    assert (weight[:, ::2] == weight[:, 1::2]).all()
    for label, cells in ((0, 1), (1, 2), (2, 6)):
        assert (weight[:, y == label].sum(1) == 2 * cells).all()
    assert len(np.unique(weight, axis=0)) > 40


def test_weighted_scores_are_those_of_repeated_rows():
    draw = np.random.default_rng(3)
    y, predicted, weight = draw.normal(size=20), draw.normal(size=20), draw.integers(0, 4, (3, 20))
    labels, guesses = draw.integers(0, 3, (2, 20)).astype(float)
    for row in range(3):
        rows = np.repeat(np.arange(20), weight[row])
        assert _r_squared(y, predicted, weight.astype(float))[row] == pytest.approx(r2_score(y[rows], predicted[rows]))
        expected = balanced_accuracy_score(labels[rows], guesses[rows])
        assert _balanced_accuracy(labels, guesses, weight.astype(float))[row] == pytest.approx(expected)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(MeasureError, match="folds=1"):
        predict_from_weights(FakeZoo(2), folds=1)
