"""One-dimensional convection, a partial differential equation with a dial for its difficulty.

    u_t + β u_x = 0   on x ∈ [0, 2π), t ∈ [0, 1],   periodic,   u(x, 0) = u₀(x),   so   u(x, t) = u₀(x - β t)

The larger β, the faster the solution turns in t and the harder a network finds it. Krishnapriyan et al.,
"Characterizing possible failure modes in physics-informed neural networks", 2021 (arXiv 2109.01050).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import dataset

PERIOD = 2 * math.pi
VALUE, GAP, RESIDUAL = 0, 1, 2  # kinds of rows of a physics-informed task
ROW = 5  # (x, t, beta, kind, scale)
TEST_SIDE = 32
INITIAL = {
    "sine": torch.sin,
    "bump": lambda x: torch.exp(4.0 * (torch.cos(x) - 1.0)),  # smooth, periodic, half as high at x = 0.6
}


@dataset("convection", reference="Krishnapriyan et al. 2021 (arXiv 2109.01050)", licence="computed")
def convection(*, beta: float = 1.0, n_x: int = 32, n_t: int = 32, initial: str = "sine") -> Dataset:
    """Solution u(x, t) of u_t + beta u_x = 0, to be learnt from its values (a regression).

    Parameters
    ----------
    beta : float, default 1.0
        Speed; the larger, the harder.
    n_x, n_t : int, default 32
        Points in space, over [0, 2π), and in time, over [0, 1]. They should resolve the solution: n_t well above
        beta / π for the sine.
    initial : {"sine", "bump"}, default "sine"
        u(x, 0).

    Returns
    -------
    Dataset
        Inputs (x, t), one output u. Training samples lie on the grid, test samples at the centres between.

    Raises
    ------
    DataError
        For fewer than 2 points, a speed that is not finite, or an unknown initial condition.

    Examples
    --------
    >>> task = convection(beta=30.0)
    >>> task.in_shape, len(task.train), len(task.test)
    ((2,), 1024, 992)
    """
    if min(n_x, n_t) < 2:
        raise DataError(f"data 'convection' needs n_x and n_t of 2 or more, found n_x={n_x}, n_t={n_t}.")
    if not math.isfinite(beta):
        raise DataError(f"data 'convection': beta must be a finite number, found {beta}.")
    if initial not in INITIAL:
        raise DataError(f"data 'convection': initial must be one of {', '.join(INITIAL)}, found {initial!r}.")
    x = torch.arange(n_x, dtype=torch.float64) * (PERIOD / n_x)
    t = torch.linspace(0, 1, n_t, dtype=torch.float64)

    def samples(x: Tensor, t: Tensor) -> Split:
        points = torch.cartesian_prod(x, t)  # (N, 2)
        u = INITIAL[initial](points[:, 0] - beta * points[:, 1])
        return Split(points.float(), u.float().unsqueeze(1))

    return Dataset("convection", samples(x, t), samples(x + PERIOD / n_x / 2, (t[1:] + t[:-1]) / 2), "regression", 1)


@dataset(
    "convection_pinn", reference="Krishnapriyan et al. 2021 (arXiv 2109.01050); Raissi et al. 2019", licence="computed"
)
def convection_pinn(
    *, beta: float = 1.0, n_initial: int = 64, n_boundary: int = 32, n_residual: int = 512,
    residual_weight: float = 1.0, initial: str = "sine", seed: int = 0,
) -> Dataset:  # fmt: skip
    """The equation u_t + beta u_x = 0 itself, to be solved by a physics-informed net (``pinn_mlp``).

    Parameters
    ----------
    beta : float, default 1.0
        Speed; the larger, the harder.
    n_initial : int, default 64
        Points in space at which u(x, 0) is given.
    n_boundary : int, default 32
        Times at which u(0, t) = u(2π, t) is asked for; 0 for nets that are periodic by construction.
    n_residual : int, default 512
        Collocation points, drawn uniformly, at which the equation should hold.
    residual_weight : float, default 1.0
        Weight λ of the residual in the loss.
    initial : {"sine", "bump"}, default "sine"
        u(x, 0).
    seed : int, default 0
        Draws the collocation points.

    Returns
    -------
    Dataset
        A regression on rows (x, t, beta, kind, scale), see :mod:`zoarium.nets.physics`. The mean squared error over the
        training rows is the loss: mean square error of the initial values + mean square gap + λ mean square residual.
        The test split is the solution on 32 x 32 points, so the test loss is the mean squared error of u.

    Raises
    ------
    DataError
        For too few points, a speed or weight out of range, or an unknown initial condition.

    Examples
    --------
    >>> convection_pinn(beta=30.0)
    Dataset('convection_pinn', 608 train + 1024 test, input (5,), 1 output)
    """
    if min(n_initial, n_residual) < 1 or n_boundary < 0:
        raise DataError(
            "data 'convection_pinn' needs n_initial and n_residual of 1 or more and n_boundary of 0 or more, found "
            f"n_initial={n_initial}, n_residual={n_residual}, n_boundary={n_boundary}."
        )
    if not math.isfinite(beta) or not 0 < residual_weight < math.inf:
        raise DataError(
            f"data 'convection_pinn' needs a finite beta and a residual_weight above 0, found {beta} and "
            f"{residual_weight}."
        )
    if initial not in INITIAL:
        raise DataError(f"data 'convection_pinn': initial must be one of {', '.join(INITIAL)}, found {initial!r}.")
    start = INITIAL[initial]
    total = n_initial + n_boundary + n_residual

    def rows(x: Tensor, t: Tensor, kind: int, weight: float) -> Tensor:
        columns = [x, t, torch.full_like(x, beta), torch.full_like(x, kind), torch.full_like(x, weight**0.5)]
        return torch.stack(columns, dim=1)  # (points, 5)

    x = torch.arange(n_initial, dtype=torch.float64) * (PERIOD / n_initial)
    t = torch.linspace(0, 1, n_boundary, dtype=torch.float64)
    drawn = torch.rand(n_residual, 2, generator=generator("convection_pinn", seed), dtype=torch.float64)
    parts = [rows(x, torch.zeros_like(x), VALUE, total / n_initial)]
    if n_boundary:
        parts.append(rows(torch.zeros_like(t), t, GAP, total / n_boundary))
    parts.append(rows(drawn[:, 0] * PERIOD, drawn[:, 1], RESIDUAL, residual_weight * total / n_residual))
    train = torch.cat(parts)
    y = torch.where(train[:, 3] == VALUE, train[:, 4] * start(train[:, 0]), 0.0)

    grid = (torch.arange(TEST_SIDE, dtype=torch.float64) + 0.5) / TEST_SIDE
    points = torch.cartesian_prod(grid * PERIOD, grid)
    test = rows(points[:, 0], points[:, 1], VALUE, 1.0)
    solution = start(points[:, 0] - beta * points[:, 1])
    learnt, held_out = (Split(a.float(), b.float().unsqueeze(1)) for a, b in ((train, y), (test, solution)))
    return Dataset("convection_pinn", learnt, held_out, "regression", 1)


def solve_convection(
    u0: Tensor, beta: float, times: Tensor, *, method: Literal["spectral", "upwind"] = "spectral", courant: float = 0.5
) -> Tensor:
    """The solution for an initial condition given by its values alone.

    Parameters
    ----------
    u0 : Tensor of shape (m,)
        u(x, 0) at x = 0, h, 2h, ... with h = 2π / m.
    beta : float
        Speed.
    times : Tensor of shape (k,)
        Times t >= 0, ascending.
    method : {"spectral", "upwind"}, default "spectral"
        "spectral" turns the phase of each Fourier mode k by k β t, exact up to rounding for an initial condition the
        points resolve. "upwind" steps the first-order scheme, which never overshoots and is right for jumps, with an
        error of order h that smears them.
    courant : float in (0, 1], default 0.5
        Upwind: β Δt / h, at most; 1 moves by whole points.

    Returns
    -------
    Tensor of shape (k, m)

    Raises
    ------
    DataError
        For times that do not ascend from 0 or more, an unknown method or a Courant number outside (0, 1].

    Examples
    --------
    >>> x = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    >>> u = solve_convection(torch.sin(x), 30.0, torch.tensor([0.0, 0.3], dtype=torch.float64))
    >>> torch.allclose(u[1], torch.sin(x - 9.0))
    True
    """
    if method not in ("spectral", "upwind"):
        raise DataError(f"method must be 'spectral' or 'upwind', found {method!r}.")
    if not 0 < courant <= 1:
        raise DataError(f"courant must lie in (0, 1], or the upwind scheme is unstable; found {courant}.")
    moments = [float(t) for t in times]
    if any(t < 0 for t in moments) or moments != sorted(moments):
        raise DataError(f"times must ascend from 0 or more, found {moments[:5]}.")
    m = len(u0)
    if method == "spectral":
        modes = torch.arange(m // 2 + 1, dtype=u0.dtype, device=u0.device)  # (m/2 + 1,)
        turned = torch.exp(-1j * beta * torch.as_tensor(moments, dtype=u0.dtype, device=u0.device)[:, None] * modes)
        return torch.fft.irfft(torch.fft.rfft(u0) * turned, n=m)
    h, now, u, out = PERIOD / m, 0.0, u0.clone(), []
    for t in moments:
        steps = math.ceil(abs(beta) * (t - now) / (courant * h) - 1e-9)
        share = beta * (t - now) / (h * steps) if steps else 0.0  # the Courant number of these steps, with its sign
        for _ in range(steps):
            upstream = u.roll(1) if share > 0 else u.roll(-1)
            u = u + abs(share) * (upstream - u)
        now = t
        out.append(u.clone())
    return torch.stack(out)
