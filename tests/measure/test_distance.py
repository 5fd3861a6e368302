from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zoarium.measure.distance import weight_distance
from zoarium.zoo.cohort import Cohort

PAIRS = torch.tensor([[0, 1], [0, 2], [0, 0]])


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def permuted(module: nn.Sequential) -> nn.Sequential:
    other = net(0)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    other[0].weight.data = module[0].weight.data[order]
    other[0].bias.data = module[0].bias.data[order]
    other[2].weight.data = module[2].weight.data[:, order]
    other[2].bias.data = module[2].bias.data
    return other


def test_distances_are_those_of_the_flat_weights():
    modules = [net(0), permuted(net(0)), net(1)]
    found = weight_distance(Cohort.from_modules(modules), PAIRS)
    flat = [torch.cat([p.detach().flatten() for p in m.parameters()]).double() for m in modules]
    for row, (a, b) in enumerate(PAIRS.tolist()):
        assert found["l2_distance"].value[row] == pytest.approx((flat[a] - flat[b]).norm().item(), rel=1e-6)
        cosine = 1 - torch.nn.functional.cosine_similarity(flat[a], flat[b], dim=0).item()
        assert found["cosine_distance"].value[row] == pytest.approx(cosine, abs=1e-9)
        assert not found["l2_distance"].stderr[row]


def test_permuted_copies_are_far_apart_until_they_are_aligned():
    found = weight_distance(Cohort.from_modules([net(0), permuted(net(0)), net(1)]), PAIRS)
    assert found["l2_distance"].value[0] > 1
    assert found["aligned_l2_distance"].value[0] == 0
    assert (found["aligned_l2_distance"].value <= found["l2_distance"].value + 1e-9).all()


def test_a_model_is_at_no_distance_from_itself():
    found = weight_distance(Cohort.from_modules([net(0)] * 3), PAIRS)
    assert all((estimates.value == 0).all() for estimates in found.values())


def test_distances_that_do_not_exist_are_nan_with_the_reason():
    cohort = Cohort.from_modules([net(0), net(1), net(2)], ["a", "b", "c"])
    for tensor in cohort.params.values():
        tensor[2] = 0.0
    cohort.params["0.weight"][1, 0, 0] = torch.inf
    found = weight_distance(cohort, PAIRS)
    assert all(np.isnan(estimates.value[0]) for estimates in found.values())
    assert all(estimates.reason[0] == "weights of b are not finite" for estimates in found.values())
    assert np.isnan(found["cosine_distance"].value[1])
    assert found["cosine_distance"].reason[1] == "a model has zero weights"
    assert np.isfinite(found["l2_distance"].value[1])


def test_without_known_symmetries_only_the_aligned_distance_is_missing():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    found = weight_distance(Cohort.from_modules([Own(), Own()]), torch.tensor([[0, 1]]))
    assert np.isfinite(found["l2_distance"].value).all()
    assert np.isnan(found["aligned_l2_distance"].value).all()
    assert "PermutationSpec" in found["aligned_l2_distance"].reason[0]
