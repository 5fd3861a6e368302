from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoarium._core.errors import MeasureError
from zoarium.measure.spectra import (
    cohort_spectra,
    effective_rank,
    eigenvalues,
    fit_power_law,
    frobenius_norm,
    power_law_p,
    singular_values,
    spectral_alpha,
    spectral_norm,
    stable_rank,
)
from zoarium.testing import check_measure, small_cohort

TORCH_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(gaussian(size, size, seed=seed))[0]


def pareto(alpha: float, size: int, seed: int) -> np.ndarray:
    """Draws of density (alpha - 1) x^-alpha from 1 on."""
    return np.random.default_rng(seed).random(size) ** (-1 / (alpha - 1))


def with_eigenvalues(values: np.ndarray, rows: int) -> torch.Tensor:
    """A (rows, k) matrix W, rows >= k, whose W^T W / rows has these eigenvalues."""
    k = len(values)
    left = torch.linalg.qr(gaussian(rows, k, seed=1))[0]
    return left * torch.as_tensor(np.sqrt(values * rows)) @ orthogonal(k, seed=2)


def slow_fit(values: np.ndarray, min_tail: int) -> tuple[float, float, float]:
    """The fit by the book: try each value as x_min, compare distribution functions at every step of the sample."""
    best = (math.inf, math.nan, math.nan)
    for x_min in np.unique(values):
        tail = values[values >= x_min]
        if len(tail) < min_tail:
            continue
        alpha = 1 + len(tail) / np.log(tail / x_min).sum()
        distance = 0.0
        for x in tail:
            law = 1 - (x / x_min) ** (1 - alpha)
            distance = max(distance, abs(np.mean(tail <= x) - law), abs(np.mean(tail < x) - law))
        best = min(best, (distance, x_min, alpha))
    return best


@pytest.mark.parametrize("dtype", TORCH_TYPES)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 3, 2, 2)])
def test_singular_values_are_those_of_numpy_in_every_number_type(shape, dtype):
    tensor = gaussian(*shape, dtype=dtype)
    before = tensor.clone()
    expected = np.linalg.svd(tensor.double().flatten(1).numpy(), compute_uv=False)
    assert singular_values(tensor) == pytest.approx(expected, rel=1e-5 if tensor.element_size() < 4 else 1e-12)
    assert torch.equal(tensor, before)


def test_views_that_are_not_contiguous_have_their_own_singular_values():
    tensor = gaussian(8, 12)[::2, 1::3]
    assert singular_values(tensor) == pytest.approx(np.linalg.svd(tensor.numpy(), compute_uv=False))


def test_a_vector_has_no_spectrum_and_the_error_says_what_to_give():
    with pytest.raises(MeasureError, match=r"\(3,\) is no matrix; give one of two axes"):
        singular_values(torch.ones(3))


def test_an_orthogonal_matrix_has_full_rank_by_both_measures_and_no_power_law():
    sigma = singular_values(3 * orthogonal(20))
    assert float(spectral_norm(sigma)) == pytest.approx(3)
    assert float(frobenius_norm(sigma)) == pytest.approx(3 * math.sqrt(20))
    assert float(stable_rank(sigma)) == pytest.approx(20)
    assert float(effective_rank(sigma)) == pytest.approx(20)
    assert fit_power_law(eigenvalues(sigma, (20, 20))).reason == "all eigenvalues are equal up to rounding"


def test_a_rank_one_matrix_has_rank_one_by_both_measures():
    u, v = gaussian(30, 1), gaussian(1, 20, seed=1)
    sigma = singular_values(u @ v)
    assert float(spectral_norm(sigma)) == pytest.approx(float(u.norm() * v.norm()))
    assert float(stable_rank(sigma)) == pytest.approx(1)
    assert float(effective_rank(sigma)) == pytest.approx(1, abs=1e-6)
    assert len(eigenvalues(sigma, (30, 20))) == 1
    assert fit_power_law(eigenvalues(sigma, (30, 20))).reason == "1 eigenvalues in the tail, fewer than 10"


def test_a_matrix_of_zeros_has_norms_of_zero_and_no_rank():
    sigma = singular_values(torch.zeros(4, 3))
    assert float(spectral_norm(sigma)) == float(frobenius_norm(sigma)) == 0
    assert np.isnan(stable_rank(sigma)) and np.isnan(effective_rank(sigma))
    assert not len(eigenvalues(sigma, (4, 3)))


