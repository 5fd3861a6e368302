from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoarium.measure.curvature.lanczos import lanczos_extremes

DOUBLE = torch.float64


class Matrices:
    """Products with given symmetric matrices (n, p, p)."""

    def __init__(self, a):
        self.a, (self.n, self.size, _), self.dtype = a, a.shape, a.dtype

    def __call__(self, v):
        return torch.bmm(self.a, v.unsqueeze(2)).squeeze(2)

    def select(self, rows):
        return Matrices(self.a[rows])


class Copies:
    """Products with n copies of one matrix (p, p)."""

    def __init__(self, a, n):
        self.a, self.n, self.size, self.dtype = a, n, len(a), a.dtype

    def __call__(self, v):
        return v @ self.a

    def select(self, rows):
        return Copies(self.a, len(rows))


def with_spectra(spectra, seed=0, dtype=DOUBLE):
    spectra = torch.as_tensor(np.array(spectra), dtype=DOUBLE)
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(*spectra.shape, spectra.shape[1], generator=draw, dtype=DOUBLE)).Q
    a = q @ torch.diag_embed(spectra) @ q.mT
    return ((a + a.mT) / 2).to(dtype)


def start_of(a, seed=1):
    return torch.randn(a.shape[:2], generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(a.dtype)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_both_ends_of_an_indefinite_spectrum_are_found(dtype):
    spectra = [np.r_[9.0, np.linspace(-1, 1, 99)], np.r_[3.0, -7.0, np.linspace(-1, 1, 98)]]
    a = with_spectra(spectra, dtype=dtype)
    got = lanczos_extremes(Matrices(a), start_of(a), tol=1e-5)
    np.testing.assert_allclose(got.top, [9, 3], rtol=1e-5)
    assert got.bottom[1] == pytest.approx(-7, rel=1e-5)
    assert got.converged.all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 60), st.floats(1e-8, 1e8), st.floats(1e-6, 0.3))
def test_both_ends_lie_between_the_ritz_value_and_its_bound(seed, p, scale, tol):
    spectrum = scale * np.random.default_rng(seed).standard_normal(p) ** 3
    a = with_spectra([spectrum], seed)
    got = lanczos_extremes(Matrices(a), start_of(a, seed), tol=tol)
    rounding = 1e-12 * np.abs(spectrum).max()
    assert got.top[0] - rounding <= spectrum.max() <= got.top[0] + got.top_bound[0] + rounding
    assert got.bottom[0] - got.bottom_bound[0] - rounding <= spectrum.min() <= got.bottom[0] + rounding
    assert got.converged[0]


def test_a_top_that_the_start_all_but_misses_is_not_overlooked():
    """Of 2,000 starts, those nearest to orthogonal to the top run longer, and one in 1,000 may break its bound.

    A residual of 3 % is reached after a few steps, at the second eigenvalue, where the start hides the first.
    """
    spectrum = np.r_[1.3, 1.0, 0.2 * np.linspace(-1, 1, 298)]
    a = with_spectra([spectrum])
    got = lanczos_extremes(Copies(a[0], 2000), start_of(a.expand(2000, -1, -1)), tol=0.03)
    assert np.mean(1.3 - got.top > got.top_bound) <= 0.002
    assert np.abs(got.top - 1.3).max() < 0.03
    assert got.products.max() > got.products.min()


def test_typical_errors_are_far_below_the_bounds():
    spectrum = np.r_[1.0, 0.6, 0.5, np.logspace(-6, -1, 297)]
    a = with_spectra([spectrum])
    got = lanczos_extremes(Copies(a[0], 200), start_of(a.expand(200, -1, -1)))
    assert (got.top_bound <= 0.03 * got.top).all()
    assert np.median(1 - got.top) < 0.01 * np.median(got.top_bound)
    assert got.products.max() <= 16


def test_the_larger_magnitude_must_converge_even_when_it_is_the_negative_end():
    a = with_spectra([np.r_[-2.0, -1.99, np.linspace(-1.5, 0.5, 98)]])
    got = lanczos_extremes(Matrices(a), start_of(a), tol=1e-4)
    assert got.bottom[0] == pytest.approx(-2, rel=1e-4)
    assert got.bottom_bound[0] <= 1e-4 * 2 + 1e-12


def test_an_eigenvalue_of_many_copies_ends_the_iteration_early_and_exactly():
    a = with_spectra([np.r_[np.full(40, 5.0), np.full(60, 1.0)]])
    got = lanczos_extremes(Matrices(a), start_of(a), tol=1e-6)
    assert got.products[0] <= 5
    assert (got.top[0], got.bottom[0]) == (pytest.approx(5), pytest.approx(1))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_matrices_of_a_few_rows_are_solved_exactly(p):
    spectrum = np.array([-2.0, 1.0, 3.0])[:p]
    a = with_spectra([spectrum])
    got = lanczos_extremes(Matrices(a), start_of(a))
    assert (got.bottom[0], got.top[0]) == (pytest.approx(spectrum.min()), pytest.approx(spectrum.max()))
    assert got.products[0] == p


def test_a_zero_matrix_has_zero_eigenvalues():
    a = torch.zeros(2, 30, 30, dtype=DOUBLE)
    got = lanczos_extremes(Matrices(a), start_of(a))
    assert not np.any([got.top, got.bottom, got.top_bound, got.bottom_bound])
    assert got.converged.all()


def test_hard_and_easy_matrices_stop_at_different_times_and_disturb_nobody():
    easy, hard = np.r_[10.0, np.zeros(149)], np.r_[np.linspace(0.9, 1, 150)]
    a = with_spectra([hard, easy, hard, easy])
    together = lanczos_extremes(Matrices(a), start_of(a), tol=1e-4)
    alone = [lanczos_extremes(Matrices(a[[i]]), start_of(a)[[i]], tol=1e-4) for i in range(4)]
    assert together.products[1] < together.products[0]
    assert together.products.tolist() == [r.products[0] for r in alone]
    np.testing.assert_allclose(together.top, [r.top[0] for r in alone], rtol=1e-10)


def test_running_out_of_steps_is_reported_with_a_bound_that_holds():
    a = with_spectra([np.linspace(0, 1, 200)])
    got = lanczos_extremes(Matrices(a), start_of(a), tol=1e-9, max_steps=12)
    assert not got.converged[0]
    assert got.products[0] == 12
    assert got.top_bound[0] > 1e-4


def test_single_precision_keeps_its_vectors_orthogonal_over_many_steps():
    """Without orthogonalisation the ends of an even spectrum need far more than p steps."""
    a = with_spectra([np.linspace(-1, 1, 150)], dtype=torch.float32)
    got = lanczos_extremes(Matrices(a), start_of(a), tol=1e-12, max_steps=150)
    assert (got.bottom[0], got.top[0]) == (pytest.approx(-1, rel=1e-5), pytest.approx(1, rel=1e-5))
