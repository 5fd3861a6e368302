"""Derivatives of the training loss with respect to the outputs of a net.

Cross-entropy of outputs f with class y, p = softmax(f):   gradient p - e_y,   Hessian diag(p) - p pᵀ.
Squared error, mean over the c outputs:                    gradient 2(f - y)/c, Hessian (2/c) I.

Both Hessians have the form diag(m) - q qᵀ, which is all the exact trace needs.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from zoarium._core.errors import MeasureError
from zoarium.data.dataset import Task

Curvature = Literal["hessian", "ggn"]


def check_targets(outputs: Tensor, y: Tensor, task: Task) -> None:
    """Raise where targets `y` do not fit outputs (n, b, c), or (n, b, t, c) for tokens."""
    if task != "regression":
        if outputs.shape[2:-1] != y.shape[1:]:
            raise MeasureError(
                f"the nets give outputs of shape {tuple(outputs.shape[1:])} for targets of shape {tuple(y.shape)}; "
                "measure them on the data they were trained on."
            )
        classes = int(y.max()) + 1
        if classes > outputs.shape[-1]:
            raise MeasureError(
                f"the data have classes up to {classes - 1} but the nets have {outputs.shape[-1]} outputs; "
                "measure them on the data they were trained on."
            )
    elif targets(y).shape[-1] != outputs.flatten(2).shape[-1]:
        raise MeasureError(
            f"the targets have {targets(y).shape[-1]} numbers but the nets have {outputs.shape[-1]} outputs; "
            "measure them on the data they were trained on."
        )


def targets(y: Tensor) -> Tensor:
    """Regression targets as (b, c)."""
    return y.flatten(1) if y.ndim > 1 else y.unsqueeze(1)


def predictions(outputs: Tensor, y: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Outputs (n, B, c) and targets (B, ...) of single predictions: the tokens of sequences stand one after another."""
    return (outputs.flatten(1, 2), y.flatten()) if task == "language" else (outputs, y)


def loss_of(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """Loss of each sample, (n, b), of outputs (n, b, c); the mean over its tokens, of outputs (n, b, t, c)."""
    if task == "language":
        flat, tokens = predictions(outputs, y, task)
        return loss_of(flat, tokens, "classification").view(len(outputs), *y.shape).mean(2)
    if task == "classification":
        n, b, c = outputs.shape
        return functional.cross_entropy(outputs.reshape(n * b, c), y.repeat(n), reduction="none").view(n, b)
    return (outputs - targets(y)).square().mean(2)


class OutputLoss:
    """Derivatives of the loss, times `scale`, at the outputs of n models on b samples.

    Parameters
    ----------
    outputs : Tensor
        (n, c, b): classes before samples, so that sums over few classes run along long rows.
    y : Tensor
        Classes (b,) or regression targets (b, c).
    task : {"classification", "regression", "language"}
        For language, each token is a sample: see :func:`predictions`.
    scale : float
        Usually 1 / N, for a mean over N samples.

    Attributes
    ----------
    gradient : Tensor
        (n, c, b).
    """

    def __init__(self, outputs: Tensor, y: Tensor, task: Task, scale: float) -> None:
        self.task = task
        self.scale = scale
        if task != "regression":
            # A confident model has 1 - p of its class near rounding; float64 keeps what little curvature is left.
            p = outputs.double().softmax(1)
            gradient = p.scatter_add(1, y.expand(len(p), 1, -1), -torch.ones_like(p[:, :1]))
            self.probabilities = p.to(outputs.dtype)
            self.scaled = self.probabilities * scale
        else:
            gradient = 2 / outputs.shape[1] * (outputs - targets(y).T)
        self.gradient = gradient.mul_(scale).to(outputs.dtype)
        self.outputs = outputs

    @cached_property
    def likeliest(self) -> Tensor:
        """Class each model finds likeliest, (n, 1, b)."""
        return self.outputs.max(1, keepdim=True).indices  # several times faster than argmax along this axis

    def select(self, rows: Tensor) -> OutputLoss:
        """Keep the derivatives of some of the models."""
        some = object.__new__(OutputLoss)
        some.__dict__.update({k: v[rows] if isinstance(v, Tensor) else v for k, v in self.__dict__.items()})
        return some

    def hessian_product(self, v: Tensor) -> Tensor:
        """Multiply `v` (n, c, b) by the Hessian in the outputs."""
        return self.hessian_product_(v.clone())

    def hessian_product_(self, v: Tensor) -> Tensor:
        """Multiply `v` (n, c, b) by the Hessian in the outputs, in place."""
        if self.task == "regression":
            return v.mul_(2 / v.shape[1] * self.scale)
        # A constant added to v changes nothing; this one makes the large terms of a confident model vanish exactly.
        v -= v.gather(1, self.likeliest)
        v -= (self.probabilities * v).sum(1, keepdim=True)
        return v.mul_(self.scaled)

    def diagonal_and_rank_one(self) -> tuple[Tensor, Tensor]:
        """`m` and `q`, both (n, c, b), with Hessian = scale (diag(m) - q qᵀ)."""
        if self.task == "regression":
            return torch.full_like(self.outputs, 2 / self.outputs.shape[1]), torch.zeros_like(self.outputs)
        return self.probabilities, self.probabilities
