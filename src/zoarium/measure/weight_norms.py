"""Norms and ranks of a model's weights, and a report of every tensor of a model from anywhere.

    weight_norm = ||theta||_2,    spectral_norm = max_l ||W_l||_2,    stable_rank = mean_l ||W_l||_F^2 / ||W_l||_2^2

Neyshabur, Tomioka & Srebro, "Norm-based capacity control in neural networks", 2015; Rudelson & Vershynin, "Sampling
from large matrices", 2007 (stable rank).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoarium._core.estimates import Estimates
from zoarium.data.dataset import Dataset
from zoarium.measure.registry import measure
from zoarium.measure.spectra import (
    MIN_TAIL,
    cohort_spectra,
    effective_rank,
    eigenvalues,
    fit_power_law,
    frobenius_norm,
    singular_values,
    spectral_norm,
    stable_rank,
)  # fmt: skip
from zoarium.measure.weight_matrices import as_matrix, why_left_out
from zoarium.zoo.cohort import Cohort

if TYPE_CHECKING:
    import polars as pl

NUMBERS = (
    "frobenius_norm", "spectral_norm", "stable_rank", "effective_rank",
    "alpha", "alpha_stderr", "alpha_low", "alpha_high", "x_min", "ks_distance",
)  # fmt: skip


@measure(
    "weight_norm", scope="model", quantities=("weight_norm", "spectral_norm", "stable_rank"),
    reference="Neyshabur, Tomioka & Srebro 2015, 'Norm-based capacity control in neural networks'; Rudelson & "
    "Vershynin 2007, 'Sampling from large matrices'",
    needs_data=False, cost="singular values of every matrix",
)  # fmt: skip
def weight_norm(cohort: Cohort, data: Dataset | None = None) -> dict[str, Estimates]:
    """Norm of all parameters, largest spectral norm of a layer and mean stable rank of the layers.

    Returns
    -------
    dict of str to Estimates
        ``weight_norm``, of all parameters of the model together, biases and gains included; ``spectral_norm``, the
        largest over the weight matrices; ``stable_rank``, their plain mean. Kernels of convolutions are read as
        (out, in * k * k) matrices; which tensors are matrices, `why_left_out` tells. All exact; NaN with the reason
        for weights that are not finite, the last two also for a model without weight matrices.
    """
    spectra, reasons = cohort_spectra(cohort)
    n = len(cohort)
    norms = [
        torch.linalg.vector_norm(v.detach().reshape(n, math.prod(v.shape[1:])), dim=1, dtype=torch.float64)
        for v in cohort.params.values()
    ]
    norm = torch.stack(norms).norm(dim=0).cpu().numpy()  # (n,) of (tensors, n)
    broken = ["" if np.isfinite(v) else r or "the norm is too large for its number type" for v, r in zip(
        norm, reasons, strict=True)]  # fmt: skip
    largest, rank = np.full(n, np.nan), np.full(n, np.nan)
    rows = np.array([not reason for reason in reasons], dtype=bool)
    if spectra and rows.any():
        largest[rows] = np.nanmax([spectral_norm(s[rows]) for s in spectra.values()], axis=0)
        rank[rows] = np.nanmean([stable_rank(s[rows]) for s in spectra.values()], axis=0)
    return {
        "weight_norm": _exact(norm, broken),
        "spectral_norm": _exact(largest, reasons),
        "stable_rank": _exact(rank, reasons),
    }


def _exact(value: np.ndarray, reason: list[str]) -> Estimates:
    value = np.where(np.isfinite(value), value, np.nan)
    return Estimates(value, np.where(np.isnan(value), np.nan, 0.0), reason=reason)


def weight_report(tensors: Iterable[tuple[str, Tensor]], *, min_tail: int = MIN_TAIL) -> pl.DataFrame:
    """Norms, ranks and power law of every tensor of a model; no architecture is needed.

    Parameters
    ----------
    tensors : iterable of (str, Tensor)
        Such as ``state_dict.items()`` or a model from elsewhere, which reads one tensor at a time.
    min_tail : int, default 10
        Eigenvalues a power law needs.

    Returns
    -------
    polars.DataFrame
        A row a tensor, in the order given: ``name``, ``shape``, ``dtype``, ``kept``, ``reason`` (why it is left out, or
        empty), ``frobenius_norm``, ``spectral_norm``, ``stable_rank``, ``effective_rank``, ``alpha`` with
        ``alpha_stderr``, ``alpha_low`` and ``alpha_high`` (95 %), ``x_min``, ``n_tail``, ``ks_distance`` and
        ``alpha_reason`` (why there is no alpha). Numbers of tensors that are left out are null.

    Notes
    -----
    One tensor is held at a time, and its singular values are found in one copy of it (see `singular_values`): the peak
    is about 3 times the largest tensor of 16 or 32 bits.

    Examples
    --------
    >>> from torch import nn
    >>> report = weight_report(nn.Linear(20, 30).state_dict().items())
    >>> report.select("name", "kept", "reason").rows()
    [('weight', True, ''), ('bias', False, 'one axis: a bias or a gain')]
    """
    import polars as pl

    rows: list[dict[str, Any]] = []
    for name, tensor in tensors:
        rows.append({"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")})
        rows[-1] |= _row(name, tensor, min_tail)
        del tensor  # or it would be held while the next one is read
    schema: dict[str, Any] = {
        "name": pl.String, "shape": pl.List(pl.Int64), "dtype": pl.String, "kept": pl.Boolean, "reason": pl.String,
        **dict.fromkeys(NUMBERS, pl.Float64), "n_tail": pl.Int64, "alpha_reason": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _row(name: str, tensor: Tensor, min_tail: int) -> dict[str, Any]:
    reason = why_left_out(name, tensor)
    if reason:
        return {"kept": False, "reason": reason}
    out, inward = as_matrix(tensor).shape
    sigma = singular_values(tensor)
    # 16- and 8-bit numbers are worked on in float32.
    precision = float(torch.finfo(torch.float32 if tensor.element_size() < 4 else torch.float64).eps)
    fit = fit_power_law(eigenvalues(sigma, (out, inward), precision=precision), min_tail=min_tail)
    numbers = (
        frobenius_norm(sigma), spectral_norm(sigma), stable_rank(sigma), effective_rank(sigma),
        fit.alpha, fit.stderr, fit.low, fit.high, fit.x_min, fit.distance,
    )  # fmt: skip
    return {
        "kept": True, "reason": "", "n_tail": fit.n_tail, "alpha_reason": fit.reason,
        **{key: float(v) if math.isfinite(v) else None for key, v in zip(NUMBERS, numbers, strict=True)},
    }  # fmt: skip
