"""SGD, Adam and AdamW over stacked rows: every hyperparameter is a column of one value a model.

The gradient g arrives as a sum over the samples of a batch; 1/batch and gradient clipping are one factor

    s = min(1/b, clip / (||g|| + 1e-6 b))        (torch: g/b scaled by min(1, clip / (||g||/b + 1e-6)))

SGD            m <- mu m + s g + wd w,   w <- w - lr m          (Nesterov: w <- w - lr (s g + wd w + mu m))
Adam           u = s g + wd w;  m <- b1 m + (1-b1) u,  v <- b2 v + (1-b2) u^2,  w <- w - lr/c1 m / (sqrt(v/c2) + eps)
AdamW          w <- (1 - lr wd) w first, then Adam with wd = 0;  c1 = 1 - b1^t, c2 = 1 - b2^t

Sutskever et al. 2013; Kingma & Ba 2015; Loshchilov & Hutter 2019.

The n rows are stored block after block (a block a layer), each an (n, size) matrix in one piece: batched matrix
products write whole blocks many times faster than rows with gaps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoarium.train.timetable import Timetable
from zoarium.zoo.config import Training

Slice = tuple[int, int]
FUSED: Any = getattr(
    torch, "_fused_sgd_", None
)  # the kernel behind torch.optim.SGD(fused=True): half the passes over memory


class Optimiser(ABC):
    """A stacked optimiser; subclasses say how one slice of models steps.

    Parameters
    ----------
    params, grads : sequence of Tensor
        Blocks (n, size); `params` change in place, `grads` hold sums over samples and are zeroed after a step.
    trainings : sequence of Training
        One a model.
    timetable : Timetable
        Who steps when.
    """

    slots: tuple[str, ...] = ()

    def __init__(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], trainings: Sequence[Training], timetable: Timetable
    ) -> None:
        self.params, self.grads, self.timetable = list(params), list(grads), timetable
        self.state = {name: [torch.zeros_like(p) for p in params] for name in self.slots}
        self.trainings = trainings
        self.like = params[0]
        clip = [float("inf") if t.clip_norm is None else t.clip_norm for t in trainings]
        self.clips = any(c != float("inf") for c in clip)
        self.clip = self._column(clip)
        self.clear = True  # whether gradients are added up over micro-steps, so that a step must zero them
        self.norms = torch.empty(len(trainings), len(params), dtype=self.like.dtype, device=self.like.device)
        self.samples = self._table(timetable.samples)  # (m, n, 1)
        self.inverse = self._table(1 / np.maximum(timetable.samples, 1))
        self.offset = 1e-6 * self.samples
        self._views: dict[Slice, tuple] = {}
        self._rows: dict[Slice, tuple] = {}

    def _table(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=self.like.dtype, device=self.like.device).unsqueeze(-1)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self.like.dtype, device=self.like.device).unsqueeze(1)  # (n, 1)

    def _setting(self, name: str, *, minus: bool = False) -> Tensor | float:
        """Return a hyperparameter (or 1 minus it): one number if all models share it, else a column (n, 1)."""
        values = [float(getattr(t, name)) for t in self.trainings]
        values = [1 - v for v in values] if minus else values
        return values[0] if len(set(values)) == 1 else self._column(values)

    def _factor(self, value: Tensor | float) -> Tensor:
        """Return a setting as a tensor: multiplying by a Python number costs a conversion every time."""
        return (
            value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.like.dtype, device=self.like.device)
        )

    def begin(self, epoch: int) -> None:
        """Look up the rates of an epoch (counted from 0)."""
        self.rates = self.timetable.rates(epoch)
        self._tables(self._table(self.rates), self.timetable.step_index(epoch))
        self._rows = {}

    def _tables(self, rates: Tensor, index: np.ndarray) -> None:
        self.tables: list[Tensor] = [-rates]

    def step(self, m: int) -> None:
        """Let the models that are due at micro-step `m` take their optimiser step."""
        for part in self.timetable.due[m]:
            if part not in self._views:
                self._views[part] = self._view(part)
            if part not in self._rows:  # rows of every per-step table for this slice, as plain lists
                self._rows[part] = self._tables_of(*part)
            views = self._views[part]
            rows = [row[m] for row in self._rows[part]]
            scale = rows[0]
            if self.clips:
                grads, clip, norms, norm, out = views[0]
                for grad, column in zip(grads, norms, strict=True):
                    torch.linalg.vector_norm(grad, dim=1, keepdim=True, out=column)
                if norm is not norms[0]:
                    torch.linalg.vector_norm(norm, dim=1, keepdim=True, out=out)
                out.add_(rows[1])
                torch.div(clip, out, out=out)
                scale = torch.minimum(out, scale, out=out)
            self._update(views, scale, rows[2:])

    def _tables_of(self, a: int, b: int) -> tuple:
        return tuple(table[:, a:b].unbind(0) for table in (self.inverse, self.offset, *self.tables))

    def _view(self, part: Slice) -> tuple:
        a, b = part
        norm = self.norms[a:b]
        columns = list(norm.split(1, dim=1))
        grads = [g[a:b] for g in self.grads]
        out = columns[0] if len(columns) == 1 else torch.empty_like(self.clip[a:b])
        clip = (grads, self.clip[a:b], columns, columns[0] if len(columns) == 1 else norm, out)
        blocks = [
            (p[a:b], g, *(self.state[name][i][a:b] for name in self.slots))
            for i, (p, g) in enumerate(zip(self.params, grads, strict=True))
        ]
        return (clip, blocks, *self._settings(a, b))

    def _settings(self, a: int, b: int) -> tuple:
        return ()

    @abstractmethod
    def _update(self, views: tuple, scale: Tensor, rows: list) -> None: ...


def _cut(value: Tensor | float, a: int, b: int) -> Tensor | float:
    return value[a:b] if isinstance(value, Tensor) and value.dim() else value


class SGD(Optimiser):
    """Stochastic gradient descent with momentum, Nesterov's form and L2 weight decay, as `torch.optim.SGD`."""

    slots = ("momentum",)

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mu, self.decay = self._setting("momentum"), self._setting("weight_decay")
        self.mu_factor = self._factor(self.mu)
        self.nesterov = self.trainings[0].nesterov

    def _alike(self, a: int, b: int) -> bool:
        """Whether models a to b share every number of the update, so that torch's own fused kernel can take them."""
        numbers = isinstance(self.mu, float) and isinstance(self.decay, float) and self.mu > 0
        return numbers and FUSED is not None and self.like.device.type == "cpu" and self.timetable.alike(a, b)

    def _settings(self, a: int, b: int) -> tuple:
        if self._alike(a, b):
            params, momenta = [p[a:b] for p in self.params], [m[a:b] for m in self.state["momentum"]]
            return True, (params, [g[a:b] for g in self.grads], momenta)
        return False, (_cut(self.mu_factor, a, b), _cut(self.mu, a, b), _cut(self.decay, a, b))

    def _tables_of(self, a: int, b: int) -> tuple:
        inverse, offset, rates = super()._tables_of(a, b)
        return inverse, offset, self.rates[:, a].tolist() if self._alike(a, b) else rates

    def _update(self, views: tuple, scale: Tensor, rows: list) -> None:
        _, blocks, alike, settings = views
        if alike:
            params, grads, momenta = settings
            for g in grads:
                g.mul_(scale)
            FUSED(
                params, grads, momenta, lr=rows[0], momentum=self.mu, weight_decay=self.decay, nesterov=self.nesterov,
                dampening=0.0, maximize=False, is_first_step=False,
            )  # fmt: skip
            if self.clear:
                for g in grads:
                    g.zero_()
            return
        (mu_factor, mu, decay), minus_rate = settings, rows[0]
        for w, g, m in blocks:
            if self.nesterov:
                g.mul_(scale)
                _add(g, w, decay)
                m.mul_(mu_factor).add_(g)
                _add(g, m, mu)
                w.addcmul_(g, minus_rate)
            else:
                m.mul_(mu_factor).addcmul_(g, scale)
                _add(m, w, decay)
                w.addcmul_(m, minus_rate)
            if self.clear:
                g.zero_()


