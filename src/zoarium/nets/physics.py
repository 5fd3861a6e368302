"""A physics-informed net as a regression: each row asks one question, and its answer should be a number.

    kind 0   value      s u(x, t)                           should be   s u₀(x) at t = 0
    kind 1   gap        s (u(0, t) - u(2π, t))              should be   0      (periodic in x)
    kind 2   residual   s (u_t + β u_x)(x, t)               should be   0      (the equation holds)

A row is (x, t, β, kind, s). With the scales s of :func:`zoarium.data.convection.convection_pinn` the mean squared error
over all rows is the usual loss, mean over initial points + mean over the boundary + λ mean over collocation points. The
loss of a physics-informed net is then the loss of a regression, and everything that trains or measures one serves it.

Raissi, Perdikaris & Karniadakis 2019 (arXiv 1711.10561); Krishnapriyan et al. 2021 (arXiv 2109.01050).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoarium._core.errors import NetError
from zoarium.data.convection import GAP, PERIOD, RESIDUAL, ROW


class PeriodicInputs(nn.Module):
    """(x, t) -> (cos x, sin x, ..., cos kx, sin kx, t): whatever follows repeats in x every 2π."""

    def __init__(self, harmonics: int) -> None:
        super().__init__()
        self.harmonics = harmonics

    def forward(self, points: Tensor) -> Tensor:
        """(b, 2) -> (b, 2 harmonics + 1)."""
        x, t = points[..., :1], points[..., 1:]
        angles = torch.cat([k * x for k in range(1, self.harmonics + 1)], dim=-1)  # (b, k)
        return torch.cat([angles.cos(), angles.sin(), t], dim=-1)

    def along(self, points: Tensor, direction: Tensor) -> Tensor:
        """Derivative of the output along a direction (b, 2)."""
        waves = range(1, self.harmonics + 1)
        angles = torch.cat([k * points[..., :1] for k in waves], dim=-1)
        turn = torch.cat([k * direction[..., :1] for k in waves], dim=-1)
        return torch.cat([-angles.sin() * turn, angles.cos() * turn, direction[..., 1:]], dim=-1)


class ConvectionRows(nn.Module):
    """Answers of a net u(x, t) to rows of the convection problem.

    Parameters
    ----------
    u : torch.nn.Sequential
        Linear layers and tanh, perhaps after :class:`PeriodicInputs`; then gaps are 0 and cost nothing.
    """

    def __init__(self, u: nn.Sequential) -> None:
        super().__init__()
        self.u = u
        self.periodic = any(isinstance(layer, PeriodicInputs) for layer in u)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (b, 5) -> answers (b, 1)."""
        if rows.shape[-1] != ROW:
            raise NetError(
                f"this net takes rows (x, t, beta, kind, scale), found inputs of shape {tuple(rows.shape[1:])}; use "
                "the data 'convection_pinn'."
            )
        points, beta, kind, scale = rows[..., :2], rows[..., 2:3], rows[..., 3:4], rows[..., 4:5]
        u, change = self._with_derivative(points, torch.cat([beta, torch.ones_like(beta)], dim=-1))  # u_t + β u_x
        answer = torch.where(kind == RESIDUAL, change, u)
        if self.periodic:
            answer = torch.where(kind == GAP, torch.zeros_like(u), answer)
        else:
            far = torch.cat([torch.full_like(beta, PERIOD), points[..., 1:]], dim=-1)
            answer = torch.where(kind == GAP, u - self.u(far), answer)  # rows of gaps stand at x = 0
        return scale * answer

    def _with_derivative(self, h: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
        """The solution and its derivative along `dh`, by plain operations, so that it differentiates again."""
        for layer in self.u:
            if isinstance(layer, nn.Linear):
                h, dh = layer(h), dh @ layer.weight.mT
            elif isinstance(layer, PeriodicInputs):
                h, dh = layer(h), layer.along(h, dh)
            else:  # tanh
                h = layer(h)
                dh = (1 - h * h) * dh
        return h, dh
