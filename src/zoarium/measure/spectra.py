"""Spectra of weight matrices: norms, ranks, and the power law of their eigenvalues.

With the singular values sigma_i of W, of shape (N, M) with N >= M, and the eigenvalues lambda_i = sigma_i^2 / N of
W^T W / N:

    stable rank    = ||W||_F^2 / ||W||_2^2 = sum sigma_i^2 / sigma_1^2
    effective rank = exp(- sum p_i ln p_i),     p_i = sigma_i / sum sigma_j          (Roy & Vetterli 2007)
    density of the tail                         rho(lambda) ~ lambda^(-alpha),  lambda >= x_min   (Martin & Mahoney)
    alpha          = 1 + n / sum ln(lambda_i / x_min),   stderr = (alpha - 1) / sqrt(n)   (Clauset et al. 2009)

with n eigenvalues in the tail (sections 3.1 and 3.2) and x_min the eigenvalue that brings the fitted law and the tail
closest together by Kolmogorov and Smirnov's distance (3.3).

Clauset, Shalizi & Newman, "Power-law distributions in empirical data", SIAM Review 2009. Martin & Mahoney, "Implicit
self-regularization in deep neural networks", JMLR 2021. Martin, Peng & Mahoney, "Predicting trends in the quality of
state-of-the-art neural networks without access to training or testing data", Nature Communications 2021. Roy &
Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates
from zoarium._core.seeds import stream
from zoarium.data.dataset import Dataset
from zoarium.measure.registry import measure
from zoarium.measure.weight_matrices import as_matrix, why_left_out
from zoarium.zoo.cohort import Cohort

MIN_TAIL = 10  # eigenvalues a fit needs
FLAT = 1e-5  # a tail whose eigenvalues agree to this relative spread holds no law but rounding
BLOCK = 1 << 22  # numbers of the table of candidates held at once
CHUNK = 1 << 25  # numbers of a stack of matrices held at once


def singular_values(tensor: Tensor) -> np.ndarray:
    """Singular values of one tensor as a matrix, largest first.

    Parameters
    ----------
    tensor : Tensor
        Finite, any type of real number, two axes or more; kernels are read as (out, in * k * k). Not changed.

    Returns
    -------
    array of shape (min(out, in),), float64

    Raises
    ------
    MeasureError
        For fewer than two axes.

    Notes
    -----
    Works in one float64 copy of the tensor (float32 for 16- and 8-bit numbers) that LAPACK overwrites, so the peak is
    3 times the tensor for 16 and 32 bits, 2 times for 64 and 5 times for 8. Time of order out * in * min(out, in).
    """
    from scipy.linalg import svd

    if tensor.dim() < 2:
        raise MeasureError(f"a tensor of shape {tuple(tensor.shape)} is no matrix; give one of two axes or more.")
    matrix = as_matrix(tensor)
    copy = torch.empty(matrix.shape, dtype=torch.float32 if matrix.element_size() < 4 else torch.float64)
    copy.copy_(matrix)
    # The transpose of rows is in the column order of LAPACK, and has the same singular values.
    values = svd(copy.numpy().T, compute_uv=False, overwrite_a=True, check_finite=False)
    return np.asarray(values, dtype=np.float64)


def frobenius_norm(singular: ArrayLike) -> np.ndarray:
    """||W||_F from singular values (..., k)."""
    return np.linalg.norm(np.asarray(singular, dtype=float), axis=-1)


def spectral_norm(singular: ArrayLike) -> np.ndarray:
    """||W||_2, the largest of the singular values (..., k)."""
    return np.asarray(singular, dtype=float).max(-1)


def stable_rank(singular: ArrayLike) -> np.ndarray:
    """||W||_F^2 / ||W||_2^2 from singular values (..., k): between 1 and the rank; NaN for a matrix of zeros.

    >>> float(stable_rank([2.0, 2.0, 0.0]))
    2.0
    """
    sigma = np.asarray(singular, dtype=float)
    return np.square(_divided(sigma, sigma.max(-1))).sum(-1)


def effective_rank(singular: ArrayLike) -> np.ndarray:
    """Exponential of the entropy of the normalised singular values (..., k): between 1 and the rank; NaN for zeros.

    >>> round(float(effective_rank([2.0, 2.0, 0.0])), 6)
    2.0
    """
    sigma = np.asarray(singular, dtype=float)
    p = _divided(sigma, sigma.sum(-1))
    return np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(-1))


def eigenvalues(singular: ArrayLike, shape: tuple[int, int], *, precision: float = 2.3e-16) -> np.ndarray:
    """Positive eigenvalues of W^T W / N, N the longer side, smallest first.

    Parameters
    ----------
    singular : array of shape (k,)
    shape : (int, int)
        Of the matrix.
    precision : float, default 2.3e-16
        Relative rounding of the type the singular values were computed in. Those below ``max(shape) * precision`` of
        the largest are left out as rounding.
    """
    sigma = np.sort(np.asarray(singular, dtype=float))
    return np.square(sigma[sigma > sigma[-1] * max(shape) * precision]) / max(shape)


@dataclass(frozen=True)
class PowerLaw:
    """A power law fitted to the upper tail of positive numbers.

    Parameters
    ----------
    alpha : float
        Exponent of the density; NaN where none can be fitted.
    stderr : float
        (alpha - 1) / sqrt(n_tail).
    low, high : float
        Confidence interval of alpha for the x_min used.
    x_min : float
        Where the tail begins.
    n_tail : int
        Numbers in the tail.
    distance : float
        Kolmogorov and Smirnov's distance between the tail and the law.
    reason : str
        Why there is no fit; empty where there is one.
    """

    alpha: float = math.nan
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan
    x_min: float = math.nan
    n_tail: int = 0
    distance: float = math.nan
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"no power law: {self.reason}"
        return f"alpha {self.alpha:.3g} [{self.low:.3g}, {self.high:.3g}] ({self.n_tail} in the tail)"


def fit_power_law(
    values: ArrayLike, *, x_min: float | None = None, min_tail: int = MIN_TAIL, level: float = 0.95
) -> PowerLaw:
    """Fit a power law to the upper tail of positive numbers, by maximum likelihood.

    Parameters
    ----------
    values : array of shape (m,)
        Such as `eigenvalues`; zeros are left out.
    x_min : float, optional
        Where the tail begins; default the value of least Kolmogorov-Smirnov distance among those that leave `min_tail`.
    min_tail : int, default 10
        Numbers a tail must have.
    level : float, default 0.95
        Coverage aimed at by the interval.

    Returns
    -------
    PowerLaw
        NaN with a reason for values that are not finite, fewer than `min_tail` in the tail, or a tail of equal values.

    Notes
    -----
    For given x_min, 2 (alpha - 1) sum ln(x_i / x_min) follows a chi-squared law of 2 n degrees of freedom (2 (n - 1)
    where x_min is one of the values), which gives the interval exactly. It does not know that x_min was chosen on the
    same data: on samples that are power laws throughout, the 95 % interval then covers alpha in 92 to 93 % of draws
    (2000 draws each of 60 and of 300 numbers). Where a body of another density joins the tail without a step, x_min may
    lie somewhat inside the body. Time of order m^2.

    Examples
    --------
    >>> import numpy as np
    >>> draw = np.random.default_rng(0).random(1000) ** (-1 / 1.5)  # density x^-2.5 from 1 on
    >>> print(fit_power_law(draw, x_min=1.0))
    alpha 2.57 [2.48, 2.67] (1000 in the tail)
    """
    if min_tail < 2:
        raise MeasureError(f"min_tail must be at least 2, found {min_tail}.")
    x = np.asarray(values, dtype=float).ravel()
    if not np.isfinite(x).all():
        return PowerLaw(reason="eigenvalues are not finite")
    logs = np.log(np.sort(x[x > 0]))  # (m,)
    if x_min is not None:
        logs = logs[logs >= math.log(x_min)]
    m = len(logs)
    if m < min_tail:
        return PowerLaw(n_tail=m, reason=f"{m} eigenvalues in the tail, fewer than {min_tail}")
    if logs[-1] - logs[0] < FLAT:
        return PowerLaw(reason="all eigenvalues are equal up to rounding")
    if x_min is None:
        start, distance = _best_start(logs, min_tail)
        if start < 0:
            return PowerLaw(reason="all tails hold equal eigenvalues")
        begin, freedom = logs[start], 2 * (m - start - 1)
    else:
        start, begin, freedom = 0, math.log(x_min), 2 * m
        distance = float(_distances(logs, np.array([0]), np.array([begin]))[0])
    n = m - start
    total = float((logs[start:] - begin).sum())
    alpha = 1 + n / total
    from scipy.stats import chi2

    low, high = 1 + chi2.ppf([(1 - level) / 2, (1 + level) / 2], freedom) / (2 * total)
    return PowerLaw(alpha, (alpha - 1) / math.sqrt(n), float(low), float(high), math.exp(begin), n, distance)


def _best_start(logs: np.ndarray, min_tail: int) -> tuple[int, float]:
    """Index at which the tail of least distance begins, and that distance; -1 where there is none."""
    starts = np.arange(len(logs) - min_tail + 1)
    starts = starts[(logs[-1] - logs[starts] >= FLAT) & ((starts == 0) | (logs[starts] > logs[starts - 1]))]
    if not len(starts):
        return -1, math.nan
    rows = max(1, BLOCK // len(logs))
    parts = [starts[i : i + rows] for i in range(0, len(starts), rows)]
    distances = np.concatenate([_distances(logs, part, logs[part]) for part in parts])
    best = int(distances.argmin())
    return int(starts[best]), float(distances[best])


def _distances(logs: np.ndarray, starts: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov distance of each tail ``logs[start:]`` from the law fitted to it, (s,)."""
    first = starts.min()
    index = np.arange(first, len(logs))
    inside = index >= starts[:, None]  # (s, m)
    above = np.where(inside, logs[index] - begins[:, None], 0.0)
    n = (len(logs) - starts)[:, None]
    fitted = -np.expm1(-above * (n[:, 0] / above.sum(1))[:, None])
    step = index - starts[:, None]
    gap = np.maximum(fitted - step / n, (step + 1) / n - fitted)  # below and above each step of the sample
    return np.where(inside, gap, 0.0).max(1)