def test_eigenvalues_are_those_of_the_correlation_matrix():
    w = gaussian(9, 6)
    expected = np.linalg.eigvalsh((w.T @ w / 9).numpy())
    assert eigenvalues(singular_values(w), (9, 6)) == pytest.approx(expected)
    assert eigenvalues(singular_values(w.T), (6, 9)) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_scale_moves_norms_and_leaves_ranks_and_alpha(seed, scale):
    w = gaussian(30, 20, seed=seed)
    one, other = singular_values(w), singular_values(w * scale)
    assert other == pytest.approx(one * scale)
    for rank in (stable_rank, effective_rank):
        assert float(rank(other)) == pytest.approx(float(rank(one)))
    fits = [fit_power_law(eigenvalues(s, (30, 20))) for s in (one, other)]
    assert fits[1].alpha == pytest.approx(fits[0].alpha)
    assert fits[1].x_min == pytest.approx(fits[0].x_min * scale**2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_permutations_rotations_and_the_transpose_leave_the_spectrum(seed):
    w = gaussian(12, 8, seed=seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    for other in (w[order], w[:, order[order < 8]], orthogonal(12, seed) @ w, w @ orthogonal(8, seed), w.T):
        assert singular_values(other) == pytest.approx(singular_values(w))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=20).filter(lambda v: max(v) > 1e-6))
def test_ranks_lie_between_one_and_the_rank(values):
    sigma = np.sort(values)[::-1]
    rank = np.count_nonzero(sigma)
    for measured in (float(stable_rank(sigma)), float(effective_rank(sigma))):
        assert 1 - 1e-9 <= measured <= rank + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(12, 40), digits=st.sampled_from([1, 12]))
def test_the_fit_is_that_of_the_slow_one_also_with_ties(seed, size, digits):
    values = np.round(pareto(2.5, size, seed), digits)
    distance, x_min, alpha = slow_fit(values, 10)
    fit = fit_power_law(values)
    assert fit.distance == pytest.approx(distance)
    assert (fit.x_min, fit.alpha) == pytest.approx((x_min, alpha))
    assert fit.n_tail == np.count_nonzero(values >= x_min * (1 - 1e-12))
    assert fit.stderr == pytest.approx((alpha - 1) / math.sqrt(fit.n_tail))


def test_a_table_of_candidates_cut_into_blocks_gives_the_same_fit(monkeypatch):
    values = pareto(3.0, 200, seed=3)
    whole = fit_power_law(values)
    monkeypatch.setattr("zoarium.measure.spectra.BLOCK", 1000)
    assert fit_power_law(values) == whole


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_a_planted_alpha_is_found_within_three_standard_errors(alpha):
    fits = [fit_power_law(pareto(alpha, 300, seed)) for seed in range(40)]
    errors = np.array([(f.alpha - alpha) / f.stderr for f in fits])
    assert np.mean(np.abs(errors) <= 3) >= 0.95
    assert abs(np.median(errors)) < 0.5


def test_a_power_law_above_a_body_of_another_law_is_found_where_it_begins():
    found = []
    for seed in range(20):
        body = np.random.default_rng(seed).uniform(0.0, 1.0, 100)  # a third of the tail's density at 1
        found.append(fit_power_law(np.concatenate([body, pareto(2.5, 200, seed + 100)])))
    assert np.median([f.x_min for f in found]) == pytest.approx(1, rel=0.15)
    assert np.mean([abs(f.alpha - 2.5) <= 3 * f.stderr for f in found]) >= 0.9


def test_the_interval_covers_alpha_as_often_as_it_says_where_the_tail_is_given():
    fits = [fit_power_law(pareto(2.5, 15, seed), x_min=1.0) for seed in range(2000)]
    for level, allowed in ((0.95, 0.015),):  # three standard deviations of 2000 trials
        assert np.mean([f.low <= 2.5 <= f.high for f in fits]) == pytest.approx(level, abs=allowed)


def test_the_interval_covers_alpha_somewhat_less_often_where_the_tail_is_chosen():
    fits = [fit_power_law(pareto(2.5, 60, seed)) for seed in range(600)]
    assert 0.85 <= np.mean([f.low <= 2.5 <= f.high for f in fits]) <= 0.95


