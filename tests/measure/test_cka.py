from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoarium._core.errors import MeasureError, NetError
from zoarium.data.dataset import Split
from zoarium.measure.cka import cka, cka_matrix
from zoarium.measure.hsic import HsicSums, blocks_of
from zoarium.testing import check_measure
from zoarium.testing.cohorts import small_cohort, small_dataset
from zoarium.zoo.cohort import Cohort

ROUTES = ("all", "gram", "narrow")


def hsic(x, y):
    """The unbiased estimator as its authors write it."""
    m = len(x)
    k, el = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(el, 0)
    one = np.ones(m)
    cross = (
        np.trace(k @ el) + (one @ k @ one) * (one @ el @ one) / ((m - 1) * (m - 2)) - 2 / (m - 2) * one @ k @ el @ one
    )
    return cross / (m * (m - 3))


def naive(x, y, blocks):
    """CKA of blocks of samples, each HSIC weighted by its share of them."""
    total = [
        sum((b.stop - b.start) * hsic(p[b].copy(), q[b].copy()) for b in blocks) for p, q in ((x, y), (x, x), (y, y))
    ]
    return total[0] / np.sqrt(total[1] * total[2])


def biased(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def related(n, m, d, seed=0, dtype=np.float64):
    """n sets of features that share part of their content and are not centred."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(m, d))
    return (common + random.normal(size=(n, m, d)) + 2).astype(dtype)


def by_route(features, pairs, route, block=None):
    sums = HsicSums(len(features), torch.as_tensor(pairs), features.shape[1], route)
    for rows in blocks_of(features.shape[1], block):
        sums.add([sums.prepare(torch.as_tensor(features)[:, rows], slice(0, len(features)))])
    return sums.finish()


def test_cka_keeps_the_laws_of_a_measure():
    check_measure("cka", settings={"block": 64})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("d", "block"), [(3, None), (3, 25), (90, None), (90, 25)])
def test_every_route_gives_the_published_formula(route, d, block):
    features = related(3, 60, d)
    pairs = [[0, 1], [2, 0], [1, 1]]
    value, _, reason = by_route(features, pairs, route, block)
    expected = [naive(features[i], features[j], blocks_of(60, block)) for i, j in pairs]
    assert value == pytest.approx(expected, abs=1e-12)
    assert reason == ["", "", ""]


def test_every_route_gives_the_same_standard_error():
    features = related(4, 100, 6)
    pairs = [[0, 1], [2, 3], [1, 2]]
    errors = [by_route(features, pairs, route, 50)[1] for route in ROUTES]
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert errors[0] == pytest.approx(errors[2], rel=1e-9)


def test_the_standard_error_is_the_spread_over_fresh_samples():
    pairs, values, errors = [[0, 1]], [], []
    mix = np.random.default_rng(9).normal(size=(5, 5))
    for seed in range(150):
        random = np.random.default_rng(seed)
        x = random.normal(size=(200, 5))
        y = x @ mix + 2 * random.normal(size=(200, 5))
        value, stderr, _ = by_route(np.stack([x, y]), pairs, "narrow", 100)
        values.append(value[0])
        errors.append(stderr[0])
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.25)


def test_float32_agrees_with_float64_on_features_far_from_zero():
    features = related(3, 80, 10) * 1e3 + 1e4
    pairs = [[0, 1], [1, 2]]
    for route in ROUTES:
        single = by_route(features.astype(np.float32), pairs, route)[0]
        assert single == pytest.approx(by_route(features, pairs, route)[0], abs=1e-4)


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), d=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_rotation_scale_and_shift_change_nothing(seed, scale, d):
    x, y = related(2, 40, d, seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(d, d)))
    matrix = cka_matrix([x, y, scale * x @ turn + 3])
    assert matrix[0, 2] == pytest.approx(1, abs=1e-9)
    assert matrix[1, 2] == pytest.approx(matrix[0, 1], abs=1e-9)
    assert np.allclose(matrix, matrix.T) and (np.abs(matrix) <= 1).all()


@pytest.mark.parametrize(("d", "apparent"), [(10, 0.08), (64, 0.33), (512, 0.80), (4096, 0.97)])
def test_independent_features_have_none_where_the_biased_form_sees_some(d, apparent):
    random = np.random.default_rng(d)
    x, y = random.normal(size=(2, 128, d))
    assert abs(cka_matrix([x, y])[0, 1]) < 0.05
    assert biased(x, y) == pytest.approx(apparent, abs=0.02)


def test_constant_features_give_nan_and_a_reason_and_spare_the_rest():
    features = related(4, 60, 3)
    features[1] = 7.25
    features[2] = 0
    features[2, 5] = 1  # differs on a single sample: no two samples to compare
    for route in ROUTES:
        value, stderr, reason = by_route(features.astype(np.float32), [[0, 1], [2, 0], [0, 3]], route)
        assert np.isnan(value[:2]).all() and np.isnan(stderr[:2]).all()
        assert reason == ["features are constant", "features are constant", ""]
        assert value[2] == pytest.approx(naive(features[0], features[3], blocks_of(60, None)), abs=1e-5)


def test_a_net_whose_outputs_do_not_vary_has_no_cka():
    cohort = small_cohort()
    last = list(cohort.params)[-2]
    dead = {k: v.clone() for k, v in cohort.params.items()}
    dead[last][0] = 0
    got = cka([cohort.with_params(dead)], torch.tensor([[0, 1], [1, 2]]), small_dataset())["cka"]
    assert np.isnan(got.value[0]) and got.reason[0] == "features are constant"
    assert np.isfinite(got.value[1])


def test_the_measure_agrees_with_the_matrix_of_its_features_in_any_layer():
    cohort, data = small_cohort(), small_dataset()
    layers = [*cohort.net.layers[:-1][-1:], "logits"]
    pairs = torch.tensor([[0, 1], [0, 3], [2, 1]])
    got = cka([cohort], pairs, data, layers=layers, block=200)
    assert list(got) == [f"cka:{layers[0]}", "cka"]
    features = cohort.features(data.test.x, layers)
    for name, layer in zip(got, layers, strict=True):
        matrix = cka_matrix(features[layer].flatten(2))
        assert got[name].value == pytest.approx([matrix[i, j] for i, j in pairs.tolist()])


def test_architectures_may_differ():
    wide, narrow, data = small_cohort(2, width=9), small_cohort(2, width=4), small_dataset()
    layer = wide.net.layers[-2]
    pairs = torch.tensor([[0, 2], [3, 1], [2, 3]])
    got = cka([wide, narrow], pairs, data, layers=(layer,), block=200)[f"cka:{layer}"].value
    sets = [f for c in (wide, narrow) for f in c.features(data.test.x, [layer])[layer]]
    matrix = cka_matrix(sets)
    assert got == pytest.approx([matrix[i, j] for i, j in pairs.tolist()])


def test_a_long_list_of_few_pairs_is_cut_into_pieces_without_changing_a_value(monkeypatch):
    cohort, data = small_cohort(12), small_dataset()
    pairs = torch.tensor([(3 * k + i, 3 * k + j) for k in range(4) for i, j in ((0, 1), (0, 2), (1, 2))])
    whole = cka([cohort], pairs, data)["cka"]
    monkeypatch.setattr("zoarium.measure.cka.BUDGET", 4 * 120**2 * 4)
    cut = cka([cohort], pairs, data)["cka"]
    assert cut.value == pytest.approx(whole.value) and cut.stderr == pytest.approx(whole.stderr)


def test_maps_of_a_convolution_are_flattened():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)) for _ in "ab"
    ]
    cohort = Cohort.from_modules(nets).to(dtype=torch.float64)
    data = small_dataset()
    got = cka([cohort], torch.tensor([[0, 1]]), data, layers=("1",), block=200)["cka:1"].value[0]
    assert got == pytest.approx(cka_matrix(cohort.features(data.test.x, ["1"])["1"].flatten(2))[0, 1])


def test_sorted_data_do_not_bias_the_blocks():
    cohort, data = small_cohort(), small_dataset()
    order = data.test.y.argsort()
    by_class = replace(data, test=Split(data.test.x[order], data.test.y[order]))
    pairs = torch.tensor([[0, 1]])
    whole = cka([cohort], pairs, by_class, block=120)["cka"]
    cut = cka([cohort], pairs, by_class, block=24)["cka"]
    assert abs(whole.value[0] - cut.value[0]) < 3 * whole.stderr[0]


def test_no_pairs_give_no_values():
    assert len(cka([small_cohort()], torch.empty(0, 2, dtype=torch.long), small_dataset())["cka"]) == 0


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({"samples": 5}, MeasureError, "at least 8 samples, found 5"),
        ({"block": 4}, MeasureError, "block=4"),
        ({"split": "valid"}, MeasureError, "'test' or 'train', found 'valid'"),
        ({"layers": ("nowhere",)}, NetError, "unknown layer 'nowhere'"),
    ],
)
def test_bad_settings_are_named(setting, error, words):
    with pytest.raises(error, match=words):
        cka([small_cohort()], torch.tensor([[0, 1]]), small_dataset(), **setting)


def test_features_of_different_samples_cannot_be_compared():
    with pytest.raises(MeasureError, match=r"number 1 has shape \(20, 3\), the first \(30, 3\)"):
        cka_matrix([np.ones((30, 3)), np.ones((20, 3))])