def power_law_p(values: ArrayLike, *, resamples: int = 200, min_tail: int = MIN_TAIL, seed: int = 0) -> float:
    """Probability that a true power law fits as badly (Clauset et al. 2009, section 4.1); small p speaks against one.

    Parameters
    ----------
    values : array of shape (m,)
    resamples : int, default 200
        Synthetic samples: the fitted law above x_min, draws from the data below it, refitted each.
    min_tail : int, default 10
    seed : int, default 0

    Returns
    -------
    float
        NaN where there is no fit.
    """
    fit = fit_power_law(values, min_tail=min_tail)
    if fit.reason:
        return math.nan
    x = np.asarray(values, dtype=float).ravel()
    x = x[x > 0]
    body = x[x < fit.x_min]
    draw = np.random.default_rng(stream("power-law", seed))
    worse = 0
    for _ in range(resamples):
        tail = draw.binomial(len(x), fit.n_tail / len(x))
        high = fit.x_min * draw.random(tail) ** (-1 / (fit.alpha - 1))
        low = draw.choice(body, len(x) - tail) if len(body) else body
        worse += fit_power_law(np.concatenate([low, high]), min_tail=min_tail).distance >= fit.distance
    return worse / resamples


def _divided(sigma: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(sigma, by[..., None], out=np.full_like(sigma, np.nan), where=by[..., None] > 0)


def cohort_spectra(cohort: Cohort) -> tuple[dict[str, np.ndarray], list[str]]:
    """Singular values of the weight matrices of every model.

    Parameters
    ----------
    cohort : Cohort
        n models; which tensors are matrices is judged for each model alone (`why_left_out`).

    Returns
    -------
    spectra : dict of str to array of shape (n, k)
        NaN for a model whose tensor is left out; tensors left out in all models are absent.
    reasons : list of str
        For each model why it has none: weights that are not finite, or no matrix; empty elsewhere.
    """
    spectra: dict[str, np.ndarray] = {}
    n = len(cohort)
    finite = np.ones(n, dtype=bool)
    for name, stacked in cohort.params.items():
        each = stacked.detach().reshape(n, math.prod(stacked.shape[1:]))
        finite &= torch.isfinite(each).all(1).cpu().numpy()
        rows = [i for i in range(n) if not why_left_out(name, stacked[i])]
        if not rows:
            continue
        shape = as_matrix(stacked[0]).shape
        values = np.full((n, min(shape)), np.nan)
        size = max(1, CHUNK // shape.numel())
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            values[some] = torch.linalg.svdvals(stacked.detach()[some].flatten(2).double()).cpu().numpy()
        spectra[name] = values
    known = np.zeros(n, dtype=bool)
    for values in spectra.values():
        known |= np.isfinite(values[:, 0])
    reasons = [
        "" if ok and has else "no weight matrix" if ok else f"weights of {i} are not finite"
        for i, ok, has in zip(cohort.ids, finite, known, strict=True)
    ]
    return spectra, reasons


@measure(
    "spectral_alpha", scope="model", quantities=("spectral_alpha", "alpha_hat"),
    reference="Martin & Mahoney 2021, 'Implicit self-regularization in deep neural networks'; Martin, Peng & Mahoney "
    "2021; Clauset, Shalizi & Newman 2009",
    needs_data=False, cost="singular values of every matrix",
)  # fmt: skip
def spectral_alpha(cohort: Cohort, data: Dataset | None = None, *, min_tail: int = MIN_TAIL) -> dict[str, Estimates]:
    """Power-law exponents of the spectra of the weight matrices, as a mean over the layers.

    Parameters
    ----------
    min_tail : int, default 10
        Eigenvalues that the tail of a layer must have; a matrix whose shorter side is less has no exponent.

    Returns
    -------
    dict of str to Estimates
        ``spectral_alpha = mean_l alpha_l`` over the L layers that have an exponent, each layer counted once, and
        ``alpha_hat = mean_l alpha_l log10(lambda_l)``, weighted by the logarithm of the squared spectral norm
        lambda_l = ||W_l||_2^2 (the largest eigenvalue of W^T W, not divided by N). Their standard errors
        sqrt(sum_l se_l^2) / L and sqrt(sum_l (se_l log10 lambda_l)^2) / L take layers as independent and x_min as
        given. NaN with the reason where no layer has an exponent.
    """
    spectra, reasons = cohort_spectra(cohort)
    n = len(cohort)
    found = {q: np.full((2, n), np.nan) for q in ("spectral_alpha", "alpha_hat")}
    for i in range(n):
        fits, why = [], ""
        for name, values in spectra.items():
            if reasons[i] or math.isnan(values[i, 0]):
                continue
            side = as_matrix(cohort.params[name][i]).shape
            fit = fit_power_law(eigenvalues(values[i], (side[0], side[1])), min_tail=min_tail)
            why = why or (f"{name}: {fit.reason}" if fit.reason else "")
            if not fit.reason:
                fits.append((fit.alpha, fit.stderr, 2 * math.log10(values[i, 0])))
        if fits:
            alpha, error, weight = np.array(fits).T  # (layers,)
            found["spectral_alpha"][:, i] = alpha.mean(), np.linalg.norm(error) / len(fits)
            found["alpha_hat"][:, i] = (alpha * weight).mean(), np.linalg.norm(error * weight) / len(fits)
        else:
            reasons[i] = reasons[i] or f"no layer has a power law ({why})"
    return {q: Estimates(value, error, reason=reasons) for q, (value, error) in found.items()}
