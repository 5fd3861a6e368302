import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from zoarium._core.statistics import (
    StatisticsError,
    benjamini_hochberg,
    bootstrap_interval,
    otsu,
    partial_spearman,
    permutation_p,
    spearman,
    wilson_interval,
)  # fmt: skip

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_intervals_of_the_mean_cover_the_truth_about_as_often_as_they_say(method):
    random = np.random.default_rng(0)
    hits = [
        0.0 in bootstrap_interval(random.normal(size=30), method=method, level=0.9, resamples=300, seed=i)
        for i in range(120)
    ]
    assert 0.8 <= np.mean(hits) <= 0.97


def test_resampling_groups_gives_a_wider_interval_than_resampling_rows_that_are_copies():
    random = np.random.default_rng(1)
    values = np.repeat(random.normal(size=8), 10)
    rows = bootstrap_interval(values, method="percentile")
    whole = bootstrap_interval(values, method="percentile", groups=np.repeat(np.arange(8), 10))
    assert whole.value == pytest.approx(rows.value)
    assert (whole.high - whole.low) > 2 * (rows.high - rows.low)


def test_a_seed_fixes_the_interval_and_nan_rows_do_not_count():
    values = [1.0, 2.0, 4.0, 8.0]
    first = bootstrap_interval(values, seed=3, resamples=50)
    assert first == bootstrap_interval([*values, np.nan], seed=3, resamples=50)
    assert first != bootstrap_interval(values, seed=4, resamples=50)


def test_one_row_has_a_value_but_no_interval_and_equal_rows_have_one_of_width_zero():
    assert np.isnan(bootstrap_interval([]).value)
    alone = bootstrap_interval([2.0])
    assert alone.value == 2.0 and np.isnan([alone.low, alone.high]).all()
    equal = bootstrap_interval([2.0, 2.0, 2.0])
    assert (equal.low, equal.high) == (2.0, 2.0)


def test_groups_of_the_wrong_length_are_named():
    with pytest.raises(StatisticsError, match=r"3 rows but 2 groups"):
        bootstrap_interval([1.0, 2.0, 3.0], groups=[0, 1])


def test_the_permutation_test_of_few_numbers_is_exact():
    difference, p = permutation_p([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    assert difference == -10.0
    assert p == pytest.approx(2 / 20)


@given(arrays(float, st.integers(2, 12), elements=NUMBERS))
@settings(max_examples=60, deadline=None)
def test_otsus_cut_is_the_split_that_leaves_least_variance_within(values):
    cut, separation = otsu(values)
    distinct = np.unique(values)
    if len(distinct) < 2 or np.diff(distinct).min() < 1e-6:
        return
    within = [sum(part.var() * len(part) for part in (values[values <= c], values[values > c])) for c in distinct[:-1]]
    chosen = sum(part.var() * len(part) for part in (values[values <= cut], values[values > cut]))
    assert chosen == pytest.approx(min(within), rel=1e-6, abs=1e-6)
    assert 0 < separation <= 1 + 1e-9


def test_otsu_works_on_rows_at_once_and_leaves_nan_and_infinity_out():
    rows = np.array([[1.0, 2.0, 10.0, np.nan], [np.nan, 5.0, 5.0, np.inf], [np.nan, np.nan, np.nan, np.nan]])
    cut, separation = otsu(rows)
    assert cut[0] == otsu([1.0, 2.0, 10.0])[0] == 6.0
    assert np.isnan(cut[1:]).all() and np.isnan(separation[1:]).all()


def test_otsus_separation_tells_two_heaps_from_an_even_spread():
    assert otsu(np.linspace(0, 1, 401))[1] == pytest.approx(0.75, abs=0.01)
    assert otsu([0.0, 0.1, 5.0, 5.1])[1] > 0.99


@given(arrays(float, (2, 8), elements=NUMBERS))
@settings(max_examples=40, deadline=None)
def test_spearman_agrees_with_scipy(xy):
    if any(len(np.unique(row)) == 1 for row in xy):
        assert np.isnan(spearman(*xy, resamples=10).value)
    else:
        assert spearman(*xy, resamples=10).value == pytest.approx(stats.spearmanr(*xy).statistic, abs=1e-9)


def test_the_interval_of_a_rank_correlation_holds_the_value_and_leaves_out_none_where_there_is_none():
    random = np.random.default_rng(0)
    x = random.normal(size=40)
    strong, none = spearman(x, x + 0.2 * random.normal(size=40)), spearman(x, random.normal(size=40))
    assert strong.low > 0.6 and strong.value in strong
    assert 0.0 in none


def test_a_common_cause_explains_a_correlation_away():
    random = np.random.default_rng(2)
    cause = random.normal(size=200)
    x, y = cause + 0.3 * random.normal(size=(2, 200))
    assert spearman(x, y, resamples=50).value > 0.8
    assert 0.0 in partial_spearman(x, y, cause)
    assert np.isnan(partial_spearman(x, y, x).value)


def test_partial_spearman_agrees_with_the_textbook_formula_for_one_variable():
    random = np.random.default_rng(3)
    x, y, z = random.normal(size=(3, 30))
    y = y + z
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_spearman(x, y, z, resamples=10).value == pytest.approx(expected)


def test_adjusted_p_values_keep_nan_in_its_place_and_never_shrink():
    p = np.array([0.01, np.nan, 0.04, 0.5])
    q = benjamini_hochberg(p)
    assert np.isnan(q[1])
    assert q[[0, 2, 3]] == pytest.approx(stats.false_discovery_control(p[[0, 2, 3]]))
    assert (q >= p)[[0, 2, 3]].all()


def test_wilsons_interval_is_not_a_point_when_every_trial_succeeds():
    found = wilson_interval(20, 20)
    assert found.value == 1.0 and found.high == pytest.approx(1.0) and 0.8 < found.low < 0.9
    assert np.isnan(wilson_interval(0, 0).value)
