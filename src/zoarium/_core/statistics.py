"""Statistics for small tables: intervals, tests, rank correlations, a threshold.

What SciPy has is called, not rewritten; what is here fixes seeds, resamples by groups, and leaves NaN out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from zoarium._core.errors import ZoariumError
from zoarium._core.seeds import stream


class StatisticsError(ZoariumError):
    """Numbers a statistic cannot be computed from."""


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval; the ends are NaN where too few numbers allow none."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], Any] = np.mean,
    *,
    groups: ArrayLike | None = None,
    method: Literal["bca", "percentile"] = "bca",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of any statistic of rows of numbers.

    Parameters
    ----------
    values : array of shape (n,) or (n, ...)
        Rows; those with a NaN are left out.
    statistic : callable, default numpy.mean
        Maps some of the rows to one number.
    groups : array of shape (n,), optional
        Group of each row. Whole groups are resampled, as rows of one group are not independent.
    method : {"bca", "percentile"}, default "bca"
        Bias-corrected and accelerated (Efron 1987), or plain percentiles. Where BCa does not exist (all resamples
        equal), the percentiles are given.
    level : float, default 0.95
        Coverage aimed at.
    resamples : int, default 2000
    seed : int, default 0

    Returns
    -------
    Interval
        Its ends are NaN for fewer than two rows (or groups).

    Examples
    --------
    >>> print(bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0], method="percentile"))
    3 [1.8, 4.2]
    """
    from scipy.stats import bootstrap

    rows, parts = _finite_rows(values), None
    if groups is not None:
        labels = np.asarray(groups)
        if len(labels) != len(np.asarray(values)):
            raise StatisticsError(f"{len(np.asarray(values))} rows but {len(labels)} groups; give one group a row.")
        labels = labels[_is_finite(values)]
        parts = [rows[labels == label] for label in np.unique(labels)]
    if not len(rows):
        return Interval(math.nan, math.nan, math.nan, level)
    value = float(statistic(rows))
    units = len(rows) if parts is None else len(parts)
    if units < 2:
        return Interval(value, math.nan, math.nan, level)

    def of(index: np.ndarray) -> float:
        picked = index.astype(int)
        return float(statistic(rows[picked] if parts is None else np.concatenate([parts[i] for i in picked])))

    kind: Any = {"bca": "BCa", "percentile": "percentile"}.get(method)
    if kind is None:
        raise StatisticsError(f"method must be 'bca' or 'percentile', found {method!r}.")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # SciPy warns where BCa does not exist; what is given then is documented
        result = bootstrap(
            (np.arange(units),), of, vectorized=False, n_resamples=resamples, confidence_level=level, method=kind,
            rng=np.random.default_rng(stream("bootstrap", seed)),
        )  # fmt: skip
        low, high = result.confidence_interval
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = np.nanquantile(result.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def permutation_p(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Callable[..., Any] | None = None,
    *,
    kind: Literal["independent", "samples", "pairings"] = "independent",
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """A statistic of two samples and its probability under exchange: ``(statistic, p)``.

    Parameters
    ----------
    first, second : array
        The samples, without NaN.
    statistic : callable, optional
        Called as ``statistic(first, second)``; default the difference of means.
    kind : {"independent", "samples", "pairings"}, default "independent"
        What is exchangeable: all observations, the two of each pair, or which observation is paired with which.
    alternative : {"two-sided", "greater", "less"}, default "two-sided"
    resamples : int, default 9999
        Random permutations; all of them where there are fewer.
    seed : int, default 0

    Examples
    --------
    >>> difference, p = permutation_p([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    >>> difference, p
    (-10.0, 0.1)
    """
    from scipy.stats import permutation_test

    measured = statistic or (lambda x, y: float(np.mean(x) - np.mean(y)))
    result = permutation_test(
        (np.asarray(first, dtype=float), np.asarray(second, dtype=float)), measured, vectorized=False,
        permutation_type=kind, alternative=alternative, n_resamples=resamples,
        rng=np.random.default_rng(stream("permutation", seed)),
    )  # fmt: skip
    return float(result.statistic), float(result.pvalue)


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate (Benjamini and Hochberg 1995); NaN stays NaN.

    >>> benjamini_hochberg([0.01, 0.04, float("nan"), 0.03])
    array([0.03, 0.04,  nan, 0.04])
    """
    from scipy.stats import false_discovery_control

    q = np.array(p, dtype=float)
    known = np.isfinite(q)
    if known.any():
        q[known] = false_discovery_control(q[known])
    return q


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """Interval of a share (Wilson 1927): sensible at 0 and 1 and for few trials.

    >>> print(wilson_interval(10, 10))
    1 [0.722, 1]
    """
    from scipy.stats import binomtest

    if total < 1:
        return Interval(math.nan, 0.0, 1.0, level)
    found = binomtest(int(successes), int(total)).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / total, float(found.low), float(found.high), level)


def spearman(x: ArrayLike, y: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Spearman's rank correlation with a percentile-bootstrap interval over pairs; pairs with a NaN are left out.

    NaN for fewer than three pairs or a constant variable.

    >>> round(spearman([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]).value, 3)
    0.829
    """
    return partial_spearman(x, y, None, level=level, resamples=resamples, seed=seed)


def partial_spearman(
    x: ArrayLike,
    y: ArrayLike,
    given: ArrayLike | Sequence[ArrayLike] | None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Rank correlation of `x` and `y` once the ranks of other variables are regressed out of both.

    Parameters
    ----------
    x, y : array of shape (n,)
    given : array of shape (n,) or sequence of such arrays
        What is held fixed.
    level, resamples, seed
        Of the percentile-bootstrap interval over rows.

    Returns
    -------
    Interval
        NaN for too few rows (fewer than three more than there are given variables), or where nothing is left of `x` or
        `y`.
    """
    held = [] if given is None else list(np.atleast_2d(np.asarray(given, dtype=float)))
    columns = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float), *held])
    columns = columns[:, np.isfinite(columns).all(0)]
    n = columns.shape[1]
    if n < 3 + len(held):
        return Interval(math.nan, math.nan, math.nan, level)
    value = float(_partial_correlation(columns[None])[0])
    draw = np.random.default_rng(stream("spearman", seed))
    drawn = _partial_correlation(np.moveaxis(columns[:, draw.integers(n, size=(resamples, n))], 1, 0))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or math.isnan(value):
        return Interval(value, math.nan, math.nan, level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def _partial_correlation(columns: np.ndarray) -> np.ndarray:
    """Correlation of ranks of the first two rows of (B, k, n) given the rest, (B,)."""
    from scipy.stats import rankdata

    ranks = rankdata(columns, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    x, y, held = ranks[:, 0], ranks[:, 1], ranks[:, 2:]
    if held.shape[1]:
        fit = np.linalg.pinv(held.transpose(0, 2, 1))  # (B, k, n)
        x = x - np.einsum("bkn,bk->bn", held, np.einsum("bkn,bn->bk", fit, x))
        y = y - np.einsum("bkn,bk->bn", held, np.einsum("bkn,bn->bk", fit, y))
    n = x.shape[1]
    norms = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    # Residuals that rounding alone leaves count as none.
    return np.where(norms > 1e-9 * n**3, (x * y).sum(1) / np.where(norms > 0, norms, 1), np.nan)


def otsu(values: ArrayLike) -> tuple[Any, Any]:
    """Otsu's threshold of numbers along the last axis, and how well it separates them.

        cut = argmax w₀ w₁ (μ₀ - μ₁)²,    separation = w₀ w₁ (μ₀ - μ₁)² / σ²

    Every split of the sorted numbers is tried, so there are no bins to choose.

    Parameters
    ----------
    values : array of shape (..., n)
        NaN and infinity are left out.

    Returns
    -------
    cut, separation : float or arrays of shape (...)
        The midpoint of the best gap, and the share of the variance that lies between the two sides: 1 for two points,
        about 0.75 for evenly spread numbers and 0.64 for a normal law, which have no gap at all. NaN for fewer than two
        distinct numbers.

    References
    ----------
    Otsu, "A threshold selection method from gray-level histograms", 1979.

    Examples
    --------
    >>> cut, separation = otsu([1.0, 1.2, 0.9, 5.0, 5.1])
    >>> round(cut, 2), round(separation, 3)
    (3.1, 0.997)
    """
    numbers = np.asarray(values, dtype=float)
    ordered = np.sort(np.where(np.isfinite(numbers), numbers, np.nan), axis=-1)  # NaN last
    if ordered.shape[-1] < 2:
        nothing = np.full(ordered.shape[:-1], np.nan)
        return (float(nothing), float(nothing)) if ordered.ndim == 1 else (nothing, nothing)
    known = np.isfinite(ordered)
    count = known.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, ordered, 0).sum(-1, keepdims=True) / count
        centred = np.where(known, ordered - mean, 0)
        below = np.cumsum(centred, -1)[..., :-1]
        k = np.arange(1, ordered.shape[-1])
        # With centred numbers w₀ w₁ (μ₀ - μ₁)² = S₀² / (k (m - k)), S₀ the sum of the lower k of m.
        between = np.where((k < count) & (np.diff(ordered) > 0), below**2 / (k * (count - k)), -1.0)
        best = between.argmax(-1)[..., None]
        top = np.take_along_axis(between, best, -1)
        found = top > 0
        low, high = (np.take_along_axis(ordered, best + i, -1) for i in (0, 1))
        cut = np.where(found, low + (high - low) / 2, np.nan)[..., 0]
        separation = np.where(found, top / ((centred**2).sum(-1, keepdims=True) / count), np.nan)[..., 0]
    return (float(cut), float(separation)) if ordered.ndim == 1 else (cut, separation)


def _is_finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return np.asarray(np.isfinite(array).reshape(len(array), math.prod(array.shape[1:])).all(1))


def _finite_rows(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=float)[_is_finite(values)]
