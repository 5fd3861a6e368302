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
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import dataset

PERIOD = 2 * math.pi
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