class Adam(Optimiser):
    """Adam with L2 weight decay, or with decoupled decay (AdamW), as `torch.optim.Adam` and `torch.optim.AdamW`."""

    slots = ("mean", "square")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.beta1, self.beta2, self.eps = (self._factor(self._setting(name)) for name in ("beta1", "beta2", "eps"))
        self.rest1, self.rest2 = self._setting("beta1", minus=True), self._setting("beta2", minus=True)
        self.decay = self._setting("weight_decay")
        self.decoupled = self.trainings[0].optimizer == "adamw"

    def _tables(self, rates: Tensor, index: np.ndarray) -> None:
        beta1 = np.array([t.beta1 for t in self.trainings])
        beta2 = np.array([t.beta2 for t in self.trainings])
        decay = self._column([t.weight_decay for t in self.trainings])
        size = -rates / self._table(1 - beta1 ** (index + 1))
        self.tables = [size, self._table(1 / np.sqrt(1 - beta2 ** (index + 1))), 1 - rates * decay]

    def _settings(self, a: int, b: int) -> tuple:
        values = (self.beta1, self.rest1, self.beta2, self.rest2, self.eps, self.decay)
        return tuple(_cut(value, a, b) for value in values)

    def _update(self, views: tuple, scale: Tensor, rows: list) -> None:
        _, blocks, beta1, rest1, beta2, rest2, eps, decay = views
        minus_rate, correction, shrink = rows
        for w, g, m, v in blocks:
            g.mul_(scale)
            if self.decoupled:
                w.mul_(shrink)
            else:
                _add(g, w, decay)
            m.mul_(beta1)
            _add(m, g, rest1)
            v.mul_(beta2)
            torch.mul(g, g, out=g)
            _add(v, g, rest2)
            torch.sqrt(v, out=g)
            g.mul_(correction).add_(eps)
            torch.div(m, g, out=g)
            w.addcmul_(g, minus_rate)
            if self.clear:
                g.zero_()


def _add(target: Tensor, other: Tensor, factor: Tensor | float) -> None:
    """Add ``factor * other`` to `target` in place."""
    if isinstance(factor, Tensor):
        target.addcmul_(other, factor)
    elif factor:
        target.add_(other, alpha=factor)


OPTIMISERS: dict[str, type[Optimiser]] = {"sgd": SGD, "adam": Adam, "adamw": Adam}
