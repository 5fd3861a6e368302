from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoarium.edit import EditError, magnitude_prune, prunable, zero_smallest
from zoarium.zoo.cohort import Cohort


def cohort_of(n: int = 3) -> Cohort:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Cohort.from_modules(
            [nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(n)]
        )


def zeros(cohort: Cohort, name: str) -> list[int]:
    return (cohort.params[name] == 0).flatten(1).sum(1).tolist()


@given(st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_exactly_the_rounded_share_of_weights_goes(fraction):
    cohort = cohort_of()
    whole = magnitude_prune(cohort, fraction)
    layer = magnitude_prune(cohort, fraction, scope="layer")
    for row in range(3):
        assert zeros(whole, "0.weight")[row] + zeros(whole, "3.weight")[row] == round(fraction * 64)
        assert zeros(layer, "0.weight")[row] == round(fraction * 40)
        assert zeros(layer, "3.weight")[row] == round(fraction * 24)


def test_no_weight_that_goes_is_larger_than_one_that_stays():
    cohort = cohort_of()
    pruned = magnitude_prune(cohort, 0.6)
    for row in range(3):
        before = torch.cat([cohort.params[name][row].flatten() for name in prunable(cohort)]).abs()
        gone = torch.cat([pruned.params[name][row].flatten() for name in prunable(cohort)]) == 0
        assert before[gone].max() <= before[~gone].min()


def test_biases_normalisation_and_inputs_are_kept():
    cohort = cohort_of()
    before = cohort.flat.clone()
    pruned = magnitude_prune(cohort, 1.0)
    for name in ("0.bias", "1.weight", "1.bias", "3.bias"):
        assert torch.equal(pruned.params[name], cohort.params[name])
    assert torch.equal(cohort.flat, before)


def test_among_equal_magnitudes_the_first_in_the_layout_goes():
    cohort = Cohort.from_modules([nn.Linear(4, 1)])
    params = {"weight": torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]), "bias": torch.zeros(1, 1)}
    assert magnitude_prune(cohort.with_params(params), 0.5).params["weight"].tolist() == [[[0.0, 0.0, 1.0, -1.0]]]


def test_pruning_again_by_the_same_share_changes_nothing():
    once = magnitude_prune(cohort_of(), 0.7)
    assert torch.equal(magnitude_prune(once, 0.7).flat, once.flat)


def test_a_slow_obvious_version_prunes_the_same_weights():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(-4, 5, (20, 50), generator=draw).float()  # full of ties
    for count in (0, 1, 17, 49, 50):
        expected = rows.clone()
        for row in expected:
            in_order = sorted((size, place) for place, size in enumerate(row.abs().tolist()))
            row[[place for _, place in in_order[:count]]] = 0.0
        assert torch.equal(zero_smallest(rows, count), expected)


def test_weights_that_are_not_finite_go_last():
    rows = torch.tensor([[3.0, float("nan"), 1.0, float("inf")]])
    assert zero_smallest(rows, 2).isfinite().tolist() == [[True, False, True, False]]
    assert zero_smallest(rows, 4).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_that_is_no_share_is_refused(fraction):
    with pytest.raises(EditError, match="between 0 and 1"):
        magnitude_prune(cohort_of(), fraction)


def test_an_unknown_scope_lists_the_known_ones():
    with pytest.raises(EditError, match="global, layer"):
        magnitude_prune(cohort_of(), 0.5, scope="model")
