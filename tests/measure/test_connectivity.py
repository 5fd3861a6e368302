from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from zoarium._core.errors import MeasureError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.connectivity import departure, mode_connectivity
from zoarium.measure.paths.curves import CurvePoints, basis, fit_curve, learning_rate, straight
from zoarium.zoo.cohort import Cohort

BRIEF = {"epochs": 3, "batch_size": 16, "lr": 0.1, "seed": 5}


def toy(task: str = "classification", shape: tuple[int, ...] = (6,), n: int = 50) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, *shape, generator=draw, dtype=torch.float64)
    signal = x.flatten(1) @ torch.randn(x[0].numel(), 3, generator=draw, dtype=torch.float64)
    y = signal.argmax(1) if task == "classification" else signal.sin()
    return Dataset("toy", Split(x[:n], y[:n]), Split(x[n:], y[n:]), task, 3)  # type: ignore[arg-type]


def mlp(seed: int, activation: type[nn.Module] = nn.ReLU, depth: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(6 if i == 0 else 5, 5), activation()]
    return nn.Sequential(*layers, nn.Linear(5, 3))


def cohort_of(build, seeds=(0, 1), dtype=torch.float64) -> Cohort:
    return Cohort.from_modules([build(s) for s in seeds], [f"m{s}" for s in seeds]).to(dtype=dtype)


