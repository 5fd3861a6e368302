"""A physics-informed net as a regression on rows."""

from __future__ import annotations

import math

import pytest
import torch

from zoarium._core.errors import DataError, NetError
from zoarium.data import load
from zoarium.data.convection import GAP, PERIOD, RESIDUAL, VALUE
from zoarium.nets import build, stack
from zoarium.nets.pinn import convection_residual, periodicity_gap

DATA = {"beta": 3.0, "n_initial": 8, "n_boundary": 4, "n_residual": 20}


def net(**params):
    built = build("pinn_mlp", {"width": 6, "depth": 2, **params}, in_shape=(5,), n_outputs=1, seed=3)
    return built.double()


def rows_of(data, kind):
    return data.train.x[data.train.x[:, 3] == kind].double()


@pytest.mark.parametrize("params", [{}, {"periodic": "hard"}, {"periodic": "hard", "harmonics": 3}])
def test_residual_rows_answer_with_the_derivative_that_forward_mode_gives(params):
    module, data = net(**params), load("convection_pinn", **DATA)
    rows = rows_of(data, RESIDUAL)
    inner = stack(module.u)
    stacked = {k: v.detach()[None] for k, v in module.u.named_parameters()}
    wanted = convection_residual(inner, stacked, rows[:, :2], beta=3.0)[0] * rows[:, 4]
    assert torch.allclose(module(rows)[:, 0], wanted, atol=1e-12)


def test_gap_rows_answer_with_the_distance_between_both_ends():
    module, data = net(), load("convection_pinn", **DATA)
    rows = rows_of(data, GAP)
    stacked = {k: v.detach()[None] for k, v in module.u.named_parameters()}
    wanted = periodicity_gap(stack(module.u), stacked, rows[:, 1])[0] * rows[:, 4]
    assert torch.allclose(module(rows)[:, 0], wanted, atol=1e-12)


def test_a_net_periodic_by_construction_has_no_gap():
    rows = rows_of(load("convection_pinn", **DATA), GAP)
    assert not net(periodic="hard")(rows).any()


def test_value_rows_answer_with_the_solution():
    module = net()
    rows = load("convection_pinn", **DATA).test.x[:9].double()
    assert torch.equal(module(rows), module.u(rows[:, :2]))


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_the_mean_squared_error_over_rows_is_the_usual_loss(weight):
    module, data = net(), load("convection_pinn", residual_weight=weight, **DATA)
    x, y = data.train.x.double(), data.train.y.double()
    error = ((module(x) - y) / x[:, 4:]).square()[:, 0].detach()
    parts = [error[x[:, 3] == kind].mean() for kind in (VALUE, GAP, RESIDUAL)]
    loss = torch.nn.functional.mse_loss(module(x), y)
    assert loss.item() == pytest.approx((parts[0] + parts[1] + weight * parts[2]).item(), rel=1e-6)


class Solution(torch.nn.Module):
    """The exact solution, sin(x - 3 t), behind the interface of a net."""

    def forward(self, points):
        return torch.sin(points[..., :1] - 3.0 * points[..., 1:])


def test_the_exact_solution_has_no_error_on_the_test_split():
    data = load("convection_pinn", **DATA)
    assert torch.allclose(Solution()(data.test.x[:, :2]), data.test.y, atol=1e-5)


def test_points_are_inside_the_domain_and_another_seed_draws_others():
    data = load("convection_pinn", **DATA)
    x, t = data.train.x[:, 0], data.train.x[:, 1]
    assert x.min() >= 0 and x.max() <= PERIOD and t.min() >= 0 and t.max() <= 1
    assert data.fingerprint != load("convection_pinn", seed=1, **DATA).fingerprint


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_residual": 0}, "n_residual of 1 or more"),
        ({"beta": math.inf}, "finite beta"),
        ({"residual_weight": 0.0}, "residual_weight above 0"),
        ({"initial": "step"}, "initial must be one of sine, bump, found 'step'"),
    ],
)
def test_impossible_problems_are_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        load("convection_pinn", **wrong)


def test_rows_of_another_length_are_refused():
    with pytest.raises(NetError, match=r"rows \(x, t, beta, kind, scale\), found inputs of shape \(2,\)"):
        net()(torch.zeros(3, 2, dtype=torch.float64))
