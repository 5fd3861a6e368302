from __future__ import annotations

import curvlinops
import numpy as np
import pytest
import torch
from torch import nn

from zoarium._core.errors import MeasureError
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.hessian import hessian_dense, hessian_top_eigenvalue, hessian_trace
from zoarium.measure.registry import MEASURES
from zoarium.zoo.cohort import Cohort

DOUBLE = torch.float64


def relu_net():
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4))


def bent_conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 5, 2, padding=1), nn.BatchNorm2d(5), nn.Tanh(), nn.Flatten(),
        nn.Linear(60, 4),
    )  # fmt: skip


NETS = {"chain": relu_net, "general": bent_conv}


def cohort_of(make=relu_net, n=3, dtype=DOUBLE, seed=0):
    torch.manual_seed(seed)
    return Cohort.from_modules([make() for _ in range(n)]).to(dtype)


def data_of(task="classification", count=40):
    torch.manual_seed(1)
    x = torch.randn(2 * count, 6)
    y = torch.randint(0, 4, (2 * count,)) if task == "classification" else torch.randn(2 * count, 4)
    return Dataset("toy", Split(x[:count], y[:count]), Split(x[count:], y[count:]), task, 4)


def spectra(cohort, data, **settings):
    return np.linalg.eigvalsh(hessian_dense(cohort, data, **settings).numpy())


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_eigenvalues_are_those_of_the_dense_matrix(make, task, curvature):
    cohort, data = cohort_of(make), data_of(task)
    eigenvalues = spectra(cohort, data, curvature=curvature)
    for method in ("lanczos", "dense"):
        got = hessian_top_eigenvalue(cohort, data, curvature=curvature, method=method, tol=1e-5)
        top, radius = got["hessian_top_eigenvalue"], got["hessian_spectral_radius"]
        np.testing.assert_allclose(top.value, eigenvalues[:, -1], rtol=1e-8)
        np.testing.assert_allclose(radius.value, np.abs(eigenvalues).max(1), rtol=1e-8)
        assert (top.stderr <= 1e-5 * top.value).all()
        smallest = got["hessian_smallest_eigenvalue"]
        assert (smallest.value >= eigenvalues[:, 0] - 1e-9).all()
        assert (smallest.value - smallest.stderr <= eigenvalues[:, 0] + 1e-9).all()


