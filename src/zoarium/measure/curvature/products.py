"""Products of the Hessian, or of the generalised Gauss-Newton matrix, with a vector for each of n stacked models.

    H = ∇²_θ (1/N) Σ_i ℓ(f(x_i; θ), y_i),        G = (1/N) Σ_i J_iᵀ ∇²_f ℓ_i J_i

The loss is the mean cross-entropy (or squared error) of the nets in evaluation mode, without weight decay. Models are
independent, so one pass serves all n. Perceptrons have a route of their own,
:mod:`zoarium.measure.curvature.chain_products`; any other net differentiates twice through autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from zoarium.data.dataset import Task
from zoarium.measure.curvature.chain_products import ChainProducts
from zoarium.measure.curvature.output_loss import Curvature, OutputLoss, loss_of, predictions
from zoarium.nets.stacked import ChainNet
from zoarium.zoo.cohort import Cohort


class Products(Protocol):
    """A symmetric (p, p) matrix for each of n models, known by its products."""

    n: int
    size: int
    dtype: torch.dtype
    finite: Tensor  # whether the outputs of each model are: (n,)

    def __call__(self, v: Tensor) -> Tensor:
        """Products (n, p) with vectors `v` (n, p)."""
        ...

    def select(self, rows: Sequence[int]) -> Products:
        """Keep the matrices of some of the models."""
        ...

    def to_flat(self, v: Tensor) -> Tensor:
        """Reorder (..., p) from the coordinates of the products to those of ``cohort.flat``."""
        ...

    def from_flat(self, v: Tensor) -> Tensor:
        """Reorder (..., p) from the coordinates of ``cohort.flat`` to those of the products."""
        ...


def products_of(
    cohort: Cohort, x: Tensor, y: Tensor, task: Task, *, curvature: Curvature = "hessian", batch: int | None = None
) -> Products:
    """Curvature products of every model of a cohort on the samples ``x, y``, by the fastest route for its net.

    Parameters
    ----------
    cohort : Cohort
        n models of p parameters.
    x, y : Tensor
        Samples (b, ...) and their classes (b,) or regression targets (b, c).
    task : {"classification", "regression", "language"}
    curvature : {"hessian", "ggn"}, default "hessian"
    batch : int, optional
        Samples held in memory at a time; default all.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from zoarium.zoo.cohort import Cohort
    >>> cohort = Cohort.from_modules([nn.Linear(2, 1, bias=False)])
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> hessian = products_of(cohort, x, y, "regression")  # (2/N) XᵀX
    >>> hessian(torch.ones(1, 2))
    tensor([[1., 4.]])
    """
    if isinstance(cohort.net, ChainNet):
        return ChainProducts(cohort, x, y, task, curvature, batch)
    return AutogradProducts(cohort, x, y, task, curvature, batch)


class AutogradProducts:
    """Curvature products of any stacked net, by differentiating twice; coordinates are those of ``cohort.flat``."""

    def __init__(
        self, cohort: Cohort, x: Tensor, y: Tensor, task: Task, curvature: Curvature, batch: int | None = None
    ) -> None:
        self._cohort, self._x, self._y = cohort, x, y
        self._task: Task = task
        self._curvature: Curvature = curvature
        self._batch = batch or len(x)
        self._flat = cohort.flat.requires_grad_()
        self.n, self.size = self._flat.shape
        self.dtype = self._flat.dtype
        batches = x.split(self._batch)
        self.finite = torch.stack([cohort(part).flatten(1).isfinite().all(1) for part in batches]).all(0)
        # The graph of the gradient is kept when one batch holds all the data; of several, each is built anew.
        self._kept = self._differentiate(0) if self._batch >= len(x) else None

    def __call__(self, v: Tensor) -> Tensor:
        """Products (n, p) with vectors `v` (n, p)."""
        if self._kept is not None:
            return self._kept(v)
        return torch.stack([self._differentiate(start)(v) for start in range(0, len(self._x), self._batch)]).sum(0)

    def select(self, rows: Sequence[int]) -> AutogradProducts:
        """Keep the matrices of some of the models."""
        cohort = self._cohort.select(rows)
        return AutogradProducts(cohort, self._x, self._y, self._task, self._curvature, self._batch)

    def to_flat(self, v: Tensor) -> Tensor:
        """`v` itself."""
        return v

    def from_flat(self, v: Tensor) -> Tensor:
        """`v` itself."""
        return v

    def _differentiate(self, start: int) -> Callable[[Tensor], Tensor]:
        """Return what one batch of data adds to the products, as a function of the vectors."""
        flat, scale = self._flat, 1 / len(self._x)
        x, y = self._x[start : start + self._batch], self._y[start : start + self._batch]
        with torch.enable_grad():
            f = self._cohort.net(self._cohort.layout.views(flat), x, self._cohort.buffers)  # (n, b, c)
            if self._curvature == "hessian":
                loss = loss_of(f, y, self._task).sum() * scale
                (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
                return lambda v: _pull(gradient, flat, v)
            # Jv is the derivative of Jᵀu in u, so one kept graph gives both directions.
            u = torch.zeros_like(f, requires_grad=True)
            (pulled,) = torch.autograd.grad(f, flat, u, create_graph=True)
        rows, each = predictions(f.detach(), y, self._task)  # (n, B, c)
        loss_at_f = OutputLoss(rows.mT, each, self._task, scale * len(y) / len(each))

        def product(v: Tensor) -> Tensor:
            along = _pull(pulled, u, v).view_as(rows).mT  # J v
            return _pull(f, flat, loss_at_f.hessian_product(along).mT.reshape_as(f))

        return product


def _pull(outputs: Tensor, inputs: Tensor, v: Tensor) -> Tensor:
    """Vᵀ times the Jacobian of `outputs` in `inputs`, keeping the graph; zero where nothing depends on anything."""
    if not outputs.requires_grad:
        return torch.zeros_like(inputs)
    (got,) = torch.autograd.grad(outputs, inputs, v, retain_graph=True, allow_unused=True)
    return torch.zeros_like(inputs) if got is None else got
