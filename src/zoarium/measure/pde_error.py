"""How well a physics-informed net solves its equation, and how well it satisfies it.

    relative L2 error = ‖u - u*‖ / ‖u*‖ on the test split,    residual = √ mean (u_t + β u_x)² at the collocation points

A small residual does not mean a small error: where training fails at large β, nets satisfy the equation nearly
everywhere and are far from its solution (Krishnapriyan et al. 2021, arXiv 2109.01050).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoarium._core.estimates import Estimates
from zoarium.data.convection import RESIDUAL, ROW
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.curvature.output_loss import check_targets, targets
from zoarium.measure.performance import NOT_FINITE, outputs_on
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

NO_NUMBERS = "defined for regression, and this is not"
NO_EQUATION = "the data hold no residual of an equation"
QUANTITIES = ("relative_error", "residual_error")


@measure(
    "pde_error", scope="model", quantities=QUANTITIES,
    reference="Krishnapriyan et al. 2021 (arXiv 2109.01050)", cost="one forward pass over both splits",
)  # fmt: skip
def pde_error(cohort: Cohort, data: Dataset) -> dict[str, Estimates]:
    """Relative error of the solution, and root mean square of the equation's residual.

    Parameters
    ----------
    cohort : Cohort
        n models.
    data : Dataset
        Any regression for the error; rows of an equation (``convection_pinn``) for the residual.

    Returns
    -------
    dict of str to Estimates
        ``relative_error``: ‖f(x) - y‖ / ‖y‖ over the test split, 0 for the solution and 1 for the answer 0.
        ``residual_error``: in units of the equation's left side. Standard errors by the delta method over points. NaN
        with a reason where a quantity is not defined.

    Examples
    --------
    >>> from zoarium.data import load
    >>> from zoarium.nets import build
    >>> data = load("convection_pinn", beta=2.0)
    >>> net = build("pinn_mlp", {"width": 8}, in_shape=data.in_shape, n_outputs=1)
    >>> _ = [torch.nn.init.zeros_(p) for p in net.parameters()]
    >>> got = pde_error(Cohort.from_modules([net]), data)
    >>> got["relative_error"].value.tolist(), got["residual_error"].value.tolist()
    ([1.0], [0.0])
    """
    n = len(cohort)
    if data.task != "regression":
        return dict.fromkeys(QUANTITIES, Estimates(np.full(n, np.nan), np.nan, 0, 0, [NO_NUMBERS] * n))
    error, y = _squares(cohort, data.test)  # (n, N), (N,)
    relative = _root_ratio(error, y)
    rows = data.train.x[:, 3] == RESIDUAL if data.in_shape == (ROW,) else torch.zeros(0, dtype=torch.bool)
    if not bool(rows.any()):
        none = Estimates(np.full(n, np.nan), np.nan, 0, 0, [NO_EQUATION] * n)
        return {"relative_error": relative, "residual_error": none}
    points = Split(data.train.x[rows], torch.zeros_like(data.train.y[rows]))
    square, _ = _squares(cohort, points)
    scale = points.x[:, 4].double().square()  # rows carry the weight of their part of the loss
    return {"relative_error": relative, "residual_error": _root_ratio(square / scale, torch.ones_like(scale))}


def _squares(cohort: Cohort, split: Split) -> tuple[Tensor, Tensor]:
    """Squared errors (n, N) and squared targets (N,) of samples."""
    y = targets(split.y).double()
    parts = []
    for rows, out in outputs_on(cohort, split.x):
        check_targets(out, split.y[rows], "regression")
        parts.append((out.flatten(2).double() - y[rows]).square().sum(2))
    return torch.cat(parts, 1), y.square().sum(1)


def _root_ratio(numerator: Tensor, denominator: Tensor) -> Estimates:
    """√(Σ a / Σ b) over samples with its standard error; `b` is taken as given."""
    total = denominator.sum()
    ratio = (numerator.sum(1) / total).numpy()
    count = numerator.shape[1]
    spread = (numerator.std(1) * count**0.5 / total).numpy() if count > 1 else np.full(len(ratio), np.nan)
    finite = np.isfinite(ratio)
    value = np.sqrt(np.where(finite, ratio, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = np.where(value > 0, spread / (2 * value), 0.0)
    return Estimates(value, np.where(finite, stderr, np.nan), count, 0, ["" if ok else NOT_FINITE for ok in finite])
