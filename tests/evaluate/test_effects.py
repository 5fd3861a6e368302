from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from zoarium._core.errors import MeasureError
from zoarium.combine import average_groups
from zoarium.data.dataset import Dataset, Split
from zoarium.edit import magnitude_prune
from zoarium.evaluate.effects import (
    EFFECTS,
    ensembling,
    epoch_averaging,
    fine_tuning,
    fresh_start,
    pruning,
    seed_averaging,
)
from zoarium.measure.registry import MEASURES
from zoarium.testing import as_regression, small_cohort, small_dataset
from zoarium.zoo.cohort import Cohort

CELLS = [[0, 1, 2], [3, 4, 5]]


@cache
def trained() -> Cohort:
    return small_cohort(6, width=8)


@cache
def few_samples() -> Dataset:
    data = small_dataset()
    return replace(data, test=Split(data.test.x[:10], data.test.y[:10]))


def accuracy(cohort: Cohort, data: Dataset) -> torch.Tensor:
    return 100 * (cohort(data.test.x).argmax(-1) == data.test.y).double().mean(1)


def permuted_copies(cohort: Cohort) -> Cohort:
    """Model 0 thrice, with its hidden units in three orders: one function, three places in weight space."""
    orders = [torch.randperm(8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    p = {k: v[0] for k, v in cohort.params.items()}
    params = {
        "fc1.weight": torch.stack([p["fc1.weight"][o] for o in orders]),
        "fc1.bias": torch.stack([p["fc1.bias"][o] for o in orders]),
        "out.weight": torch.stack([p["out.weight"][:, o] for o in orders]),
        "out.bias": torch.stack([p["out.bias"]] * 3),
    }
    return cohort.select([0, 1, 2]).with_params(params)


def test_every_effect_is_a_registered_cell_measure():
    for name in EFFECTS:
        assert MEASURES[name].facts["scope"] == "cell"
    assert MEASURES["epoch_averaging"].facts["needs_checkpoints"]


def test_averaging_loses_what_the_average_loses_against_its_members():
    got = seed_averaging(trained(), CELLS, small_dataset())["plain_averaging_delta"]
    mean, members = accuracy(average_groups(trained(), CELLS), small_dataset()), accuracy(trained(), small_dataset())
    for n, cell in enumerate(CELLS):
        assert got.value[n] == pytest.approx(float(mean[n] - members[cell].mean()))
    assert got.samples.tolist() == [120, 120]


def test_alignment_makes_averaging_permuted_copies_free():
    data = small_dataset()
    got = seed_averaging(permuted_copies(trained()), [[0, 1, 2]], data)
    assert got["aligned_averaging_delta"].value[0] == pytest.approx(0.0, abs=1e-9)
    assert got["plain_averaging_delta"].value[0] < -5.0


def test_a_net_of_unknown_symmetries_is_averaged_plainly_and_says_why_not_aligned():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + x[:, :10]

    cohort = Cohort.from_modules([Skip().double() for _ in range(3)])
    got = seed_averaging(cohort, [[0, 1, 2]], small_dataset())
    assert math.isfinite(got["plain_averaging_delta"].value[0])
    assert "PermutationSpec" in got["aligned_averaging_delta"].reason[0]


def test_the_standard_error_is_that_of_paired_differences():
    data = few_samples()
    got = ensembling(trained(), [[0, 1, 2]], data)["ensembling_gain"]
    p = trained()(data.test.x)[[0, 1, 2]].softmax(-1)
    right = (p.argmax(-1) == data.test.y).double().mean(0)
    difference = 100 * ((p.mean(0).argmax(-1) == data.test.y).double() - right).numpy()
    assert got.value[0] == pytest.approx(difference.mean())
    assert got.stderr[0] == pytest.approx(difference.std(ddof=1) / math.sqrt(10))


def test_an_ensemble_never_has_a_larger_loss_than_its_members():
    got = ensembling(trained(), CELLS, small_dataset())["ensembling_loss_gain"]
    assert (got.value > 0).all()
    copies = ensembling(trained().select([0, 0, 0]), [[0, 1, 2]], small_dataset())
    assert copies["ensembling_loss_gain"].value[0] == pytest.approx(0.0, abs=1e-9)
    assert copies["ensembling_gain"].value[0] == pytest.approx(0.0, abs=1e-9)


def test_pruning_more_is_measured_on_the_pruned_models():
    got = pruning(trained(), CELLS, small_dataset())
    for percent in (50, 80, 90, 95):
        change = accuracy(magnitude_prune(trained(), percent / 100), small_dataset()) - accuracy(
            trained(), small_dataset()
        )
        assert got[f"pruning_delta_{percent}"].value[1] == pytest.approx(float(change[CELLS[1]].mean()))
    assert (got["pruning_delta_95"].value < got["pruning_delta_50"].value).all()


def test_averaging_over_epochs_uses_the_last_checkpoints_and_ignores_the_measured_one_among_them():
    cohort, data = trained(), small_dataset()
    past = [cohort.with_params({k: v * s for k, v in cohort.params.items()}) for s in (0.0, 0.2, 0.4, 0.6, 0.8)]
    got = epoch_averaging(cohort, CELLS, data, earlier=past)["epoch_averaging_delta"]
    again = epoch_averaging(cohort, CELLS, data, earlier=[*past, cohort])["epoch_averaging_delta"]
    mean = cohort.with_params({k: v * (0.2 + 0.4 + 0.6 + 0.8 + 1.0) / 5 for k, v in cohort.params.items()})
    change = accuracy(mean, data) - accuracy(cohort, data)
    assert got.value[0] == pytest.approx(float(change[CELLS[0]].mean()))
    assert got.value.tolist() == again.value.tolist()


def test_without_checkpoints_epoch_averaging_says_how_to_get_them():
    got = epoch_averaging(trained(), CELLS, small_dataset())["epoch_averaging_delta"]
    assert np.isnan(got.value).all()
    assert "checkpoints every epoch" in got.reason[0]


@pytest.mark.parametrize("effect", [seed_averaging, ensembling])
def test_a_cell_of_one_model_has_a_reason_and_the_other_cell_its_value(effect):
    alone, together = effect(trained(), [[0], [3, 4, 5]], small_dataset()), effect(trained(), CELLS, small_dataset())
    for name, estimates in alone.items():
        assert math.isnan(estimates.value[0])
        assert "2 models" in estimates.reason[0]
        assert estimates.value[1] == together[name].value[1]


def test_a_broken_model_is_named_and_only_its_cell_is_lost():
    params = {k: v.clone() for k, v in trained().params.items()}
    params["out.bias"][1, 0] = float("inf")
    for effect in (seed_averaging, ensembling, pruning):
        got = effect(trained().with_params(params), CELLS, small_dataset())
        for name, estimates in got.items():
            assert "small-1" in estimates.reason[0], name
            assert math.isfinite(estimates.value[1]), name


def test_outputs_that_overflow_give_a_reason_not_a_class():
    params = {k: v.clone() for k, v in trained().params.items()}
    params["fc1.weight"][1] = 1e200
    params["out.weight"][1] = 1e200
    for effect in (seed_averaging, ensembling, pruning):
        for name, estimates in effect(trained().with_params(params), CELLS, small_dataset()).items():
            assert "outputs are not finite" in estimates.reason[0], name
            assert math.isfinite(estimates.value[1]), name


def test_when_no_cell_can_be_measured_each_says_why():
    for effect in (seed_averaging, ensembling):
        for estimates in effect(trained(), [[0], [1]], small_dataset()).values():
            assert np.isnan(estimates.value).all() and all(estimates.reason)


def test_a_related_task_starts_ahead_and_an_identical_one_is_not_forgotten():
    data = small_dataset()
    same = fine_tuning(trained(), CELLS, data, severity=0.0, epochs=1)
    assert (same["transfer_gain"].value > 10).all()
    assert (same["forgetting"].value < 5).all()
    other = fine_tuning(trained(), CELLS, data, shift="rotate_classes", epochs=20)
    assert (other["forgetting"].value > 30).all()


def test_a_fresh_start_is_a_models_own_and_leaves_the_random_state():
    before = torch.get_rng_state()
    fresh, alone = fresh_start(trained()), fresh_start(trained().select([2]))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(fresh.flat[2], alone.flat[0])
    assert not torch.equal(fresh.flat[0], fresh.flat[1])
    assert not torch.equal(fresh.flat, fresh_start(trained(), seed=1).flat)
    assert fresh.flat.dtype == torch.float64


def test_a_layer_that_cannot_start_afresh_is_named():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(MeasureError, match=r"Scale '0'.*reset_parameters"):
        fresh_start(Cohort.from_modules([nn.Sequential(Scale())]))


def test_regression_is_scored_by_explained_variance():
    data = as_regression(small_dataset())
    got = ensembling(trained(), CELLS, data)
    out = trained()(data.test.x)[CELLS[0]]
    target = data.test.y
    total = (target - target.mean(0)).square().sum()
    r2 = [100 * (1 - (o - target).square().sum() / total) for o in (*out, out.mean(0))]
    assert got["ensembling_gain"].value[0] == pytest.approx(float(r2[3] - sum(r2[:3]) / 3))
    assert got["ensembling_loss_gain"].value[0] > 0
