from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoarium._core.errors import DataError
from zoarium.data import load
from zoarium.data.convection import INITIAL, solve_convection


def grid(m: int) -> torch.Tensor:
    return torch.arange(m, dtype=torch.float64) * (2 * math.pi / m)


@pytest.mark.parametrize("beta", [0.0, 1.0, 30.0, -4.0])
@pytest.mark.parametrize("initial", INITIAL)
def test_the_samples_satisfy_the_equation(beta, initial):
    x, t = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    u = INITIAL[initial](x - beta * t)
    u_x, u_t = torch.autograd.grad(u.sum(), [x, t])
    torch.testing.assert_close(u_t, -beta * u_x)
    data = load("convection", beta=beta, initial=initial)
    for split in (data.train, data.test):
        points = split.x.double()
        expected = INITIAL[initial](points[:, :1] - beta * points[:, 1:])
        torch.testing.assert_close(split.y.double(), expected, rtol=0, atol=2e-5)


def test_test_points_lie_between_training_points():
    data = load("convection", n_x=5, n_t=4)
    assert not set(map(tuple, data.train.x.tolist())) & set(map(tuple, data.test.x.tolist()))
    assert data.train.x[:, 1].unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert data.test.x[:, 1].unique().tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6])


@pytest.mark.parametrize("beta", [1.0, 30.0, -7.0])
def test_the_spectral_solution_is_the_shifted_start_where_the_points_resolve_it(beta):
    x, times = grid(64), torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    for start in INITIAL.values():
        got = solve_convection(start(x), beta, times)
        torch.testing.assert_close(got, torch.stack([start(x - beta * t) for t in times]), rtol=0, atol=1e-10)


def test_the_upwind_error_halves_with_the_distance_of_points():
    errors = []
    for m in (100, 200, 400):
        x, times = grid(m), torch.tensor([0.5], dtype=torch.float64)
        got = solve_convection(torch.sin(x), 2.0, times, method="upwind")
        errors.append((got[0] - torch.sin(x - 1.0)).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(st.floats(-1, 1), min_size=8, max_size=20), beta=st.floats(-5, 5), t=st.floats(0, 1),
    courant=st.floats(0.1, 1),
)  # fmt: skip
def test_upwind_keeps_the_mean_and_never_overshoots(values, beta, t, courant):
    u0 = torch.tensor(values, dtype=torch.float64)
    u = solve_convection(u0, beta, torch.tensor([t]), method="upwind", courant=courant)[0]
    assert u.mean().item() == pytest.approx(u0.mean().item(), abs=1e-9)
    assert u.max() <= u0.max() + 1e-9
    assert u.min() >= u0.min() - 1e-9


def test_upwind_with_courant_number_1_moves_a_jump_by_whole_points():
    u0 = torch.tensor([0.0, 0, 1, 1, 0, 0, 0, 0], dtype=torch.float64)
    h = 2 * math.pi / 8
    got = solve_convection(u0, 1.0, torch.tensor([0.0, h, 3 * h], dtype=torch.float64), method="upwind", courant=1)
    torch.testing.assert_close(got, torch.stack([u0, u0.roll(1), u0.roll(3)]))


def test_settings_no_solver_can_use_are_named():
    u0 = torch.zeros(4)
    for change, says in [
        ({"times": torch.tensor([1.0, 0.5])}, "times must ascend"),
        ({"method": "magic"}, "'spectral' or 'upwind', found 'magic'"),
        ({"courant": 1.5}, r"courant must lie in \(0, 1\]"),
    ]:
        with pytest.raises(DataError, match=says):
            solve_convection(u0, 1.0, **{"times": torch.tensor([0.5]), **change})