@pytest.mark.parametrize("method", ["auto", "exact", "dense"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_exact_traces_are_those_of_the_dense_matrix_and_say_they_are_exact(method, curvature):
    cohort, data = cohort_of(), data_of()
    got = hessian_trace(cohort, data, method=method, curvature=curvature)
    np.testing.assert_allclose(got.value, spectra(cohort, data, curvature=curvature).sum(1))
    assert got.stderr.tolist() == [0, 0, 0]
    assert set(got.products) == {cohort.layout.size if method == "dense" else 0}
    assert set(got.samples) == {40}


@pytest.mark.parametrize("method", ["auto", "hutchpp", "hutchinson"])
def test_stochastic_traces_lie_within_their_errors(method):
    cohort, data = cohort_of(bent_conv, n=8), data_of()
    exact = hessian_trace(cohort, data, method="dense").value
    got = hessian_trace(cohort, data, method=method, max_products=120)
    assert (got.stderr > 0).all()
    assert (np.abs(got.value - exact) < 4 * got.stderr).all()
    assert (got.products <= 120).all()


def test_the_hessian_is_that_of_curvlinops():
    cohort, data = cohort_of(n=1), data_of()
    module = relu_net().to(DOUBLE)
    module.load_state_dict(cohort.state(0))
    x, y = data.train.x.double(), data.train.y
    operator = curvlinops.HessianLinearOperator(module, nn.CrossEntropyLoss(), list(module.parameters()), [(x, y)])
    dense = operator @ torch.eye(cohort.layout.size, dtype=DOUBLE)
    torch.testing.assert_close(hessian_dense(cohort, data)[0], dense)


def test_an_indefinite_hessian_has_a_spectral_radius_that_is_not_its_top():
    """f = w2 w1 x with f far above y: the mixed derivative pushes the ends apart, down further than up."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        module[0].weight.fill_(0.1)
        module[1].weight.fill_(-0.1)
    x, y = torch.ones(4, 1), torch.full((4, 1), 5.0)
    data = Dataset("line", Split(x, y), Split(x, y), "regression", 1)
    # loss (w1 w2 - 5)²: second derivatives 2 w2², 2 w1², mixed 2 (w1 w2 - 5) + 2 w1 w2
    wanted = np.linalg.eigvalsh([[0.02, 2 * -5.01 - 0.02], [2 * -5.01 - 0.02, 0.02]])
    got = hessian_top_eigenvalue(Cohort.from_modules([module]).to(DOUBLE), data)
    assert got["hessian_top_eigenvalue"].value[0] == pytest.approx(wanted[1])
    assert got["hessian_smallest_eigenvalue"].value[0] == pytest.approx(wanted[0])
    assert got["hessian_spectral_radius"].value[0] == pytest.approx(np.abs(wanted).max())


def test_where_the_negative_end_is_larger_the_radius_is_its_magnitude():
    def saddle():
        net = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            for p, value in zip(net.parameters(), (0.7, 0.3, 0.2), strict=True):
                p.fill_(value)
        return net

    x = torch.ones(4, 1)
    data = Dataset("line", Split(x, torch.full((4, 1), -9.0)), Split(x, x), "regression", 1)
    cohort = Cohort.from_modules([saddle()]).to(DOUBLE)
    eigenvalues = spectra(cohort, data)[0]
    assert -eigenvalues[0] > eigenvalues[-1] > 0
    got = hessian_top_eigenvalue(cohort, data)
    assert got["hessian_top_eigenvalue"].value[0] == pytest.approx(eigenvalues[-1])
    assert got["hessian_spectral_radius"].value[0] == pytest.approx(-eigenvalues[0])


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
@pytest.mark.parametrize("method", ["exact", "hutchpp"])
def test_a_model_measured_alone_has_the_values_it_has_in_company_in_any_order(make, method):
    cohort, data = cohort_of(make, n=4), data_of()
    settings = {"method": method, "max_products": 60, "curvature": "ggn"}
    trace, top = hessian_trace(cohort, data, **settings), hessian_top_eigenvalue(cohort, data)
    order = [2, 0, 3, 1]
    shuffled = hessian_trace(cohort.select(order), data, **settings)
    np.testing.assert_allclose(shuffled.value, trace.value[order], rtol=1e-9)
    for row in range(4):
        alone = cohort.select([row])
        assert hessian_trace(alone, data, **settings).value[0] == pytest.approx(trace.value[row], rel=1e-9)
        for name, values in hessian_top_eigenvalue(alone, data).items():
            assert values.value[0] == pytest.approx(top[name].value[row], rel=1e-6, abs=1e-9)
            assert values.products[0] == top[name].products[row]


def test_cutting_the_cohort_into_chunks_changes_nothing(monkeypatch):
    cohort, data = cohort_of(n=5), data_of()
    whole = hessian_trace(cohort, data), hessian_top_eigenvalue(cohort, data)["hessian_top_eigenvalue"]
    monkeypatch.setattr("zoarium.measure.curvature.task.CHAIN_CHUNK", 1)
    monkeypatch.setattr("zoarium.measure.curvature.task.GRAPH_CHUNK", 50)
    cut = hessian_trace(cohort, data), hessian_top_eigenvalue(cohort, data)["hessian_top_eigenvalue"]
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-10)


@pytest.mark.parametrize("method", ["hutchpp", "hutchinson"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(method):
    cohort, data = cohort_of(n=2, dtype=torch.float32), data_of()
    runs = [hessian_trace(cohort, data, method=method, max_products=40, seed=s).value for s in (3, 3, 4)]
    tops = [hessian_top_eigenvalue(cohort, data, seed=3)["hessian_top_eigenvalue"].value for _ in range(2)]
    assert (runs[0] == runs[1]).all() and (tops[0] == tops[1]).all()
    assert (runs[0] != runs[2]).any()


def test_squared_error_curvature_scales_with_the_square_of_the_output_weights():
    """Of a linear model, H is (2/c) XᵀX for each output whatever the weights; twice the inputs is four times H."""
    cohort, data = cohort_of(lambda: nn.Linear(6, 4, bias=False)), data_of("regression")
    double = Dataset("toy", Split(2 * data.train.x, data.train.y), data.test, "regression", 4)
    np.testing.assert_allclose(hessian_trace(cohort, double).value, 4 * hessian_trace(cohort, data).value)
    wanted = 2 * data.train.x.double().square().sum() / len(data.train)
    np.testing.assert_allclose(hessian_trace(cohort, data).value, [wanted] * 3)
    one = hessian_top_eigenvalue(cohort, data)["hessian_top_eigenvalue"].value
    np.testing.assert_allclose(hessian_top_eigenvalue(cohort, double)["hessian_top_eigenvalue"].value, 4 * one)


def test_repeating_the_samples_leaves_the_mean_loss_and_its_curvature():
    cohort, data = cohort_of(), data_of()
    twice = Split(data.train.x.repeat(2, 1), data.train.y.repeat(2))
    repeated = Dataset("twice", twice, data.test, "classification", 4)
    np.testing.assert_allclose(hessian_trace(cohort, repeated).value, hessian_trace(cohort, data).value)


def test_split_and_samples_choose_the_data():
    cohort, data = cohort_of(), data_of()
    swapped = Dataset("toy", data.test, data.train, "classification", 4)
    np.testing.assert_array_equal(
        hessian_trace(cohort, data, split="test").value, hessian_trace(cohort, swapped, split="train").value
    )
    few = hessian_trace(cohort, data, samples=10)
    assert set(few.samples) == {10}
    assert (few.value != hessian_trace(cohort, data).value).all()


def test_a_constant_net_has_the_curvature_of_its_last_bias_alone():
    """All weights zero: p is uniform over 4 classes, H is (I/4 - 1/16) in the last bias: trace 3/4, top 1/4."""
    cohort = cohort_of()
    dead = cohort.with_params({k: torch.zeros_like(v) for k, v in cohort.params.items()})
    np.testing.assert_allclose(hessian_trace(dead, data_of(), curvature="ggn").value, [0.75] * 3)
    got = hessian_top_eigenvalue(dead, data_of(), curvature="ggn")["hessian_top_eigenvalue"]
    np.testing.assert_allclose(got.value, [0.25] * 3)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
@pytest.mark.parametrize("what", ["weights", "outputs"])
def test_a_diverged_model_gets_nan_and_a_reason_and_disturbs_nobody(make, what):
    cohort, data = cohort_of(make, dtype=torch.float32), data_of()
    params = {k: v.clone() for k, v in cohort.params.items()}
    last = max(k for k in params if k.endswith("weight"))
    params[last][1] = torch.nan if what == "weights" else 3e38
    broken = cohort.with_params(params)
    trace, fine = hessian_trace(broken, data, max_products=60), hessian_trace(cohort, data, max_products=60)
    assert np.isnan(trace.value).tolist() == [False, True, False]
    assert "not finite" in trace.reason[1] and trace.reason[0] == trace.reason[2] == ""
    np.testing.assert_allclose(trace.value[[0, 2]], fine.value[[0, 2]], rtol=1e-4)
    for estimates in hessian_top_eigenvalue(broken, data).values():
        assert np.isnan(estimates.value).tolist() == [False, True, False]
        assert estimates.reason[1]
    assert hessian_dense(broken.select([1, 0]), data).isnan().all((1, 2)).tolist() == [True, False]


def test_a_cohort_of_diverged_models_only_is_all_nan():
    cohort = cohort_of()
    broken = cohort.with_params({k: torch.full_like(v, torch.inf) for k, v in cohort.params.items()})
    assert np.isnan(hessian_trace(broken, data_of()).value).all()
    assert np.isnan(hessian_top_eigenvalue(broken, data_of())["hessian_spectral_radius"].value).all()


def test_measures_leave_weights_buffers_and_the_random_state_alone():
    cohort, data = cohort_of(bent_conv), data_of()
    before = {k: v.clone() for k, v in {**cohort.params, **cohort.buffers}.items()}
    state = torch.random.get_rng_state()
    hessian_trace(cohort, data, max_products=60)
    hessian_top_eigenvalue(cohort, data)
    assert all(torch.equal(before[k], v) for k, v in {**cohort.params, **cohort.buffers}.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(v.requires_grad for v in cohort.params.values())


def test_both_measures_are_registered_with_their_quantities():
    assert MEASURES["hessian_trace"].facts["quantities"] == ("hessian_trace",)
    got = hessian_top_eigenvalue(cohort_of(), data_of())
    assert tuple(got) == MEASURES["hessian_top_eigenvalue"].facts["quantities"]


def test_a_dense_hessian_too_large_names_its_size_and_the_way_out():
    wide = cohort_of(lambda: nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 4)), n=1)
    for measure in (hessian_trace, hessian_top_eigenvalue):
        with pytest.raises(MeasureError, match=r"3,304 parameters.*2,000.*method="):
            measure(wide, data_of(), method="dense")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, r"unknown method of hessian_trace 'guess'.*Known: auto, dense, exact"),
        ({"split": "trian"}, r"unknown split 'trian'. Did you mean 'train'"),
        ({"curvature": "fisher"}, r"unknown curvature 'fisher'.*ggn, hessian"),
        ({"samples": 0}, r"samples must be at least 1, found 0"),
        ({"rel_stderr": 0.0}, r"rel_stderr .* must be positive, found 0.0"),
        ({"max_products": 1}, r"max_products .* at least 2, found 1"),
    ],
)
def test_wrong_settings_are_named_with_what_would_do(settings, message):
    with pytest.raises(MeasureError, match=message):
        hessian_trace(cohort_of(), data_of(), **settings)


def test_an_exact_trace_of_a_net_that_has_none_is_refused():
    with pytest.raises(MeasureError, match=r"no exact form.*method='auto'"):
        hessian_trace(cohort_of(bent_conv), data_of(), method="exact")


def test_data_that_do_not_fit_the_nets_are_refused():
    narrow = cohort_of(lambda: nn.Sequential(nn.Linear(6, 2)))
    with pytest.raises(MeasureError, match=r"classes up to 3 but the nets have 2 outputs"):
        hessian_trace(narrow, data_of())
    with pytest.raises(MeasureError, match=r"targets have 4 numbers but the nets have 2 outputs"):
        hessian_top_eigenvalue(narrow, data_of("regression"))
    with pytest.raises(MeasureError, match=r"cannot take inputs of shape \(6,\)"):
        hessian_trace(cohort_of(lambda: nn.Sequential(nn.Linear(5, 4))), data_of())
    maps = cohort_of(lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 1)))
    with pytest.raises(MeasureError, match=r"one row of outputs a sample.*\(1, 2, 2, 3\)"):
        hessian_trace(maps, data_of())
    empty = Dataset(
        "half", data_of().train, Split(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)), "classification", 4
    )
    with pytest.raises(MeasureError, match=r"test split of 'half' is empty"):
        hessian_trace(cohort_of(), empty, split="test")
