from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoarium.combine import (
    CombineError,
    average,
    average_epochs,
    average_groups,
)
from zoarium.nets import build
from zoarium.zoo.batchnorm import has_batchnorm, reestimate_batchnorm
from zoarium.zoo.cohort import Cohort


def linear_cohort(n: int = 4, seed: int = 0) -> Cohort:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Cohort.from_modules([nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(n)])


def normed(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4, 2))


@given(st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_averaging_copies_returns_the_model_bit_by_bit(copies, seed):
    cohort = linear_cohort(1, seed).select([0] * copies)
    for name, tensor in average(cohort).items():
        assert torch.equal(tensor, cohort.params[name][0])


def test_the_average_is_the_mean_of_the_weights():
    cohort = linear_cohort()
    got = average(cohort)
    for name, tensor in cohort.params.items():
        torch.testing.assert_close(got[name], tensor.mean(0))


def test_weights_are_shares_and_need_not_sum_to_one():
    cohort = linear_cohort(2)
    got = average(cohort, weights=[3.0, 1.0])
    for name, tensor in cohort.params.items():
        torch.testing.assert_close(got[name], 0.75 * tensor[0] + 0.25 * tensor[1])


def test_groups_of_different_sizes_are_averaged_each_on_its_own():
    cohort = linear_cohort(5)
    got = average_groups(cohort, [[0, 1], [2, 3, 4], [1]])
    expected = torch.stack([cohort.flat[[0, 1]].mean(0), cohort.flat[[2, 3, 4]].mean(0), cohort.flat[1]])
    torch.testing.assert_close(got.flat, expected)
    assert len(set(got.ids)) == 3


def test_a_broken_model_spoils_its_own_group_only():
    cohort = linear_cohort()
    params = {k: v.clone() for k, v in cohort.params.items()}
    params["0.weight"][0, 0, 0] = float("nan")
    got = average_groups(cohort.with_params(params), [[0, 1], [2, 3]])
    assert got.flat[0].isnan().any()
    assert torch.equal(got.flat[1], average_groups(cohort, [[2, 3]]).flat[0])


def test_averaging_leaves_its_inputs_alone():
    cohort = linear_cohort()
    before = cohort.flat.clone()
    average(cohort)["0.weight"].zero_()
    assert torch.equal(cohort.flat, before)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [0.0] * 4, [1.0, 1.0, 1.0, -1.0]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(CombineError, match="weight"):
        average(linear_cohort(4), weights)


def test_an_empty_group_is_refused():
    with pytest.raises(CombineError, match="at least one"):
        average_groups(linear_cohort(2), [[0], []])


def test_counters_of_batch_norm_stay_whole_numbers():
    got = average(Cohort.from_modules([normed(), normed()]))
    assert got["1.num_batches_tracked"].dtype == torch.int64
    assert got["1.running_mean"].dtype == torch.float32


def test_only_the_last_checkpoints_are_averaged():
    first, *rest = (linear_cohort(2, seed) for seed in range(4))
    got = average_epochs([first, *rest], last=3)
    torch.testing.assert_close(got.flat, torch.stack([c.flat for c in rest]).mean(0))
    assert got.ids == first.ids


def test_checkpoints_of_other_models_are_refused():
    with pytest.raises(CombineError, match="same models"):
        average_epochs([linear_cohort(2), linear_cohort(3)])


def test_a_net_without_batch_norm_is_returned_as_it_is():
    cohort = linear_cohort()
    assert not has_batchnorm(cohort)
    assert reestimate_batchnorm(cohort, torch.ones(8, 3)) is cohort


def test_reestimated_statistics_are_those_of_the_data_and_dropout_stays_off():
    cohort = Cohort.from_modules([normed(0.5), normed(0.5)])
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    got = reestimate_batchnorm(cohort, x)
    assert has_batchnorm(cohort)
    for row in range(2):
        hidden = x @ cohort.params["0.weight"][row].T + cohort.params["0.bias"][row]  # (b, 4)
        torch.testing.assert_close(got.buffers["1.running_mean"][row], hidden.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.buffers["1.running_var"][row], hidden.var(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(cohort.buffers["1.running_mean"], torch.zeros(2, 4))


def test_statistics_of_a_convolutional_net_are_those_pytorch_finds_layer_by_layer():
    modules = [
        build("cnn", {"width": 3, "batch_norm": True}, in_shape=(1, 8, 8), n_outputs=5, seed=i) for i in range(2)
    ]
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    got = reestimate_batchnorm(Cohort.from_modules(modules), x)
    for row, module in enumerate(modules):
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None
        module.train()(x)
        for name, buffer in module.named_buffers():
            if "running" in name:
                torch.testing.assert_close(got.buffers[name][row], buffer, rtol=1e-4, atol=1e-5)


def test_statistics_of_several_passes_are_their_plain_mean():
    cohort = Cohort.from_modules([normed()])
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    whole, passes = reestimate_batchnorm(cohort, x), reestimate_batchnorm(cohort, x, batch_size=20)
    torch.testing.assert_close(whole.buffers["1.running_mean"], passes.buffers["1.running_mean"], rtol=1e-4, atol=1e-5)
