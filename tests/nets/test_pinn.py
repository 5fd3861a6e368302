from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import zoarium as za
from zoarium._core.errors import NetError
from zoarium.nets import build, stack
from zoarium.nets.pinn import convection_residual, periodicity_gap

N, B = 3, 7
KINDS = [{"periodic": "soft"}, {"periodic": "hard"}, {"periodic": "hard", "harmonics": 3}]


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def small(**params: object) -> nn.Module:
    return build("pinn_mlp", {"width": 6, "depth": 2, **params}, in_shape=(2,), n_outputs=1).double()


def population(module: nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        k: p.detach() + 0.2 * torch.randn(N, *p.shape, generator=draw, dtype=p.dtype)
        for k, p in module.named_parameters()
    }


def points(*lead: int) -> Tensor:
    draw = torch.rand(*lead, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return draw * torch.tensor([2 * math.pi, 1.0], dtype=torch.float64)


def waves(speeds: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """Networks that are the exact solutions sin(x - speed t)."""
    params = {"0.weight": torch.stack([torch.ones_like(speeds), -speeds], dim=1).unsqueeze(1)}  # (n, 1, 2)
    return nn.Sequential(nn.Linear(2, 1, bias=False), Sine()).double(), params


@pytest.mark.parametrize(("kind", "inputs"), list(zip(KINDS, [2, 3, 7], strict=True)))
def test_the_number_of_parameters_is_the_closed_form(kind, inputs):
    w, depth = 50, 4
    net = build("pinn_mlp", kind, in_shape=(2,), n_outputs=1)
    assert sum(p.numel() for p in net.parameters()) == inputs * w + w + (depth - 1) * (w * w + w) + w + 1


@pytest.mark.parametrize(("kind", "route"), list(zip(KINDS, ["bmm", "vmap", "vmap"], strict=True)))
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_model", [False, True])
def test_a_stacked_pinn_gives_what_its_models_give_one_by_one(kind, route, training, per_model):
    net = small(**kind).train(training)
    params, x = population(net), points(*((N, B) if per_model else (B,)))
    stacked = stack(net)
    out = stacked(params, x, per_model=per_model)
    assert stacked.kind == route
    for i in range(N):
        expected = functional_call(net, {k: v[i] for k, v in params.items()}, (x[i] if per_model else x,))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_model", [False, True])
def test_the_exact_solution_has_no_residual_and_a_wave_of_another_speed_has_the_one_of_the_formula(per_model):
    speeds = torch.tensor([30.0, 1.0, -2.0], dtype=torch.float64)
    net, params = waves(speeds)
    at = points(*((N, B) if per_model else (B,)))
    own = convection_residual(stack(net), params, at, speeds)
    torch.testing.assert_close(own, torch.zeros(N, B, dtype=torch.float64), rtol=0, atol=1e-12)
    x, t = (at if per_model else at.expand(N, B, 2)).unbind(-1)
    expected = (30.0 - speeds[:, None]) * torch.cos(x - speeds[:, None] * t)  # (β - c) cos(x - c t)
    torch.testing.assert_close(convection_residual(stack(net), params, at, 30.0), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_is_that_of_reverse_mode_one_model_and_one_derivative_at_a_time(kind):
    net, at = small(**kind), points(B)
    params, beta = population(net), torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
    got = convection_residual(stack(net), params, at, beta)
    assert got.shape == (N, B)
    for i in range(N):
        x = at.clone().requires_grad_()
        u = functional_call(net, {k: v[i] for k, v in params.items()}, (x,))
        (slopes,) = torch.autograd.grad(u.sum(), x)
        torch.testing.assert_close(got[i], slopes[:, 1] + beta[i] * slopes[:, 0], rtol=1e-10, atol=1e-10)


def test_one_beta_for_all_is_that_beta_for_each_and_shared_points_are_each_models_own():
    net, at = stack(small()), points(B)
    params, beta = population(net.module), torch.full((N,), 5.0, dtype=torch.float64)
    expected = convection_residual(net, params, at, 5.0)
    for own in (at, at.expand(N, B, 2)):
        for speed in (5.0, beta[0], beta):
            torch.testing.assert_close(convection_residual(net, params, own, speed), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_is_differentiable_in_the_parameters(kind):
    net, at = stack(small(**kind)), points(B)
    params = {k: v.requires_grad_() for k, v in population(net.module).items()}
    names = list(params)

    def loss(*values: Tensor) -> Tensor:
        return convection_residual(net, dict(zip(names, values, strict=True)), at, 2.0).square().mean()

    assert torch.autograd.gradcheck(loss, tuple(params.values()))


def test_hard_periodicity_holds_for_any_weights_and_soft_does_not():
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    for kind in KINDS:
        net = small(**kind)
        gap = periodicity_gap(stack(net), population(net), times)
        assert gap.shape == (N, 5)
        if kind["periodic"] == "hard":
            torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-12)
        else:
            assert gap.abs().min() > 1e-3


def test_the_gap_of_a_straight_line_is_its_slope_times_the_period():
    net = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    params = {"0.weight": torch.tensor([[[1.0, 5.0]], [[-2.0, 0.0]]], dtype=torch.float64)}
    gap = periodicity_gap(stack(net), params, torch.tensor([0.0, 0.7], dtype=torch.float64))
    expected = torch.tensor([[-2 * math.pi] * 2, [4 * math.pi] * 2], dtype=torch.float64)
    torch.testing.assert_close(gap, expected)


def test_training_on_the_residual_and_the_start_finds_the_solution():
    net = stack(small(width=16, periodic="hard"))
    params = {k: v.requires_grad_() for k, v in population(net.module).items()}
    beta, inside, start = 1.0, points(128), points(64) * torch.tensor([1.0, 0.0], dtype=torch.float64)

    def error() -> Tensor:
        with torch.no_grad():
            return (net(params, inside)[..., 0] - torch.sin(inside[:, 0] - beta * inside[:, 1])).square().mean(1)

    before = error()
    optimiser = torch.optim.LBFGS(list(params.values()), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        residual = convection_residual(net, params, inside, beta).square().mean(1)
        initial = (net(params, start)[..., 0] - torch.sin(start[:, 0])).square().mean(1)
        loss = (residual + initial).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert (error() < 1e-3).all()
    assert (before > 0.1).all()


def test_one_seed_gives_the_same_bits_and_another_seed_other_weights():
    one, again, other = (build("pinn_mlp", {}, in_shape=(2,), n_outputs=1, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not any(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("shape", "params", "says"),
    [
        ((64,), {}, r"'pinn_mlp' needs points \(x, t\).*\(64,\); use the data 'convection'"),
        ((2,), {"width": 0}, "'pinn_mlp': width must be a whole number from 1, found 0"),
        ((2,), {"depth": 0}, "'pinn_mlp': depth must be a whole number from 1, found 0"),
        ((2,), {"periodic": "firm"}, "periodic must be 'soft' or 'hard', found 'firm'"),
        ((2,), {"harmonics": 2}, "harmonics=2 needs periodic='hard'"),
    ],
)
def test_what_cannot_be_built_is_named_with_a_way_out(shape, params, says):
    with pytest.raises(NetError, match=says):
        build("pinn_mlp", params, in_shape=shape, n_outputs=1)


def test_a_residual_that_cannot_be_taken_says_what_does_not_fit():
    net = small()
    params = population(net)
    with pytest.raises(NetError, match=r"points \(x, t\).*found \(7, 3\) in float64"):
        convection_residual(stack(net), params, torch.zeros(7, 3, dtype=torch.float64), 1.0)
    with pytest.raises(NetError, match=r"found \(7, 2\) in int64"):
        convection_residual(stack(net), params, torch.zeros(7, 2, dtype=torch.int64), 1.0)
    with pytest.raises(NetError, match=r"3 models, beta of shape \(2,\)"):
        convection_residual(stack(net), params, points(B), torch.ones(2))
    wide = build("pinn_mlp", {"width": 3}, in_shape=(2,), n_outputs=2).double()
    with pytest.raises(NetError, match=r"one value a point.*found \(3, 7, 2\); build it with n_outputs=1"):
        convection_residual(stack(wide), population(wide), points(B), 1.0)
    with pytest.raises(NetError, match=r"periodicity_gap needs a net with one value"):
        periodicity_gap(stack(wide), population(wide), points(B)[:, 1])


@pytest.mark.parametrize("periodic", ["soft", "hard"])
def test_a_pinn_also_grows_on_the_values_of_the_solution(periodic):
    zoo = za.grow(
        "pinn_mlp", periodic=periodic, width=8, depth=2, seed=range(2), steps=40, optimizer="adam", lr=0.01,
        data="convection", workers=1,
    )  # fmt: skip
    assert set(zoo.table["status"]) == {"trained"}
    for (_,), rows in zoo.history.group_by("id"):
        assert rows.sort("step")["train_loss"][-1] < 0.4  # 0.5 is the mean square of a sine
