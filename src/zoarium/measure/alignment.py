"""Match the hidden units of networks, whose order carries no meaning.

Two trained networks are compared or averaged after the units of b are reordered to resemble those of a:

    max_P  <θ_a, P θ_b> = Σ_tensors Σ_units <a[i], b[P(i)]>

solved one layer at a time, exactly, as a linear assignment, until no layer changes (weight matching); or from the
correlation of the units' activations (activation matching). Ainsworth, Hayase & Srinivasa, "Git Re-Basin: merging
models modulo permutation symmetries", 2023, Algorithm 1; Li et al., "Convergent learning", 2016, for activations.

Only permutations are matched, not signs or scales: see :mod:`zoarium.measure.permutations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from zoarium._core.errors import MeasureError, unknown_name
from zoarium._core.seeds import generator
from zoarium.measure.permutations import (
    Axis,
    Permutations,
    PermutationSpec,
    apply_permutations,
    gather_units,
    permutation_spec,
)
from zoarium.zoo.cohort import Cohort

__all__ = [
    "Axis", "PermutationSpec", "Permutations", "activation_matching", "align_to", "apply_permutations", "match",
    "permutation_spec", "weight_matching",
]  # fmt: skip

Method = Literal["weight", "activation"]


def weight_matching(
    cohort: Cohort,
    pairs: Tensor | Sequence[Sequence[int]],
    *,
    spec: PermutationSpec | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
) -> Permutations:
    """Permutations of the units of b that bring its weights closest to those of a, for all pairs at once.

    Coordinate descent over the layers in random order: each is a linear assignment given the others, whose costs are
    one batched product for all pairs. It is exact for one hidden layer and finds a local optimum for more.

    Parameters
    ----------
    cohort : Cohort
        Models of one architecture.
    pairs : array of shape (m, 2)
        Rows (a, b) of the cohort.
    spec : PermutationSpec, optional
        Derived from the architecture by default.
    seed : int, default 0
        Draws the order of the layers.
    max_sweeps : int, default 100
        Limit on passes over the layers; a few are enough in practice.

    Returns
    -------
    dict of str to Tensor (m, units)
        Unit i of a corresponds to unit ``perm[i]`` of b. Where weights are not finite, the identity. Ties, as between
        dead units, keep the order they have.

    Notes
    -----
    Buffers (batch-norm statistics) move with their units but do not enter the costs.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> weight_matching(Cohort.from_modules([net, net]), [[0, 1]])
    {'0': tensor([[0, 1, 2]])}
    """
    spec = spec or permutation_spec(cohort.module)
    sizes = spec.sizes({**cohort.params, **cohort.buffers})
    pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    touched = {axis.tensor for group in spec.axes.values() for axis in group if axis.tensor in cohort.params}
    a = {k: cohort.params[k][pairs[:, 0]] for k in touched}  # (m, *shape)
    b = {k: cohort.params[k][pairs[:, 1]] for k in touched}
    finite = torch.ones(len(pairs), dtype=torch.bool)
    for tensor in (*a.values(), *b.values()):
        finite &= tensor.isfinite().flatten(1).all(1)
    rows = finite.nonzero().flatten()
    a, b = {k: v[rows] for k, v in a.items()}, {k: v[rows] for k, v in b.items()}
    found = {name: torch.arange(units).repeat(len(rows), 1) for name, units in sizes.items()}

    draw = generator("weight_matching", seed)
    names = list(spec.groups)
    tensors_of = {name: {axis.tensor for axis in group} & touched for name, group in spec.axes.items()}
    stale = set(names) if len(rows) else set()
    for _ in range(max_sweeps):
        if not stale:
            break
        for index in torch.randperm(len(names), generator=draw).tolist():
            name = names[index]
            if name not in stale:
                continue
            stale.discard(name)
            scores = _scores(a, b, found, name, spec)
            if _improve(found[name], scores):
                stale |= {other for other in names if other != name and tensors_of[other] & tensors_of[name]}
    return {name: _full(found[name], rows, len(pairs)) for name in names}


def _scores(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], found: Permutations, name: str, spec: PermutationSpec
) -> Tensor:
    """<a[i], b[j]> for units i of a and j of b, (m, units, units), the other layers of b permuted as found so far."""
    total: Tensor | float = 0.0
    for tensor, axis, repeat in spec.axes[name]:
        if tensor not in b:
            continue
        other = b[tensor]
        for group, axes in spec.axes.items():
            for also in axes:
                if group != name and also.tensor == tensor:
                    other = gather_units(other, found[group], also.axis, also.repeat)
        left, right = _by_unit(a[tensor], axis, repeat), _by_unit(other, axis, repeat)
        total = total + torch.bmm(left, right.transpose(1, 2)).double()
    assert isinstance(total, Tensor)
    return total


def _by_unit(tensor: Tensor, axis: int, repeat: int) -> Tensor:
    """(m, *shape) as (m, units, everything a unit owns)."""
    moved = tensor.movedim(axis + 1, 1)  # (m, units repeat, rest)
    return moved.reshape(len(tensor), moved.shape[1] // repeat, -1)


def _improve(current: Tensor, scores: Tensor) -> bool:
    """Replace rows of `current` (m, units) by better assignments; say whether any changed."""
    from scipy.optimize import linear_sum_assignment

    before = scores.gather(2, current.unsqueeze(2)).sum((1, 2))
    slack = 1e-6 * scores.abs().amax((1, 2)) * scores.shape[1]  # rounding of sums is no improvement
    # a nudge towards the present order settles ties between equal (dead) units without moving anything else
    nudged = scores.scatter_add(2, current.unsqueeze(2), (1e-9 * scores.abs().amax((1, 2)))[:, None, None].expand(
        -1, scores.shape[1], 1))  # fmt: skip
    changed = False
    for row, matrix in enumerate(nudged.numpy()):
        best = torch.from_numpy(linear_sum_assignment(matrix, maximize=True)[1])
        if scores[row].gather(1, best.unsqueeze(1)).sum() > before[row] + slack[row]:
            current[row] = best
            changed = True
    return changed


def _full(found: Tensor, rows: Tensor, m: int) -> Tensor:
    full = torch.arange(found.shape[1]).repeat(m, 1)
    full[rows] = found
    return full


def activation_matching(
    cohort: Cohort, pairs: Tensor | Sequence[Sequence[int]], x: Tensor, *, spec: PermutationSpec | None = None
) -> Permutations:
    """Permutations of the units of b whose activations on `x` correlate best with those of a.

    Parameters
    ----------
    cohort, pairs, spec
        As for :func:`weight_matching`; a spec of your own needs `taps`.
    x : Tensor of shape (b, ...)
        Inputs; for convolutions every place of a feature map is a sample.

    Returns
    -------
    dict of str to Tensor (m, units)
    """
    spec = spec or permutation_spec(cohort.module)
    sizes = spec.sizes({**cohort.params, **cohort.buffers})
    missing = set(spec.groups) - set(spec.taps)
    if missing:
        raise MeasureError(
            f"activation matching needs the layer that shows each group; add taps for {sorted(missing)}."
        )
    pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    features = cohort.features(cohort.inputs(x), list(set(spec.taps.values())))
    out: Permutations = {}
    for name, units in sizes.items():
        z = features[spec.taps[name]]  # (n, b, units, ...)
        z = z.movedim(2, 1).reshape(len(cohort), units, -1)
        z = z - z.mean(2, keepdim=True)
        z = z / z.norm(dim=2, keepdim=True).clamp_min(1e-12)  # a dead unit correlates with nothing
        scores = torch.bmm(z[pairs[:, 0]], z[pairs[:, 1]].transpose(1, 2)).double().nan_to_num(0.0, 0.0, 0.0)
        out[name] = torch.arange(units).repeat(len(pairs), 1)
        _improve(out[name], scores)
    return out


def match(
    cohort: Cohort,
    pairs: Tensor | Sequence[Sequence[int]],
    *,
    method: Method = "weight",
    x: Tensor | None = None,
    spec: PermutationSpec | None = None,
    seed: int = 0,
) -> Cohort:
    """Reorder the units of the second model of every pair as those of the first; its function stays as it was.

    Parameters
    ----------
    cohort : Cohort
    pairs : array of shape (m, 2)
        Rows (a, b) of the cohort.
    method : {"weight", "activation"}, default "weight"
    x : Tensor of shape (b, ...), optional
        Inputs for the check of :func:`apply_permutations`; required by "activation".
    spec : PermutationSpec, optional
    seed : int, default 0

    Returns
    -------
    Cohort
        The second models, m of them.

    Raises
    ------
    MeasureError
        For an unknown method, missing inputs, or a spec that is no symmetry.
    """
    pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
    if method == "weight":
        found = weight_matching(cohort, pairs, spec=spec, seed=seed)
    elif method == "activation":
        if x is None:
            raise MeasureError("activation matching looks at activations; pass x=, a batch of inputs.")
        found = activation_matching(cohort, pairs, x, spec=spec)
    else:
        raise MeasureError(unknown_name("matching method", method, ["weight", "activation"]))
    return apply_permutations(cohort.select(pairs[:, 1]), found, spec=spec, x=x)


def align_to(
    cohort: Cohort,
    groups: Sequence[Sequence[int]],
    *,
    method: Method = "weight",
    x: Tensor | None = None,
    spec: PermutationSpec | None = None,
    seed: int = 0,
) -> Cohort:
    """Reorder the units of each group's models as those of the group's first, ready to be averaged.

    Parameters
    ----------
    cohort : Cohort
    groups : sequence of sequences of int
        Rows of the cohort, e.g. the seeds of each cell; the first of each is its reference. Groups must not overlap.
        Models in no group stay as they are.
    method, x, spec, seed
        As for :func:`match`.

    Returns
    -------
    Cohort
        Same ids, same functions, permuted weights.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> len(align_to(Cohort.from_modules([net, net]), [[0, 1]]))
    2
    """
    pairs = list(_to_first(groups))
    rows = [row for group in groups for row in group]
    if len(set(rows)) != len(rows):
        raise MeasureError("a model can be aligned to one reference only, but groups overlap; align them one by one.")
    if not pairs:
        return cohort
    aligned = match(cohort, pairs, method=method, x=x, spec=spec, seed=seed)
    where = torch.tensor([row for _, row in pairs])

    def put(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.index_copy(0, where, theirs[k]) for k, v in mine.items()}

    return Cohort(cohort.ids, put(cohort.params, aligned.params), cohort.module, put(cohort.buffers, aligned.buffers))


def _to_first(groups: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    for first, *others in (group for group in groups if len(group)):
        yield from ((first, other) for other in others)
