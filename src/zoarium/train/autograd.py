"""Stacks of any module: the stacked forward pass of `zoarium.nets`, differentiated by autograd.

The models of a stack do not interact, so one backward pass of the summed losses gives every model its own gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoarium.data.dataset import Split, Task
from zoarium.nets import StackedNet
from zoarium.train.chain import score


class AutogradStack:
    """n models of one architecture behind the same interface as :class:`~zoarium.train.chain.ChainStack`.

    Parameters
    ----------
    net : StackedNet
        The architecture.
    n : int
        Number of models.
    task : {"classification", "regression", "language"}
    smoothing : sequence of float
        Label smoothing of each model.
    """

    def __init__(
        self, net: StackedNet, n: int, task: Task, smoothing: Sequence[float],
        dtype: torch.dtype, device: torch.device | str,
    ) -> None:  # fmt: skip
        self.net, self.n = net, n
        self.task: Task = task
        self.smoothing = torch.tensor(smoothing, dtype=dtype, device=device)
        self.named = {
            name: torch.zeros(n, *shape, dtype=dtype, device=device).requires_grad_()
            for name, shape in net.layout.shapes
        }
        self.buffers = {
            name: buffer.detach().to(device, dtype if buffer.is_floating_point() else buffer.dtype)
            .expand(n, *buffer.shape).clone()
            for name, buffer in net.module.named_buffers()
        }  # fmt: skip
        self.params = [p.detach().view(n, -1) for p in self.named.values()]
        self.adds_up = True
        self.grads = [torch.zeros_like(p) for p in self.params]
        self.net.module.to(device)

    def load(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Put the weights and buffers of one model in its row."""
        with torch.no_grad():
            for name, tensor in {**self.named, **self.buffers}.items():
                tensor[row] = state[name]

    def dump(self, architecture: int, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named parameters (k, *shape) and buffers of some rows (copies)."""
        index = torch.as_tensor(rows, device=self.params[0].device)
        params = {name: p.detach()[index] for name, p in self.named.items()}
        return params, {name: b[index] for name, b in self.buffers.items()}

    def inputs(self, x: Tensor) -> Tensor:
        """Return samples as this stack reads them."""
        like = self.params[0]
        return x.to(like) if x.is_floating_point() else x.to(like.device)

    def gather(self, x: Tensor, y: Tensor, index: Tensor) -> list[tuple[Tensor, ...]]:
        """Micro-batches for :meth:`accumulate`: rows `index` (m, n, b) of the inputs and targets."""
        flat = index.flatten()
        shape = index.shape
        rows, targets = x.index_select(0, flat), y.index_select(0, flat)
        return list(
            zip(rows.view(*shape, *x.shape[1:]).unbind(0), targets.view(*shape, *y.shape[1:]).unbind(0), strict=True)
        )

    def accumulate(self, batch: tuple[Tensor, ...]) -> None:
        """Add the gradients of the summed losses of one micro-batch a model."""
        x, y = batch
        with torch.enable_grad():
            self.net.module.train()
            out = self.net(self.named, x, self.buffers, per_model=True)  # (n, b, c), for tokens (n, b, t, c)
            loss = self._loss(out, y)
            grads = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True)
        for total, grad in zip(self.grads, grads, strict=True):
            if grad is not None:
                (total.add_ if self.adds_up else total.copy_)(grad.reshape(total.shape))

    def _loss(self, out: Tensor, y: Tensor) -> Tensor:
        if self.task == "regression":
            return (out - y).square().mean(-1).sum()
        log_p = F.log_softmax(out, dim=-1)
        right = log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        smooth = self.smoothing.view(-1, *[1] * (y.dim() - 1))
        per_sample = y[0, 0].numel()  # tokens of a sequence: its loss is their mean
        return -((1 - smooth) * right + smooth * log_p.mean(-1)).sum() / per_sample

    def evaluate(self, split: Split, rows: slice) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of a contiguous slice of models on prepared samples, each (k,)."""
        x, y = split.x, split.y
        self.net.module.eval()
        params = {name: p.detach()[rows] for name, p in self.named.items()}
        buffers = {name: b[rows] for name, b in self.buffers.items()}
        chunk = max(32, 1024 // (rows.stop - rows.start))
        loss = hit = torch.zeros(rows.stop - rows.start, dtype=self.params[0].dtype, device=x.device)
        with torch.no_grad():
            for s in range(0, len(x), chunk):
                out = self.net(params, x[s : s + chunk], buffers)
                target = y[s : s + chunk]
                if self.task == "language":
                    out, target = out.flatten(1, 2), target.flatten()
                here, right = score(out.transpose(1, 2).contiguous(), target, self.task)
                loss, hit = loss + here, hit + right
        count = y.numel() if self.task == "language" else len(y)
        return loss / count, hit / count