def test_the_planted_alpha_of_a_matrix_is_found_from_its_weights():
    alpha, kernel = 2.5, with_eigenvalues(pareto(2.5, 150, seed=4), 200)
    direct = fit_power_law(pareto(2.5, 150, seed=4))
    from_weights = fit_power_law(eigenvalues(singular_values(kernel.reshape(200, 50, 3)), (200, 150)))
    assert from_weights.alpha == pytest.approx(direct.alpha)
    assert abs(from_weights.alpha - alpha) <= 3 * from_weights.stderr


def test_goodness_of_fit_accepts_a_power_law_and_rejects_a_uniform_one():
    assert power_law_p(pareto(2.5, 200, seed=0), resamples=50) > 0.1
    narrow = np.random.default_rng(0).uniform(1, 2, 400)
    assert power_law_p(narrow, resamples=50, min_tail=300) < 0.05
    assert math.isnan(power_law_p(np.ones(20)))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.arange(1.0, 10.0), "9 eigenvalues in the tail, fewer than 10"),
        (np.zeros(30), "0 eigenvalues in the tail"),
        (np.full(30, 2.0), "equal up to rounding"),
        (np.r_[np.full(20, 2.0), np.full(5, 1.0)], ""),
        (np.array([math.nan] * 20), "not finite"),
        (np.array([math.inf] * 20), "not finite"),
    ],
)
def test_what_has_no_power_law_says_why(values, reason):
    fit = fit_power_law(values)
    assert reason in fit.reason
    assert math.isnan(fit.alpha) == bool(fit.reason)
    assert str(fit).startswith("no power law: " if fit.reason else "alpha")


def test_a_tail_of_one_is_refused():
    with pytest.raises(MeasureError, match="min_tail must be at least 2, found 1"):
        fit_power_law([1.0, 2.0], min_tail=1)


def test_the_registered_measure_is_the_mean_over_the_layers_that_have_a_fit():
    cohort = small_cohort(n=4, width=16, steps=5)
    found = spectral_alpha(cohort)
    for row in range(4):
        fits = []
        for tensor in cohort.state(row).values():
            if tensor.dim() == 2:
                sigma = np.linalg.svd(tensor.numpy(), compute_uv=False)
                fit = slow_or_none(sigma, max(tensor.shape))
                if fit:
                    fits.append((*fit, 2 * math.log10(sigma[0])))
        alpha, stderr, weight = np.array(fits).T
        n = len(fits)
        assert found["spectral_alpha"].value[row] == pytest.approx(alpha.mean())
        assert found["spectral_alpha"].stderr[row] == pytest.approx(math.sqrt((stderr**2).sum()) / n)
        assert found["alpha_hat"].value[row] == pytest.approx((alpha * weight).mean())
        assert found["alpha_hat"].stderr[row] == pytest.approx(math.sqrt(((stderr * weight) ** 2).sum()) / n)


def slow_or_none(sigma: np.ndarray, longer: int) -> tuple[float, float] | None:
    values = sigma**2 / longer
    if len(values) < 10:
        return None
    _, x_min, alpha = slow_fit(values, 10)
    return alpha, (alpha - 1) / math.sqrt(np.count_nonzero(values >= x_min))


def test_the_laws_hold_where_there_are_exponents():
    cohort = small_cohort(n=4, width=16, steps=5)
    assert np.isfinite(spectral_alpha(cohort)["spectral_alpha"].value).all()
    check_measure("spectral_alpha", cohort=cohort)


def test_a_net_too_narrow_for_a_tail_says_so():
    found = spectral_alpha(small_cohort(n=4, width=6))["spectral_alpha"]
    assert np.isnan(found.value).all()
    assert "fewer than 10" in found.reason[0]


def test_a_layer_left_out_in_one_model_stays_in_the_others():
    cohort = small_cohort(n=3, width=16, steps=1)
    name = next(k for k, v in cohort.params.items() if v.dim() == 3)
    params = {k: v.clone() for k, v in cohort.params.items()}
    params[name][1] = 0.5
    spectra, reasons = cohort_spectra(cohort.with_params(params))
    assert np.isnan(spectra[name][1]).all() and np.isfinite(spectra[name][[0, 2]]).all()
    assert reasons == ["", "", ""]
