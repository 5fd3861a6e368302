"""Physics-informed networks for one-dimensional convection.

    u(x, t),   u_t + β u_x = 0   on x ∈ [0, 2π), t ∈ [0, 1],   u(0, t) = u(2π, t),   u(x, 0) = u₀(x)

A tanh network is trained on the residual of the equation; β is the load. Raissi, Perdikaris & Karniadakis,
"Physics-informed neural networks", 2019 (arXiv 1711.10561); convection, and how training fails at large β:
Krishnapriyan et al., "Characterizing possible failure modes in physics-informed neural networks", 2021 (arXiv
2109.01050); periodic inputs: Dong & Ni 2021 (arXiv 2007.07442).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import jvp

from zoarium._core.errors import NetError
from zoarium.data.convection import PERIOD, ROW
from zoarium.nets.mlp import check_sizes
from zoarium.nets.physics import ConvectionRows, PeriodicInputs
from zoarium.nets.registry import net
from zoarium.nets.stacked import StackedNet, Tensors

Periodicity = Literal["soft", "hard"]


@net("pinn_mlp", reference="Raissi et al. 2019; Krishnapriyan et al. 2021 (arXiv 2109.01050)")
def pinn_mlp(
    in_shape: tuple[int, ...] = (2,), n_outputs: int = 1, *, width: int = 50, depth: int = 4,
    periodic: Periodicity = "soft", harmonics: int = 1,
) -> nn.Module:  # fmt: skip
    """Tanh network (x, t) -> u, twice differentiable in its inputs, PyTorch's default initialisation.

    Parameters
    ----------
    in_shape : (2,) or (5,)
        Position and time; or the rows of the data "convection_pinn", to which the net answers as
        :class:`~zoarium.nets.physics.ConvectionRows` says: then it trains on the equation.
    n_outputs : int, default 1
        Values at a point; convection has one.
    width : int, default 50
        Units of a hidden layer (Krishnapriyan et al.: 50).
    depth : int, default 4
        Hidden layers (Krishnapriyan et al.: 4).
    periodic : {"soft", "hard"}, default "soft"
        "soft" takes (x, t) as they are, and periodicity is a term of the loss, the square of :func:`periodicity_gap`;
        "hard" takes (cos x, sin x, t), so that every such net is periodic.
    harmonics : int, default 1
        With "hard": how many cos kx, sin kx to give; with "soft" it must stay 1.

    Returns
    -------
    torch.nn.Module
        A Sequential of layers ``(periodic,) fc1, act1, ..., out``; for rows, a module with this Sequential as ``u``.

    Raises
    ------
    NetError
        If inputs are neither points nor rows, a size is not positive, or `periodic` is unknown.

    See Also
    --------
    convection_residual : What such a net is trained on.

    Examples
    --------
    >>> net = pinn_mlp(width=8, depth=2, periodic="hard")
    >>> at = torch.tensor([[0.5, 0.3], [0.5 + PERIOD, 0.3]])
    >>> torch.allclose(*net(at), atol=1e-6)
    True
    """
    check_sizes("pinn_mlp", width=width, depth=depth, harmonics=harmonics, n_outputs=n_outputs)
    if tuple(in_shape) not in ((2,), (ROW,)):
        raise NetError(
            f"net 'pinn_mlp' needs points (x, t), shape (2,), but inputs have shape {tuple(in_shape)}; use the data "
            "'convection' or 'convection_pinn', or choose net='mlp'."
        )
    if periodic not in ("soft", "hard"):
        raise NetError(f"net 'pinn_mlp': periodic must be 'soft' or 'hard', found {periodic!r}.")
    if periodic == "soft" and harmonics != 1:
        raise NetError(f"net 'pinn_mlp': harmonics={harmonics} needs periodic='hard'.")
    hard = periodic == "hard"
    layers: OrderedDict[str, nn.Module] = OrderedDict(periodic=PeriodicInputs(harmonics)) if hard else OrderedDict()
    size = 2 * harmonics + 1 if hard else 2
    for index in range(1, depth + 1):
        layers[f"fc{index}"] = nn.Linear(size, width)
        layers[f"act{index}"] = nn.Tanh()
        size = width
    layers["out"] = nn.Linear(size, n_outputs)
    u = nn.Sequential(layers)
    return ConvectionRows(u) if tuple(in_shape) == (ROW,) else u


def convection_residual(net: StackedNet, params: Tensors, points: Tensor, beta: float | Tensor) -> Tensor:
    """Residual u_t + β u_x of n networks at points, differentiable in the parameters.

    The residual is the derivative of u along the direction (β, 1), so one forward-mode pass gives it.

    Parameters
    ----------
    net : StackedNet
        `zoarium.nets.stack` of a net (x, t) -> u.
    params : mapping of str to Tensor
        Stacked parameters, each (n, *shape).
    points : Tensor of shape (b, 2) or (n, b, 2)
        Where to take it, as (x, t): the same points for every model, or each model's own.
    beta : float or Tensor of shape (n,)
        Speed: one for all, or one a model.

    Returns
    -------
    Tensor of shape (n, b)
        0 at every point for a solution.

    Raises
    ------
    NetError
        If points are not (x, t), the net gives more than one value a point, or there is not one `beta` a model.

    Notes
    -----
    Costs about two forward passes.

    Examples
    --------
    >>> from zoarium.nets import stack
    >>> net = stack(pinn_mlp(width=8, depth=2))
    >>> params = {name: torch.zeros(3, *shape) for name, shape in net.layout.shapes}
    >>> convection_residual(net, params, torch.rand(5, 2), beta=30.0).abs().max()
    tensor(0.)
    """
    points = _points("convection_residual", points)
    n, per_model = len(next(iter(params.values()))), points.dim() == 3
    direction = points.new_ones(points.shape)
    if isinstance(beta, Tensor) and beta.dim():
        if beta.shape != (n,):
            raise NetError(
                f"convection_residual needs one beta, or one a model: {n} models, beta of shape {tuple(beta.shape)}."
            )
        if not per_model:
            points, direction, per_model = points.repeat(n, 1, 1), direction.repeat(n, 1, 1), True
        direction[..., 0] = beta[:, None].to(points)
    else:
        direction[..., 0] = beta
    out, change, *_ = jvp(lambda at: net(params, at, per_model=per_model), (points,), (direction,))
    return _values("convection_residual", out, change)


def periodicity_gap(net: StackedNet, params: Tensors, times: Tensor) -> Tensor:
    """How far n networks are from periodic, u(0, t) - u(2π, t), differentiable in the parameters.

    Parameters
    ----------
    net : StackedNet
    params : mapping of str to Tensor
        Stacked parameters, each (n, *shape).
    times : Tensor of shape (b,)

    Returns
    -------
    Tensor of shape (n, b)
        0 up to rounding for nets with ``periodic="hard"``.

    Raises
    ------
    NetError
        If the net gives more than one value a point.
    """
    start = torch.stack([torch.zeros_like(times), times], dim=-1)  # (b, 2)
    end = torch.stack([torch.full_like(times, PERIOD), times], dim=-1)
    out = net(params, torch.cat([start, end]))  # (n, 2b, 1)
    at_start, at_end = _values("periodicity_gap", out, out).chunk(2, dim=1)
    return at_start - at_end


def _points(name: str, points: Tensor) -> Tensor:
    if points.dim() not in (2, 3) or points.shape[-1] != 2 or not points.is_floating_point():
        raise NetError(
            f"{name} needs points (x, t) of shape (points, 2) or (models, points, 2), found {tuple(points.shape)} in "
            f"{str(points.dtype).removeprefix('torch.')}."
        )
    return points.contiguous()  # forward mode refuses expanded tensors


def _values(name: str, out: Tensor, wanted: Tensor) -> Tensor:
    if out.dim() != 3 or out.shape[-1] != 1:
        raise NetError(
            f"{name} needs a net with one value a point, outputs (models, points, 1), found {tuple(out.shape)}; build "
            "it with n_outputs=1."
        )
    return wanted.squeeze(-1)
