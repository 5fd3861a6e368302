"""The exact trace of the Hessian or Gauss-Newton matrix of a net of layers in a row, without a single product.

Why it is cheap. A weight W_ij of a linear layer enters a sample's loss only through z = W h + b, linearly, so

    ∂²ℓ/∂W_ij² = h_j² ∂²ℓ/∂z_i²    =>    tr = (1/N) Σ_samples Σ_layers (‖h‖² + 1) tr ∇²_z ℓ.

The Hessians in z follow from the one in the outputs, diag(m) - q qᵀ (m = q = p for softmax and cross-entropy), layer by
layer (Botev, Ritter & Barber, "Practical Gauss-Newton optimisation for deep learning", 2017, eq. 6):

    ∇²_{z_l} = D (W_{l+1}ᵀ ∇²_{z_{l+1}} W_{l+1}) D + diag(u ⊙ σ''(z_l)),     D = diag σ'(z_l),  u = ∂ℓ/∂h_l.

The last hidden layer needs the diagonal only, (W²)ᵀ m - (Wᵀ q)², so a net of one hidden layer costs one forward and one
backward pass. The Gauss-Newton matrix leaves out the σ'' terms.

Nets that are piecewise linear in each single parameter (convolutions, batch norm in evaluation mode, ReLU, pooling, in
a row and no parameter used twice) have ∂²f/∂θ_i² = 0 almost everywhere, so that, with ∇²_f ℓ = Σ_k s_k s_kᵀ,

    ∂²ℓ/∂θ_i² = (∂f/∂θ_i)ᵀ ∇²_f ℓ (∂f/∂θ_i) + ∇_f ℓ · ∂²f/∂θ_i² = Σ_k (s_kᵀ ∂f/∂θ_i)²,

the diagonals of Hessian and Gauss-Newton matrix agree, and the trace is the sum of Σ_k ‖J_iᵀ s_k‖² over samples:
c backward passes, in which the squared norm of one sample's gradient comes from the inputs of a layer and the gradients
of its outputs (Goodfellow, "Efficient per-example gradient computations", 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from zoarium.data.dataset import Task
from zoarium.measure.curvature.chain_products import activate
from zoarium.measure.curvature.output_loss import Curvature, OutputLoss
from zoarium.nets.stacked import ChainNet, plain_leaves
from zoarium.zoo.cohort import Cohort

BLOCK = 2**18  # numbers held at a time: 2 MB in float64, what a core has near it

PIECEWISE_LINEAR = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d,
)  # fmt: skip
POINTWISE_SMOOTH = (nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PARAMETRIC = (nn.Linear, nn.Conv2d, *NORMS)
KNOWN = (*PIECEWISE_LINEAR, *POINTWISE_SMOOTH, *PARAMETRIC)


def layers_in_a_row(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Named layers of nested `nn.Sequential`s if all are of kinds known here, used once and sharing nothing."""
    layers = plain_leaves(module)
    if layers is None or any(type(layer) not in KNOWN for _, layer in layers):
        return None
    if any(isinstance(layer, NORMS) and layer.running_mean is None for _, layer in layers):
        return None  # normalises by the batch, which ties samples together
    return layers


def piecewise_linear(module: nn.Module) -> bool:
    """Whether the outputs are certainly piecewise linear in each single parameter; False where in doubt."""
    layers = layers_in_a_row(module)
    return layers is not None and not any(type(layer) in POINTWISE_SMOOTH for _, layer in layers)


def has_exact_trace(cohort: Cohort, curvature: Curvature) -> bool:
    """Whether :func:`exact_trace` can take the cohort's architecture."""
    if isinstance(cohort.net, ChainNet):
        return True
    return layers_in_a_row(cohort.module) is not None and (curvature == "ggn" or piecewise_linear(cohort.module))


def exact_trace(cohort: Cohort, x: Tensor, y: Tensor, task: Task, *, curvature: Curvature = "hessian") -> Tensor:
    """Trace of each model's curvature matrix on samples ``x, y``, exact up to rounding: (n,) float64.

    The architecture must pass :func:`has_exact_trace`. NaN for a model whose outputs are not finite.
    """
    with torch.no_grad():
        if isinstance(cohort.net, ChainNet):
            return _chain_trace(cohort, cohort.net, x, y, task, curvature)
        return torch.stack([_layers_trace(cohort, row, x, y, task) for row in range(len(cohort))])