def plain_curve(a: nn.Module, b: nn.Module, names, data: Dataset, *, bends=3, curve="bezier", decay=5e-4, **how):
    """The ordinary loop: one pair, one module, autograd through the control points, `torch.optim.SGD`."""
    module = copy.deepcopy(a).double().train()
    ends = [[p.detach().double() for p in m.parameters()] for m in (a, b)]
    keys = [k for k, _ in module.named_parameters()]
    k = bends - 1
    inner = [[((1 - j / k) * p + j / k * q).requires_grad_() for p, q in zip(*ends, strict=True)] for j in range(1, k)]
    sgd = torch.optim.SGD([p for bend in inner for p in bend], lr=how["lr"], momentum=0.9)
    n, size = len(data.train), how["batch_size"]
    steps = -(-n // size)
    times = torch.rand(how["epochs"] * steps, generator=generator("curve", how["seed"], *names), dtype=torch.float64)
    for epoch in range(how["epochs"]):
        order = torch.randperm(n, generator=generator("curve order", how["seed"], epoch))
        sgd.param_groups[0]["lr"] = learning_rate(epoch, how["epochs"], how["lr"])
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            t = times[epoch * steps + step]
            if curve == "bezier":
                weights = [math.comb(k, j) * t**j * (1 - t) ** (k - j) for j in range(bends)]
            else:
                weights = [max(0.0, 1 - abs(t * k - j)) for j in range(bends)]
            points = [ends[0], *inner, ends[1]]
            phi = [sum(w * p[i] for w, p in zip(weights, points, strict=True)) for i in range(len(keys))]
            out = functional_call(module, dict(zip(keys, phi, strict=True)), (data.train.x[rows],))
            y = data.train.y[rows]
            loss = F.cross_entropy(out, y) if data.task == "classification" else F.mse_loss(out, y)
            loss = loss + decay / 2 * sum(p.square().sum() for p in phi)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return torch.stack([torch.cat([p.detach().flatten() for p in bend]) for bend in inner])


def with_norm(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def without_bias(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))


ROUTES = {
    "by hand": (mlp, "classification", {}),
    "two hidden layers": (lambda s: mlp(s, depth=2), "classification", {}),
    "tanh": (lambda s: mlp(s, nn.Tanh), "classification", {}),
    "regression": (mlp, "regression", {}),
    "four bends": (mlp, "classification", {"bends": 4}),
    "polygonal": (mlp, "classification", {"curve": "polygonal", "bends": 4}),
    "by autograd": (without_bias, "classification", {}),
    "batch norm": (with_norm, "classification", {}),
    "regression by autograd": (without_bias, "regression", {}),
}


@pytest.mark.parametrize(("build", "task", "how"), ROUTES.values(), ids=ROUTES.keys())
def test_the_stacked_program_is_the_ordinary_loop_step_for_step(build, task, how):
    data = toy(task)
    cohort = cohort_of(build, (0, 1, 2))
    curves = fit_curve(cohort, [(0, 1), (0, 2)], data, **how, **BRIEF)
    for row, (a, b) in enumerate([(0, 1), (0, 2)]):
        want = plain_curve(build(a), build(b), (f"m{a}", f"m{b}"), data, **how, **BRIEF)
        torch.testing.assert_close(curves.control[row, 1:-1], want, rtol=1e-9, atol=1e-10)
        assert torch.equal(curves.control[row, 0], cohort.flat[a])
        assert torch.equal(curves.control[row, -1], cohort.flat[b])


def test_single_precision_stays_near_double():
    data = toy()
    double, single = (
        fit_curve(cohort_of(mlp, dtype=dtype), [(0, 1)], data, **BRIEF) for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single.control.double(), double.control, rtol=1e-4, atol=1e-5)


def test_a_pair_is_the_same_whatever_else_is_in_the_cohort():
    data = toy()
    alone = fit_curve(cohort_of(mlp, (1, 2)), [(0, 1)], data, **BRIEF)
    among = fit_curve(cohort_of(mlp, (3, 0, 2, 1)), [(0, 1), (3, 2), (1, 2)], data, **BRIEF)
    torch.testing.assert_close(among.control[1], alone.control[0], rtol=1e-12, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    data, cohort = toy(), cohort_of(mlp, dtype=torch.float32)
    how = {**BRIEF, "seed": 1}
    first, again = (fit_curve(cohort, [(0, 1)], data, **how).control for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, fit_curve(cohort, [(0, 1)], data, **{**how, "seed": 2}).control)


def test_a_pair_named_the_other_way_round_gives_the_same_curve_reversed():
    data = toy()
    curves = fit_curve(cohort_of(mlp), [(0, 1), (1, 0)], data, bends=4, **BRIEF)
    torch.testing.assert_close(curves.control[1], curves.control[0].flip(0), rtol=1e-9, atol=1e-10)
    values = mode_connectivity(cohort_of(mlp), torch.tensor([[0, 1], [1, 0]]), data, **BRIEF)
    for estimates in values.values():
        assert estimates.value[0] == pytest.approx(estimates.value[1], abs=1e-9)


def test_models_and_data_are_left_alone():
    data, cohort = toy(), cohort_of(with_norm)
    before = copy.deepcopy((cohort.params, cohort.buffers))
    mode_connectivity(cohort, torch.tensor([[0, 1]]), data, **BRIEF)
    for kept, now in zip(before, (cohort.params, cohort.buffers), strict=True):
        assert all(torch.equal(kept[k], now[k]) for k in now)


def test_on_a_quadratic_the_curve_bends_to_where_the_loss_is_least():
    # One weight, no data but x = 1, y = 0: L(w) = w^2 and the ends are 1 and 1. With phi(t) = 1 + 2t(1-t)(c - 1) the
    # best c minimises E[phi^2]: c - 1 = -E[2t(1-t)] / E[4t^2(1-t)^2] = -(1/3) / (2/15) = -5/2.
    one = torch.ones(8, 1, dtype=torch.float64)
    data = Dataset("one", Split(one, 0 * one), Split(one, 0 * one), "regression", 1)
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(module[0].weight)
    cohort = Cohort.from_modules([module] * 51).to(dtype=torch.float64)
    pairs = [(0, i) for i in range(1, 51)]  # each draws its own t, so their mean is 7 times nearer the optimum
    how = {"epochs": 1000, "batch_size": 8, "lr": 0.05, "momentum": 0.5, "weight_decay": 0.0}
    assert fit_curve(cohort, pairs, data, **how).control[:, 1, 0].mean().item() == pytest.approx(1 - 2.5, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(bends=st.integers(2, 7), t=st.floats(0, 1), kind=st.sampled_from(["bezier", "polygonal"]))
def test_basis_weights_are_shares_and_reproduce_straight_lines(bends, t, kind):
    weights = basis(torch.tensor(t, dtype=torch.float64), bends, kind)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1)
    assert (weights @ torch.linspace(0, 1, bends, dtype=torch.float64)).item() == pytest.approx(t, abs=1e-12)


def test_two_bends_are_the_straight_line_with_nothing_trained():
    cohort = cohort_of(mlp)
    line = fit_curve(cohort, [(0, 1)], toy(), bends=2, **BRIEF)
    torch.testing.assert_close(line.flat(0.25)[0], 0.75 * cohort.flat[0] + 0.25 * cohort.flat[1])


def test_the_rate_falls_linearly_and_does_not_compound():
    rates = [learning_rate(e, 50, 0.1) for e in range(50)]
    assert rates[:26] == [0.1] * 26
    assert rates[35] == pytest.approx(0.1 * (1 - 0.99 * 0.5))
    assert rates[45:] == pytest.approx([0.001] * 5)


def test_points_agree_with_the_models_run_one_by_one():
    for build, task in ((mlp, "classification"), (without_bias, "classification"), (mlp, "regression")):
        data, cohort = toy(task), cohort_of(build)
        curves = fit_curve(cohort, [(0, 1)], data, **BRIEF)
        points = curves.points(data, (0.0, 0.3), split="test")
        out = functional_call(build(0), curves.evaluate(0.3).state(0), (data.test.x,))
        y = data.test.y
        if task == "classification":
            torch.testing.assert_close(points.loss[0, 1], F.cross_entropy(out, y, reduction="none"))
            assert torch.equal(points.error[0, 1], 100.0 * (out.argmax(1) != y))
        else:
            torch.testing.assert_close(points.loss[0, 1], (out - y).square().mean(1))
            r2 = 1 - (out - y).square().sum() / (y - y.mean(0)).square().sum()
            assert points.error[0, 1].mean().item() == pytest.approx(100 * (1 - r2.item()))


def test_the_table_of_a_curve_holds_the_means_at_every_point():
    data = toy()
    curves = fit_curve(cohort_of(mlp, (0, 1, 2)), [(0, 1), (0, 2)], data, **BRIEF)
    table = curves.table(data, 3)
    assert table.columns == ["a", "b", "t", "train_loss", "train_error", "test_loss", "test_error"]
    assert table["b"].to_list() == ["m1"] * 3 + ["m2"] * 3
    assert table["t"].to_list() == [0.0, 0.5, 1.0] * 2
    assert table["test_loss"][4] == pytest.approx(curves.points(data, 3, split="test").loss[1, 1].mean().item())


def test_no_pairs_give_no_values():
    found = mode_connectivity(cohort_of(mlp), torch.empty(0, 2, dtype=torch.long), toy(), **BRIEF)
    assert {name: len(estimates) for name, estimates in found.items()} == dict.fromkeys(found, 0)


def test_equal_outputs_are_decided_as_arg_max_does():
    module = nn.Sequential(nn.Linear(6, 3))
    cohort = Cohort.from_modules([module, module]).to(dtype=torch.float64)
    zero = cohort.with_params({k: torch.zeros_like(v) for k, v in cohort.params.items()})
    data = toy()
    points = straight(zero, zero).points(data, 2)
    assert torch.equal(points.error[0, 0] == 0, data.train.y == 0)


def test_departure_is_the_signed_gap_where_it_is_largest():
    error = torch.tensor([[[10.0], [70.0], [20.0]], [[40.0], [5.0], [20.0]]])  # (2 curves, 3 points, 1 sample)
    points = CurvePoints(np.array([0, 0.5, 1.0]), error, error)
    assert departure(points, "error", ["", ""]).value.tolist() == [15.0 - 70.0, 30.0 - 5.0]


def test_of_two_equal_gaps_the_barrier_counts():
    error = torch.tensor([[[20.0], [10.0], [30.0], [20.0]]])
    assert departure(CurvePoints(np.linspace(0, 1, 4), error, error), "error", [""]).value.tolist() == [-10.0]


def test_the_standard_error_is_that_of_paired_samples():
    rng = torch.Generator().manual_seed(0)
    error = 100.0 * (torch.rand(1, 3, 400, generator=rng) < torch.tensor([0.2, 0.6, 0.3])[None, :, None])
    found = departure(CurvePoints(np.array([0, 0.5, 1.0]), error, error), "error", [""])
    paired = ((error[0, 0] + error[0, 2]) / 2 - error[0, 1]).numpy()
    assert found.value[0] == pytest.approx(paired.mean())
    assert found.stderr[0] == pytest.approx(paired.std(ddof=1) / 20)
    assert found.samples[0] == 400


def test_a_curve_between_equal_trained_models_stays_connected():
    data = toy()
    net = mlp(0).double()
    sgd = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(300):
        sgd.zero_grad()
        F.cross_entropy(net(data.train.x), data.train.y).backward()
        sgd.step()
    values = mode_connectivity(Cohort.from_modules([net, net]), torch.tensor([[0, 1]]), data, **BRIEF)
    assert abs(values["mode_connectivity"].value[0]) <= 6.0


def test_what_diverges_is_nan_with_the_reason_and_disturbs_nobody():
    data, cohort = toy(), cohort_of(mlp, (0, 1, 2, 3))
    pairs = torch.tensor([[0, 1], [2, 3]])
    clean = mode_connectivity(cohort, pairs, data, **BRIEF)
    broken = cohort.with_params({k: v.clone() for k, v in cohort.params.items()})
    broken.params["2.bias"][1, 0] = torch.nan
    found = mode_connectivity(broken, pairs, data, **BRIEF)
    for name, estimates in found.items():
        assert np.isnan(estimates.value[0])
        assert estimates.reason[0] == "weights of m1 are not finite"
        assert estimates.value[1] == clean[name].value[1]
    wild = mode_connectivity(cohort_of(mlp), torch.tensor([[0, 1]]), toy("regression"), **{**BRIEF, "lr": 1e6})
    assert np.isnan(wild["mode_connectivity"].value[0])
    assert "clip_norm" in wild["mode_connectivity"].reason[0]


def test_clipping_bounds_the_steps_and_tames_a_rate_that_diverges():
    data, cohort = toy("regression"), cohort_of(mlp)
    how = {**BRIEF, "epochs": 1, "batch_size": 50, "lr": 10.0, "momentum": 0.0, "weight_decay": 0.0}
    curves = fit_curve(cohort, [(0, 1)], data, clip_norm=1e-3, schedule="constant", **how)
    moved = (curves.control[0, 1] - cohort.flat.mean(0)).norm().item()
    assert 0 < moved <= 10.0 * 1e-3 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"bends": 1}, "bends=1"), ({"curve": "spline"}, "unknown curve 'spline'"), ({"points": 2}, "points >= 3"),
     ({"schedule": "cosine"}, "unknown schedule"), ({"batch_size": 0}, "batch_size"), ({"momentum": 1.0}, "momentum")],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(bad, words):
    with pytest.raises(MeasureError, match=words):
        mode_connectivity(cohort_of(mlp), torch.tensor([[0, 1]]), toy(), **{**BRIEF, **bad})


