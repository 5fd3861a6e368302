"""What curvature measures share: samples, the models that can be measured on them, chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoarium._core.errors import MeasureError, unknown_name
from zoarium.data.dataset import Dataset, Task
from zoarium.measure.curvature.output_loss import Curvature, check_targets
from zoarium.measure.curvature.products import Products, products_of
from zoarium.nets.stacked import ChainNet
from zoarium.zoo.cohort import Cohort

DENSE_LIMIT = 2_000  # parameters
CHAIN_CHUNK = 2**21  # activations of a chunk of models that still sit in a processor's cache
GRAPH_CHUNK = 2**23  # activations of a chunk whose graphs are kept, a few times this many numbers each


class CurvatureTask:
    """The samples, the models that can be measured on them, and why the others cannot."""

    def __init__(
        self, cohort: Cohort, data: Dataset, samples: int | None, split: str, curvature: Curvature, seed: int
    ) -> None:
        check_name("split", split, ("train", "test"))
        check_name("curvature", curvature, ("hessian", "ggn"))
        if samples is not None and samples < 1:
            raise MeasureError(f"samples must be at least 1, found {samples}; leave it out, or None for all.")
        part = getattr(data, split).sample(samples, "hessian", seed)
        if len(part) == 0:
            raise MeasureError(f"the {split} split of {data.name!r} is empty; measure on the other split.")
        dtype = next(iter(cohort.params.values())).dtype
        self.cohort = cohort
        self.task: Task = data.task
        self.curvature: Curvature = curvature
        self.x = cohort.inputs(part.x)
        self.y = part.y.to(dtype) if data.task == "regression" else part.y
        outputs = self._one_output() if len(cohort) else torch.zeros(1, *self.y[:1].shape, data.n_outputs)
        if outputs.ndim != 3 + (data.task == "language"):
            raise MeasureError(
                f"Hessian measures need one row of outputs a sample, found outputs of shape {tuple(outputs.shape[1:])} "
                "for one sample; measure a net that returns (batch, outputs)."
            )
        check_targets(outputs, self.y, self.task)
        self._activations = _activations(cohort, self.x[:1]) if len(cohort) else 1
        self._finite = torch.stack([v.flatten(1).isfinite().all(1) for v in cohort.params.values()]).all(0).numpy()

    @property
    def reasons(self) -> list[str]:
        """Why a model has no value, as far as is known by now; empty for the others."""
        bad = "its weights or outputs are not finite: the model diverged"
        return ["" if ok else bad for ok in self._finite]

    def diverged(self, rows: np.ndarray) -> None:
        """Note that the outputs of some models are not finite."""
        self._finite[rows] = False

    def _one_output(self) -> Tensor:
        try:
            return self.cohort.select([0])(self.x[:1])
        except RuntimeError as error:
            raise MeasureError(
                f"the nets cannot take inputs of shape {tuple(self.x.shape[1:])} ({error}); measure them on the data "
                "they were trained on."
            ) from error

    def _models_at_a_time(self) -> int:
        budget = CHAIN_CHUNK if isinstance(self.cohort.net, ChainNet) else GRAPH_CHUNK
        return max(1, budget // (self._activations * len(self.x)))

    def _samples_at_a_time(self) -> int:
        return min(len(self.x), max(1, GRAPH_CHUNK // self._activations))

    def chunks(self) -> Iterator[tuple[np.ndarray, Cohort]]:
        """Models of finite weights, a few at a time, with their rows."""
        rows = np.flatnonzero(self._finite)
        size = self._models_at_a_time()
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield some, self.cohort.select(some.tolist())

    def products(self) -> Iterator[tuple[np.ndarray, Products]]:
        """Curvature products of the models of finite outputs, a few at a time, with their rows."""
        batch = self._samples_at_a_time()
        for rows, part in self.chunks():
            products = products_of(part, self.x, self.y, self.task, curvature=self.curvature, batch=batch)
            finite = products.finite.numpy()
            if not finite.all():
                self.diverged(rows[~finite])
                rows, products = rows[finite], products.select(np.flatnonzero(finite).tolist())
            if len(rows):
                yield rows, products

    def dense(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Whole matrices of a few models at a time, with their rows."""
        p = self.cohort.layout.size
        if p > DENSE_LIMIT:
            raise MeasureError(
                f"a dense Hessian of {p:,} parameters would hold {p * p:,} numbers; the limit is {DENSE_LIMIT:,} "
                "parameters. Use method='auto' for the trace or 'lanczos' for eigenvalues."
            )
        for rows, products in self.products():
            columns = []
            for i in range(p):
                unit = torch.zeros(products.n, p, dtype=products.dtype)
                unit[:, i] = 1
                columns.append(products.to_flat(products(products.from_flat(unit))))
            matrix = torch.stack(columns, 2)
            yield rows, (matrix + matrix.mT) / 2


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise unless `name` is one of the `known`."""
    if name not in known:
        raise MeasureError(unknown_name(what, name, known))


def check_products(most: int) -> None:
    """Raise for a limit on products that allows no estimate."""
    if most < 2:
        raise MeasureError(
            f"max_products of a Hessian measure must be at least 2, found {most}; the default is a few 100."
        )


def _activations(cohort: Cohort, x: Tensor) -> int:
    """Numbers that one model's layers give for one sample."""
    count = 0

    def add(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, Tensor) else 0  # type: ignore[union-attr]

    leaves = [m for m in cohort.module.modules() if not list(m.children())]
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    try:
        with torch.no_grad():
            functional_call(cohort.module.eval(), cohort.state(0), (x,))
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, count)
