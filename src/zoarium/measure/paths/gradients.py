"""The gradient of a batch loss at the weights of many networks at once, written into memory that is used again."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoarium.data.dataset import Dataset
from zoarium.measure.paths.chains import SharedChain, with_ones
from zoarium.nets import Layout, StackedNet, stack
from zoarium.zoo.batchnorm import BATCH_NORMS
from zoarium.zoo.cohort import Cohort


def gradient_program(cohort: Cohort, data: Dataset) -> GradientProgram:
    """Choose the fastest program for the networks of a cohort on the training split."""
    chain = SharedChain.of(cohort.net, data.train.x)
    return GradientProgram(cohort, data) if chain is None else ChainProgram(cohort, data, chain)


class GradientProgram:
    """The gradient of the batch loss of m networks by autograd, over one block (m, p)."""

    def __init__(self, cohort: Cohort, data: Dataset) -> None:
        self.layout: Layout = cohort.layout
        self.task = data.task
        self.dtype = next(iter(cohort.params.values())).dtype
        y = data.train.y
        self.x = cohort.inputs(data.train.x)
        self.y = y.reshape(len(y), -1).to(self.dtype) if data.task == "regression" else y
        self.net: StackedNet = stack(_training_form(cohort.module))
        self.buffers = {k: v.clone() for k, v in cohort.buffers.items()}

    def pack(self, params: Mapping[str, Tensor]) -> list[Tensor]:
        """Stacked parameters as blocks (m, size), each in one piece."""
        return [self.layout.flatten(params)]

    def flatten(self, blocks: list[Tensor]) -> Tensor:
        """Blocks as rows (m, p) in the order of the layout."""
        return blocks[0]

    def bind(self, phi: list[Tensor], grad: list[Tensor]) -> None:
        """Name the blocks that :meth:`gradient` reads and overwrites."""
        self.phi, self.grad = phi, grad

    def shuffle(self, order: Tensor) -> None:
        """Put the samples of the coming epoch in order."""
        self.batch_x, self.batch_y = self.x[order], self.y[order]

    def gradient(self, start: int, stop: int) -> None:
        """Compute the gradient of the mean loss of samples start..stop of the epoch."""
        x, y = self.batch_x[start:stop], self.batch_y[start:stop]
        leaf = self.phi[0].detach().requires_grad_()
        with torch.enable_grad():
            out = self.net(self.layout.views(leaf), x, self.buffers)  # (m, b, c), for tokens (m, b, t, c)
            if self.task == "regression":
                loss = (out.flatten(2) - y).square().mean((1, 2)).sum()
            else:
                target = y.flatten().repeat(len(out))  # every token is a prediction of its own
                loss = F.cross_entropy(out.flatten(0, -2), target, reduction="sum") / y.numel()
            (found,) = torch.autograd.grad(loss, leaf)
        self.grad[0].copy_(found)


class ChainProgram(GradientProgram):
    """The same for a chain of linear layers, by hand."""

    def __init__(self, cohort: Cohort, data: Dataset, chain: SharedChain) -> None:
        super().__init__(cohort, data)
        self.chain = chain
        self.pack, self.flatten = chain.pack, chain.flatten
        self.x = with_ones(self.x)
        if self.task == "classification":
            self.y = F.one_hot(self.y, data.n_outputs).to(self.dtype)  # (N, c)

    def bind(self, phi: list[Tensor], grad: list[Tensor]) -> None:
        """Name the blocks that :meth:`gradient` reads and overwrites."""
        self.weights, self.into = self.chain.views(phi), self.chain.views(grad)

    def shuffle(self, order: Tensor) -> None:
        """Put the samples of the coming epoch in order."""
        self.batch_x = self.x.index_select(0, order)  # (N, d + 1)
        self.batch_y = self.y.index_select(0, order).t().contiguous()  # (c, N)

    def gradient(self, start: int, stop: int) -> None:
        """Compute the gradient of the mean loss of samples start..stop of the epoch."""
        x, y = self.batch_x[start:stop], self.batch_y[:, start:stop]
        out = self.chain.forward(self.weights, x)  # (m, c, b)
        if self.task == "classification":
            delta = torch.softmax(out, 1).sub_(y).mul_(1 / len(x))
        else:
            delta = (out - y).mul_(2 / (len(x) * out.shape[1]))
        self.chain.backward(delta, self.weights, x, self.into)


def _training_form(module: nn.Module) -> nn.Module:
    """Copy a module so that batch norm uses the batch and dropout is off."""
    module = copy.deepcopy(module).eval()
    for norm in module.modules():
        if isinstance(norm, BATCH_NORMS):
            norm.train()
    return module
