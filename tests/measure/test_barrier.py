from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from zoarium._core.errors import MeasureError
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.alignment import apply_permutations, permutation_spec
from zoarium.measure.barrier import linear_barrier
from zoarium.zoo.cohort import Cohort

QUANTITIES = ("linear_barrier", "aligned_barrier", "linear_error_barrier", "aligned_error_barrier")


def toy(shape: tuple[int, ...] = (6,), n: int = 80) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, *shape, generator=draw, dtype=torch.float64)
    y = (x.flatten(1) @ torch.randn(x[0].numel(), 3, generator=draw, dtype=torch.float64)).argmax(1)
    return Dataset("toy", Split(x[:n], y[:n]), Split(x[n:], y[n:]), "classification", 3)


def trained(module: nn.Module, data: Dataset) -> nn.Module:
    module = module.double().train()
    sgd = torch.optim.SGD(module.parameters(), 0.3, momentum=0.9)
    for _ in range(60):
        sgd.zero_grad()
        F.cross_entropy(module(data.train.x), data.train.y).backward()
        sgd.step()
    return module.eval()


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def cnn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def and_shuffled(cohort: Cohort) -> Cohort:
    """The models, then copies whose units come in another order."""
    torch.manual_seed(0)
    sizes = permutation_spec(cohort.module).sizes({**cohort.params, **cohort.buffers})
    orders = {k: torch.stack([torch.randperm(u) for _ in cohort.ids]) for k, u in sizes.items()}
    copies = apply_permutations(cohort, orders)
    return Cohort(
        (*cohort.ids, *(f"{i}'" for i in cohort.ids)),
        {k: torch.cat([v, copies.params[k]]) for k, v in cohort.params.items()},
        cohort.module, {k: torch.cat([v, copies.buffers[k]]) for k, v in cohort.buffers.items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def two() -> tuple[Cohort, Dataset]:
    data = toy()
    return Cohort.from_modules([trained(mlp(s), data) for s in range(2)], ["a", "b"]), data


def test_the_barrier_is_that_of_the_models_run_one_by_one(two):
    cohort, data = two
    found = linear_barrier(cohort, torch.tensor([[0, 1]]), data, points=7, split="train")
    a, b = cohort.state(0), cohort.state(1)
    losses, errors = [], []
    for t in np.linspace(0, 1, 7):
        out = functional_call(cohort.module, {k: (1 - t) * a[k] + t * b[k] for k in a}, (data.train.x,))
        losses.append(F.cross_entropy(out, data.train.y).item())
        errors.append(100 * (out.argmax(1) != data.train.y).double().mean().item())
    t = np.linspace(0, 1, 7)
    for name, values in (("linear_barrier", losses), ("linear_error_barrier", errors)):
        heights = np.array(values) - (1 - t) * values[0] - t * values[-1]
        assert found[name].value[0] == pytest.approx(heights.max(), abs=1e-9)
        assert found[name].samples[0] == len(data.train)
    assert found["linear_barrier"].stderr[0] > 0


def test_there_is_no_barrier_between_a_model_and_itself(two):
    cohort, data = two
    found = linear_barrier(cohort, torch.tensor([[0, 0]]), data)
    for name in QUANTITIES:
        assert found[name].value[0] == pytest.approx(0, abs=1e-12)
        assert found[name].stderr[0] == pytest.approx(0, abs=1e-12)


def test_the_plain_barrier_is_the_same_from_both_ends(two):
    cohort, data = two
    found = linear_barrier(cohort, torch.tensor([[0, 1], [1, 0]]), data)
    for name in ("linear_barrier", "linear_error_barrier"):
        assert found[name].value[0] == pytest.approx(found[name].value[1], abs=1e-9)


@pytest.mark.parametrize("matching", ["weight", "activation"])
def test_permuted_copies_have_a_barrier_until_they_are_aligned(two, matching):
    cohort, data = two
    both = and_shuffled(cohort.to(dtype=torch.float32))
    found = linear_barrier(both, torch.tensor([[0, 2], [1, 3]]), data, matching=matching, split="train")
    assert (found["linear_barrier"].value > 0.1).all()
    assert (found["aligned_barrier"].value < 1e-5).all()
    assert (found["aligned_error_barrier"].value == 0).all()


def test_permuted_convolutions_with_batch_norm_have_no_barrier_once_aligned():
    data = toy((1, 4, 4))
    both = and_shuffled(Cohort.from_modules([trained(cnn(s), data) for s in range(2)]))
    found = linear_barrier(both, torch.tensor([[0, 2], [1, 3]]), data, points=5, split="train")
    assert (found["aligned_barrier"].value < 1e-5).all()
    assert (found["linear_barrier"].value > found["aligned_barrier"].value + 0.01).all()


def test_batch_norm_is_estimated_anew_between_the_ends():
    data = toy((1, 4, 4))
    cohort = Cohort.from_modules([trained(cnn(s), data) for s in range(2)])
    spoiled = Cohort(cohort.ids, cohort.params, cohort.module, {k: v * 7 for k, v in cohort.buffers.items()})
    pairs = torch.tensor([[0, 1]])
    found, same = (linear_barrier(c, pairs, data, points=5) for c in (cohort, spoiled))
    assert found["linear_barrier"].value[0] == pytest.approx(same["linear_barrier"].value[0], abs=1e-9)


def test_a_pair_is_the_same_whatever_else_is_in_the_cohort(two, monkeypatch):
    cohort, data = two
    both = and_shuffled(cohort)
    alone = linear_barrier(cohort, torch.tensor([[0, 1]]), data)
    among = linear_barrier(both, torch.tensor([[2, 3], [0, 1], [0, 3]]), data)
    monkeypatch.setattr("zoarium.measure.paths.samples.CHUNK_BYTES", 1)
    cut = linear_barrier(both, torch.tensor([[2, 3], [0, 1], [0, 3]]), data)
    for name in QUANTITIES:
        assert among[name].value[1] == pytest.approx(alone[name].value[0], abs=1e-9)
        np.testing.assert_allclose(cut[name].value, among[name].value, atol=1e-9)


def test_a_diverged_model_gives_nan_with_its_name(two):
    cohort, data = two
    broken = cohort.with_params({k: v.clone() for k, v in cohort.params.items()})
    broken.params["0.weight"][1] = torch.inf
    found = linear_barrier(broken, torch.tensor([[0, 1], [0, 0]]), data)
    for name in QUANTITIES:
        assert np.isnan(found[name].value[0])
        assert found[name].reason == ("weights of b are not finite", "")
        assert found[name].value[1] == pytest.approx(0, abs=1e-12)


def test_without_known_symmetries_only_the_aligned_barriers_are_missing():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).sin()

    found = linear_barrier(Cohort.from_modules([Own(), Own()]).to(dtype=torch.float64), torch.tensor([[0, 1]]), toy())
    assert np.isfinite(found["linear_barrier"].value).all()
    assert np.isnan(found["aligned_barrier"].value).all()
    assert "PermutationSpec" in found["aligned_barrier"].reason[0]


@pytest.mark.parametrize(("bad", "words"), [({"points": 1}, "points=1"), ({"split": "valid"}, "unknown split"),
                                        ({"matching": "luck"}, "matching method 'luck'")])  # fmt: skip
def test_settings_that_cannot_work_are_named(two, bad, words):
    cohort, data = two
    with pytest.raises(MeasureError, match=words):
        linear_barrier(cohort, torch.tensor([[0, 1]]), data, **bad)
