"""Curvature of the training loss: trace and extreme eigenvalues of the Hessian, or of the Gauss-Newton matrix.

The loss is the mean cross-entropy (squared error for regression) of the net in evaluation mode, without weight decay,
on a fixed sample of a split, as in Yao et al., "PyHessian: neural networks through the lens of the Hessian", 2020.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset
from zoarium.measure.curvature.exact_trace import exact_trace, has_exact_trace
from zoarium.measure.curvature.hutchpp import hutchpp
from zoarium.measure.curvature.lanczos import lanczos_extremes
from zoarium.measure.curvature.output_loss import Curvature
from zoarium.measure.curvature.task import CurvatureTask, check_name, check_products
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort


@measure(
    "hessian_trace",
    scope="model",
    reference="Yao et al. 2020 (what); Botev et al. 2017, Meyer et al. 2021 (how)",
    cost="exact: about one forward and backward pass for a perceptron of one hidden layer; else Hessian products",
)
def hessian_trace(
    cohort: Cohort,
    data: Dataset,
    *,
    samples: int | None = 640,
    split: Literal["train", "test"] = "train",
    curvature: Curvature = "hessian",
    method: Literal["auto", "exact", "hutchpp", "hutchinson", "dense"] = "auto",
    rel_stderr: float = 0.02,
    max_products: int = 300,
    sketch: int = 10,
    seed: int = 0,
) -> Estimates:
    """Trace of the Hessian of the loss: the sum of its curvatures.

    Parameters
    ----------
    cohort : Cohort
        n models.
    data : Dataset
    samples : int or None, default 640
        Samples of the split, drawn once from `seed`; None for all.
    split : {"train", "test"}, default "train"
    curvature : {"hessian", "ggn"}, default "hessian"
        The generalised Gauss-Newton matrix leaves out the curvature of the net itself and is never negative.
    method : {"auto", "exact", "hutchpp", "hutchinson", "dense"}, default "auto"
        "exact" (no products, standard error 0) is for perceptrons, for nets of layers in a row that are piecewise
        linear in each parameter, and for the Gauss-Newton matrix of any net of layers in a row; see
        :mod:`zoarium.measure.curvature.exact_trace` for the proof. "auto" takes it where it applies and Hutch++
        elsewhere. "dense" builds the whole matrix.
    rel_stderr : float, default 0.02
        Standard error over value that the stochastic methods aim at.
    max_products : int, default 300
        Most Hessian-vector products a model; a model that would need more gets a larger standard error.
    sketch : int, default 10
        Width of the sketch of Hutch++.
    seed : int, default 0
        Draws the samples and, with each model's id, the probes.

    Returns
    -------
    Estimates
        `products` counts Hessian-vector products; NaN with a reason for models whose outputs are not finite.

    Raises
    ------
    MeasureError
        For an unknown method, data that do not fit the nets, ``method="exact"`` on a net it cannot take, or
        ``method="dense"`` on more than 2,000 parameters.

    See Also
    --------
    hessian_top_eigenvalue : the largest curvature instead of the sum.

    Examples
    --------
    >>> from zoarium.data import load
    >>> from zoarium.nets import build
    >>> from zoarium.zoo.cohort import Cohort
    >>> nets = [build("mlp", {"width": 8}, in_shape=(64,), n_outputs=10, seed=seed) for seed in range(3)]
    >>> trace = hessian_trace(Cohort.from_modules(nets), load("digits"))
    >>> trace.value.shape, trace.stderr, trace.products
    ((3,), array([0., 0., 0.]), array([0, 0, 0]))
    """
    check_name("method of hessian_trace", method, ("auto", "exact", "hutchpp", "hutchinson", "dense"))
    if not rel_stderr > 0:
        raise MeasureError(f"rel_stderr of hessian_trace must be positive, found {rel_stderr}; 0.02 asks for 2 %.")
    check_products(max_products)
    task = CurvatureTask(cohort, data, samples, split, curvature, seed)
    if method == "exact" and not has_exact_trace(cohort, curvature):
        raise MeasureError(
            f"the trace of the {curvature} of this net has no exact form here: it is not a row of known layers, or not "
            "piecewise linear in each parameter. Use method='auto' or 'hutchpp'."
        )
    n = len(cohort)
    value, stderr, spent = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=np.int64)
    if method == "dense":
        for rows, matrices in task.dense():
            value[rows], stderr[rows] = matrices.diagonal(dim1=1, dim2=2).sum(1).numpy(), 0.0
            spent[rows] = matrices.shape[1]
    elif method in ("auto", "exact") and has_exact_trace(cohort, curvature):
        for rows, part in task.chunks():
            traces = exact_trace(part, task.x, task.y, task.task, curvature=curvature).numpy()
            finite = np.isfinite(traces)
            task.diverged(rows[~finite])
            value[rows[finite]], stderr[rows[finite]] = traces[finite], 0.0
    else:
        for rows, products in task.products():
            draws = [generator("hessian_trace", seed, cohort.ids[i]) for i in rows]
            width = 0 if method == "hutchinson" else sketch
            got = hutchpp(products, draws, sketch=width, rel_stderr=rel_stderr, max_products=max_products)
            value[rows], stderr[rows], spent[rows] = got.value, got.stderr, got.products
    return Estimates(value, stderr, len(task.x), spent, task.reasons)


@measure(
    "hessian_top_eigenvalue",
    scope="model",
    reference="Lanczos 1950; Yao et al. 2020",
    quantities=("hessian_top_eigenvalue", "hessian_spectral_radius", "hessian_smallest_eigenvalue"),
    cost="ten to a hundred Hessian products",
)
def hessian_top_eigenvalue(
    cohort: Cohort,
    data: Dataset,
    *,
    samples: int | None = 640,
    split: Literal["train", "test"] = "train",
    curvature: Curvature = "hessian",
    method: Literal["lanczos", "dense"] = "lanczos",
    tol: float = 0.03,
    max_products: int = 200,
    seed: int = 0,
) -> dict[str, Estimates]:
    """Largest curvature of the loss, algebraically and by magnitude.

    Parameters
    ----------
    cohort : Cohort
        n models.
    data : Dataset
    samples, split, curvature, seed
        As for :func:`hessian_trace`.
    method : {"lanczos", "dense"}, default "lanczos"
    tol : float, default 0.03
        Bound over eigenvalue at which Lanczos stops. Errors are typically a hundred times smaller than the bound, and a
        tenfold sharper `tol` costs about two products.
    max_products : int, default 200
        Most Hessian-vector products a model.

    Returns
    -------
    dict of Estimates
        ``hessian_top_eigenvalue``, the largest; ``hessian_spectral_radius``, the largest absolute value, which is what
        power iteration finds; ``hessian_smallest_eigenvalue``, a by-product, as sharp as the other two happened to
        need. `stderr` is *a bound, not a standard error*: the eigenvalue lies between the value and the value moved
        outwards by it, but for a chance of 1 in 1,000 (see :mod:`zoarium.measure.curvature.lanczos`).

    Raises
    ------
    MeasureError
        For an unknown method, data that do not fit the nets, or ``method="dense"`` on more than 2,000 parameters.

    See Also
    --------
    hessian_trace : the sum of all eigenvalues.

    Examples
    --------
    >>> from zoarium.data import load
    >>> from zoarium.nets import build
    >>> from zoarium.zoo.cohort import Cohort
    >>> net = build("mlp", {"width": 8}, in_shape=(64,), n_outputs=10)
    >>> top = hessian_top_eigenvalue(Cohort.from_modules([net]), load("digits"))["hessian_top_eigenvalue"]
    >>> bool(top.stderr[0] < 0.03 * top.value[0])
    True
    """
    check_name("method of hessian_top_eigenvalue", method, ("lanczos", "dense"))
    if not tol > 0:
        raise MeasureError(f"tol of hessian_top_eigenvalue must be positive, found {tol}; 0.03 is the default.")
    check_products(max_products)
    task = CurvatureTask(cohort, data, samples, split, curvature, seed)
    n = len(cohort)
    top, bottom, top_bound, bottom_bound = (np.full(n, np.nan) for _ in range(4))
    spent = np.zeros(n, dtype=np.int64)
    if method == "dense":
        for rows, matrices in task.dense():
            eigenvalues = torch.linalg.eigvalsh(matrices.double()).numpy()
            top[rows], bottom[rows] = eigenvalues[:, -1], eigenvalues[:, 0]
            top_bound[rows] = bottom_bound[rows] = 0.0
            spent[rows] = matrices.shape[1]
    else:
        for rows, products in task.products():
            draws = [generator("hessian_top_eigenvalue", seed, cohort.ids[i]) for i in rows]
            start = torch.stack([torch.randn(products.size, generator=g, dtype=products.dtype) for g in draws])
            got = lanczos_extremes(products, start, tol=tol, max_steps=max_products)
            top[rows], bottom[rows] = got.top, got.bottom
            top_bound[rows], bottom_bound[rows], spent[rows] = got.top_bound, got.bottom_bound, got.products
    upper = np.abs(top) >= np.abs(bottom)
    radius, radius_bound = np.where(upper, np.abs(top), np.abs(bottom)), np.where(upper, top_bound, bottom_bound)
    found = {"top_eigenvalue": (top, top_bound), "spectral_radius": (radius, radius_bound)}
    found["smallest_eigenvalue"] = (bottom, bottom_bound)
    return {f"hessian_{k}": Estimates(v, e, len(task.x), spent, task.reasons) for k, (v, e) in found.items()}


def hessian_dense(
    cohort: Cohort,
    data: Dataset,
    *,
    samples: int | None = 640,
    split: Literal["train", "test"] = "train",
    curvature: Curvature = "hessian",
    seed: int = 0,
) -> Tensor:
    """Build the whole curvature matrix of each model, (n, p, p), in the coordinates of ``cohort.flat``.

    Parameters
    ----------
    cohort : Cohort
        n models of at most 2,000 parameters. Give ``cohort.to(torch.float64)`` for an oracle.
    data : Dataset
    samples, split, curvature, seed
        As for :func:`hessian_trace`.

    Returns
    -------
    Tensor
        Symmetric; NaN for models whose outputs are not finite. Costs p products and n p² numbers of memory.

    Raises
    ------
    MeasureError
        For more than 2,000 parameters.
    """
    task = CurvatureTask(cohort, data, samples, split, curvature, seed)
    out = cohort.flat.new_full((len(cohort), cohort.layout.size, cohort.layout.size), torch.nan)
    for rows, matrices in task.dense():
        out[torch.from_numpy(rows)] = matrices
    return out