def _chain_trace(cohort: Cohort, net: ChainNet, x: Tensor, y: Tensor, task: Task, curvature: Curvature) -> Tensor:
    """Run the recursion of the module's docstring, in float64: m - q² of a confident model all but cancels."""
    weights = [cohort.params[link.weight].double() for link in net.links]
    biases = [None if link.bias is None else cohort.params[link.bias].double() for link in net.links]
    n, outs = len(cohort), [w.shape[1] for w in weights]
    rank = 1 if len(outs) < 3 else 1 + sum(outs[2:])  # factors carried down past the second layer from the top
    block = max(1, BLOCK // (n * max(w.shape[2] + w.shape[1] for w in weights) * rank))
    total = torch.zeros(n, dtype=torch.float64)
    largest = torch.finfo(cohort.params[net.links[0].weight].dtype).max  # beyond it the model itself overflows
    for start in range(0, len(x), block):
        h = x[start : start + block].double().flatten(1).T.expand(n, -1, -1)  # (n, d, b)
        reach, slopes, bends = [], [], []
        for link, w, bias in zip(net.links, weights, biases, strict=True):
            reach.append(h.square().sum(1) + (bias is not None))  # ‖h‖² + 1: (n, b)
            z = torch.bmm(w, h) if bias is None else torch.baddbmm(bias.unsqueeze(2), w, h)
            h, slope, bend = activate([function for _, function in link.after], z)
            slopes.append(slope)
            bends.append(bend if curvature == "hessian" else None)
        total[~(h.abs().flatten(1).amax(1) <= largest)] = torch.nan
        loss = OutputLoss(h, y[start : start + block], task, 1.0)
        u = loss.gradient
        # ∇² = diag(diagonal) + Σ_r signs_r f_r f_rᵀ with factors f (n, out, r, b) and signs (n, r, b)
        m, q = loss.diagonal_and_rank_one()
        diagonal, factors, signs = m, q.unsqueeze(2), -torch.ones_like(q[:, :1])
        for index in reversed(range(len(weights))):
            slope, bend, w = slopes[index], bends[index], weights[index]
            if slope is not None:
                diagonal = None if diagonal is None else diagonal * slope.square()
                factors = None if factors is None else factors * slope.unsqueeze(2)
            if bend is not None:
                diagonal = bend * u if diagonal is None else diagonal + bend * u
            if diagonal is not None:
                total += (diagonal.sum(1) * reach[index]).sum(1)
            if factors is not None:
                total += ((factors.square().sum(1) * signs).sum(1) * reach[index]).sum(1)
            if index:
                u = torch.bmm(w.mT, u if slope is None else u * slope)
                diagonal, factors, signs = _through(w.mT, diagonal, factors, signs, diagonal_only=index == 1)
    return total / len(x)


def _through(
    w: Tensor, diagonal: Tensor | None, factors: Tensor | None, signs: Tensor, *, diagonal_only: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """W ∇² Wᵀ for `w` (n, in, out), as a diagonal alone or as factors alone; None stands for nothing."""
    below = None if factors is None else torch.bmm(w, factors.flatten(2)).unflatten(2, factors.shape[2:])
    if diagonal_only:  # of the lowest layer nothing but the trace is wanted
        got = None if below is None else below.square_().mul_(signs.unsqueeze(1)).sum(2)
        if diagonal is not None:
            got = torch.bmm(w.square(), diagonal) if got is None else got.baddbmm_(w.square(), diagonal)
        return got, None, signs
    if diagonal is None:
        return None, below, signs
    columns = w.unsqueeze(3) * diagonal.abs().sqrt().unsqueeze(1)  # (n, in, out, b)
    if below is None:
        return None, columns, diagonal.sign()
    return None, torch.cat([below, columns], 2), torch.cat([signs, diagonal.sign()], 1)


def _layers_trace(cohort: Cohort, row: int, x: Tensor, y: Tensor, task: Task) -> Tensor:
    """Σ_k ‖Jᵀ s_k‖² of one model, from inputs of layers and gradients of their outputs."""
    layers = layers_in_a_row(cohort.module)
    assert layers is not None
    state = cohort.state(row)
    reach = max(_activation_size(layers, state, x[:1]), 1)
    block = max(1, BLOCK // reach)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(x), block):
        total += _block_trace(layers, state, x[start : start + block], y[start : start + block], task)
    return total / len(x)


def _run(layers: list[tuple[str, nn.Module]], state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list, list]:
    """Run the layers; returns the outputs, each parametric layer with its parameters and input, and what it gave."""
    seen: list[tuple[nn.Module, dict[str, Tensor], Tensor]] = []
    outputs: list[Tensor] = []
    h = x.detach().requires_grad_()
    for name, layer in layers:
        own = {k.rpartition(".")[2]: v for k, v in state.items() if k.rpartition(".")[0] == name}
        if type(layer) in (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.ELU, nn.SiLU):
            h = h.clone()  # these may work in place
        out = functional_call(layer, own, (h,)) if own else layer(h)
        if type(layer) in PARAMETRIC:
            seen.append((layer, own, h.detach()))
            outputs.append(out)
        h = out
    return h, seen, outputs


def _activation_size(layers: list[tuple[str, nn.Module]], state: dict[str, Tensor], x: Tensor) -> int:
    """Numbers a sample needs at the widest layer, patches of a convolution included."""
    _, seen, outputs = _run(layers, state, x)
    patches = [layer.weight[0].numel() if type(layer) is nn.Conv2d else 1 for layer, _, _ in seen]
    return sum(int(out[0, 0].numel() * patch + out.numel()) for out, patch in zip(outputs, patches, strict=True))


def _block_trace(
    layers: list[tuple[str, nn.Module]], state: dict[str, Tensor], x: Tensor, y: Tensor, task: Task
) -> Tensor:
    with torch.enable_grad():
        f, seen, outputs = _run(layers, state, x)
    m, q = OutputLoss(f.detach().double().T.unsqueeze(0), y, task, 1.0).diagonal_and_rank_one()  # (1, c, b)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(f.shape[1]):
        # A square root: columns s_k = √m_k (e_k - q) give diag(m) - q qᵀ, where q = m sums to 1 or q = 0.
        s = -q[0] * m[0, k].sqrt()
        s[k] += m[0, k].sqrt()
        deltas = torch.autograd.grad(f, outputs, s.T.to(f.dtype), retain_graph=True)
        for (layer, own, h), delta in zip(seen, deltas, strict=True):
            total += _squared_norms(layer, own, h, delta).double().sum()
    return total


def _squared_norms(layer: nn.Module, own: dict[str, Tensor], h: Tensor, delta: Tensor) -> Tensor:
    """Sum over samples of the squared norm of a layer's parameter gradient, from inputs and output gradients."""
    if isinstance(layer, nn.Linear):
        if h.ndim == 2:
            return (delta.square().sum(1) * (h.square().sum(1) + ("bias" in own))).sum()
        delta, h = delta.flatten(1, -2), h.flatten(1, -2)
        got = torch.bmm(delta.mT, h).square().sum()
        return got + delta.sum(1).square().sum() if "bias" in own else got
    if isinstance(layer, nn.Conv2d):
        padded = functional.pad(
            h, _padding(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode
        )
        patches = functional.unfold(
            padded, layer.kernel_size, layer.dilation, 0, layer.stride
        )  # (b, in k k, positions)
        b, groups = len(h), layer.groups
        pixels = delta.flatten(2)  # (b, out, positions)
        grouped = pixels.reshape(b * groups, -1, pixels.shape[2])
        got = torch.bmm(grouped, patches.reshape(b * groups, -1, patches.shape[2]).mT).square().sum()
        return got + pixels.sum(2).square().sum() if "bias" in own else got
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    if "weight" not in own:
        return delta.new_zeros(())
    shape = (1, -1, *[1] * (h.ndim - 2))
    standard = (h - own["running_mean"].view(shape)) / (own["running_var"].view(shape) + layer.eps).sqrt()
    both = torch.stack([delta * standard, delta]).flatten(3) if h.ndim > 2 else torch.stack([delta * standard, delta])
    return (both.sum(3) if h.ndim > 2 else both).square().sum()


def _padding(layer: nn.Conv2d) -> list[int]:
    """Give the padding of a convolution as `functional.pad` wants it."""
    return list(layer._reversed_padding_repeated_twice)