def test_pairs_are_cut_to_fit_in_memory_without_changing_a_value(monkeypatch):
    data, cohort = toy(), cohort_of(mlp, (0, 1, 2))
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    whole = mode_connectivity(cohort, pairs, data, **BRIEF)
    monkeypatch.setattr("zoarium.measure.paths.samples.CHUNK_BYTES", 1)
    cut = mode_connectivity(cohort, pairs, data, **BRIEF)
    for name in whole:
        np.testing.assert_allclose(cut[name].value, whole[name].value, atol=1e-9)


def convolutions(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


def test_convolutions_with_batch_norm_are_the_ordinary_loop_too():
    data = toy(shape=(1, 4, 4))
    curves = fit_curve(cohort_of(convolutions, (0, 1, 2)), [(0, 1), (0, 2)], data, **BRIEF)
    want = plain_curve(convolutions(0), convolutions(2), ("m0", "m2"), data, **BRIEF)
    torch.testing.assert_close(curves.control[1, 1:-1], want, rtol=1e-9, atol=1e-10)


def test_a_last_batch_of_one_is_left_out_where_it_has_no_variance():
    data = toy(shape=(1, 4, 4), n=33)
    values = mode_connectivity(cohort_of(convolutions), torch.tensor([[0, 1]]), data, **BRIEF)
    assert all(np.isfinite(estimates.value).all() for estimates in values.values())


def test_inputs_with_more_axes_take_the_route_that_fits_them():
    def flattening(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    flat, images = toy(), toy(shape=(2, 3))
    assert torch.equal(flat.train.x, images.train.x.flatten(1))
    cohort, pairs = cohort_of(flattening), torch.tensor([[0, 1]])
    for name, estimates in mode_connectivity(cohort, pairs, images, **BRIEF).items():
        assert estimates.value[0] == mode_connectivity(cohort, pairs, flat, **BRIEF)[name].value[0]
