"""Permutation symmetries: reordering the hidden units of a network leaves its function as it was.

If P permutes the units of one layer, then (P W₁, P b₁, W₂ Pᵀ) computes what (W₁, b₁, W₂) does; batch norm moves along,
and a unit of a convolution owns all places of its feature map where that is flattened. Hecht-Nielsen, "On the algebraic
structure of feedforward network weight spaces", 1990.

Only permutations are described. Sign flips (tanh) and rescaled units (ReLU) are symmetries too and are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoarium._core.errors import MeasureError, NetError
from zoarium._core.seeds import generator
from zoarium.nets.stacked import POINTWISE, plain_leaves
from zoarium.zoo.cohort import Cohort

Permutations = dict[str, Tensor]  # group -> (m, units): unit i of the reference is unit perm[i] of the other model

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
UNIT_WISE = (
    *POINTWISE, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.ReLU6, nn.Hardswish, nn.Mish, nn.ELU, nn.SELU,
)  # fmt: skip
TOLERANCE = 1e-5  # largest change of an output that counts as none, relative to the largest output


class Axis(NamedTuple):
    """One axis of a tensor that a permutation acts on; a unit owns `repeat` consecutive entries of it."""

    tensor: str
    axis: int
    repeat: int = 1


@dataclass(frozen=True)
class PermutationSpec:
    """Which axes of which tensors share which permutation of units.

    Parameters
    ----------
    groups : mapping of str to sequence of (tensor, axis) or (tensor, axis, repeat)
        One entry a permutation. Tensors are parameters or buffers, axes count without the model axis, and `repeat` is
        the number of consecutive entries a unit owns (height x width where a convolution is flattened).
    taps : mapping of str to str, optional
        Layer whose output shows the units of a group, channels first; needed for activation matching only.

    Examples
    --------
    >>> spec = PermutationSpec({"hidden": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]}, taps={"hidden": "1"})
    >>> spec.axes["hidden"][2]
    Axis(tensor='2.weight', axis=1, repeat=1)
    """

    groups: Mapping[str, Sequence[tuple]]
    taps: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """The groups, every entry an :class:`Axis`."""
        return {name: tuple(Axis(*axis) for axis in group) for name, group in self.groups.items()}

    def sizes(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """Count the units of every group, for stacked tensors (n, *shape).

        Raises
        ------
        NetError
            When a tensor or axis does not exist, or the axes of a group disagree.
        """
        sizes = {}
        for name, group in self.axes.items():
            for tensor, axis, repeat in group:
                if tensor not in tensors or not 0 <= axis < tensors[tensor].dim() - 1:
                    raise NetError(
                        f"permutation {name!r} names axis {axis} of {tensor!r}, which the net does not have; "
                        f"its tensors: {', '.join(tensors)}."
                    )
                length = tensors[tensor].shape[axis + 1]
                units = sizes.setdefault(name, length // repeat)
                if units * repeat != length:
                    raise NetError(
                        f"permutation {name!r} has {units} units, but axis {axis} of {tensor!r} has {length} entries "
                        f"of {repeat} a unit; correct the spec."
                    )
        return sizes


def permutation_spec(module: nn.Module) -> PermutationSpec:
    """Derive the permutation symmetries of a chain of layers: one group a hidden layer.

    Parameters
    ----------
    module : torch.nn.Module
        `nn.Sequential`, nested or not, of linear layers, convolutions, batch norm, flattening, pooling, dropout and
        pointwise activations.

    Returns
    -------
    PermutationSpec
        Groups are named after the layer whose outputs they permute.

    Raises
    ------
    NetError
        For any other module: describe its symmetries by a :class:`PermutationSpec` of your own.

    Examples
    --------
    >>> spec = permutation_spec(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> {name: [(a.tensor, a.axis) for a in axes] for name, axes in spec.axes.items()}
    {'0': [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]}
    """
    leaves = plain_leaves(module)
    if leaves is None:
        raise _underivable(f"{type(module).__name__} is not a plain chain of layers (nn.Sequential), each used once")
    affine = [n for n, (_, leaf) in enumerate(leaves) if isinstance(leaf, (nn.Linear, *CONVOLUTIONS))]
    named = dict(module.named_modules())  # holds a module used twice once
    groups: dict[str, list[tuple]] = {}
    taps: dict[str, str] = {}
    current, units = None, 0  # the group that carries the signal, None at the inputs
    for name, leaf in leaves[: affine[-1] + 1] if affine else []:
        if isinstance(leaf, (nn.Linear, *CONVOLUTIONS)):
            if getattr(leaf, "groups", 1) != 1:
                raise _underivable(f"layer {name!r} is a grouped convolution")
            if current is not None:
                groups[current].append((f"{name}.weight", 1, _repeat(leaf.weight.shape[1], units, name)))
            current, units = name, leaf.weight.shape[0]
            groups[name] = [(f"{name}.weight", 0)] + ([(f"{name}.bias", 0)] if leaf.bias is not None else [])
        elif isinstance(leaf, BATCH_NORMS):
            if current is not None:
                repeat = _repeat(leaf.num_features, units, name)
                tensors = [*leaf.named_parameters(), *leaf.named_buffers()]
                groups[current] += [(f"{name}.{key}", 0, repeat) for key, value in tensors if value.dim() == 1]
        elif type(leaf) not in (*UNIT_WISE, nn.Flatten) or getattr(leaf, "start_dim", 1) != 1:
            raise _underivable(f"layer {name!r} ({leaf}) may mix units")
        if current is not None and name in named and type(leaf) is not nn.Flatten:
            taps[current] = name
    groups.pop(leaves[affine[-1]][0] if affine else "", None)  # outputs mean what they mean
    return PermutationSpec(groups, {name: taps[name] for name in groups})


def _underivable(why: str) -> NetError:
    return NetError(
        f"cannot derive the permutation symmetries of this net: {why}; "
        "describe them by a PermutationSpec and pass spec=."
    )


def _repeat(length: int, units: int, name: str) -> int:
    if length % units:
        raise _underivable(f"layer {name!r} takes {length} features, not a multiple of the {units} units before it")
    return length // units


def apply_permutations(
    cohort: Cohort, permutations: Permutations, *, spec: PermutationSpec | None = None, x: Tensor | None = None
) -> Cohort:
    """Reorder the hidden units of every model, which leaves its function as it was.

    Parameters
    ----------
    cohort : Cohort
        n models.
    permutations : dict of str to Tensor (n, units)
        For each group the old index of every new unit, as ``weight_matching`` returns them.
    spec : PermutationSpec, optional
        Derived from the architecture by default.
    x : Tensor of shape (b, ...), optional
        Inputs on which the function is compared before and after. Without them a derived spec is checked on random
        inputs where their shape is known, and trusted elsewhere; a spec of your own needs them.

    Returns
    -------
    Cohort
        The same ids and functions.

    Raises
    ------
    MeasureError
        When an output moves by more than 1e-5 of the largest: the spec is no symmetry of this net.
    """
    given, spec = spec is not None, spec or permutation_spec(cohort.module)
    tensors = {**cohort.params, **cohort.buffers}
    spec.sizes(tensors)
    moved = permute_tensors(tensors, permutations, spec)
    aligned = Cohort(
        cohort.ids, {k: moved[k] for k in cohort.params}, cohort.module, {k: moved[k] for k in cohort.buffers}
    )
    if x is None and given:
        raise MeasureError("a PermutationSpec of your own is checked before use; pass x=, a batch of inputs.")
    x = _probe(cohort) if x is None else x
    if x is not None:
        _check_same_function(cohort, aligned, x)
    return aligned


def permute_tensors(
    tensors: Mapping[str, Tensor], permutations: Permutations, spec: PermutationSpec
) -> dict[str, Tensor]:
    """Stacked tensors with their units in the order of `permutations`."""
    moved = dict(tensors)
    for name, group in spec.axes.items():
        for tensor, axis, repeat in group:
            moved[tensor] = gather_units(moved[tensor], permutations[name], axis, repeat)
    return moved


def gather_units(tensor: Tensor, permutation: Tensor, axis: int, repeat: int) -> Tensor:
    """Stacked `tensor` (m, *shape) with the units along `axis` taken in the order `permutation` (m, units)."""
    m, units = permutation.shape
    shape = tensor.shape
    blocks = tensor.reshape(m, *shape[1 : axis + 1], units, repeat, *shape[axis + 2 :])
    index = permutation.view(m, *[1] * axis, units, *[1] * (blocks.dim() - axis - 2)).expand_as(blocks)
    return blocks.gather(axis + 1, index).reshape(shape)


def _probe(cohort: Cohort) -> Tensor | None:
    """Random inputs, where the first layer with weights tells their shape."""
    first = next((leaf for leaf in cohort.module.modules() if list(leaf.parameters(recurse=False))), None)
    if type(first) is not nn.Linear:
        return None
    like = next(iter(cohort.params.values()))
    return torch.randn(16, first.in_features, generator=generator("alignment probe")).to(like)


def _check_same_function(before: Cohort, after: Cohort, x: Tensor) -> None:
    x = before.inputs(x)
    a, b = before(x).flatten(1).double(), after(x).flatten(1).double()  # (n, b c)
    change = (a - b).abs().amax(1) / a.abs().amax(1).clamp_min(1e-300)
    for name, value, finite in zip(before.ids, change.tolist(), a.isfinite().all(1).tolist(), strict=True):
        if finite and not value <= TOLERANCE:
            raise MeasureError(
                f"permuting the units of {name!r} changed its outputs by {value:.1e} of the largest (allowed "
                f"{TOLERANCE:.0e}); the PermutationSpec is not a symmetry of this net."
            )
