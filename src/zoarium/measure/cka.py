"""Similarity of what two networks compute: debiased linear CKA.

    CKA(X, Y) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),    K = X Xᵀ, L = Y Yᵀ  (m samples),

    HSIC(K, L) = [tr(K̃ L̃) + (1ᵀK̃1)(1ᵀL̃1) / ((m-1)(m-2)) - 2 (1ᵀK̃ L̃1) / (m-2)] / (m (m-3))

with K̃ = K without its diagonal: the unbiased estimator of Song et al., "Feature selection via dependence
maximization", 2012, averaged over blocks of samples before the ratio is taken, as Nguyen, Raghu & Kornblith, "Do wide
and deep networks learn the same things?", 2021 (arXiv 2010.15327). Kornblith et al., "Similarity of neural network
representations revisited", 2019, define CKA; their biased form says .8 for *independent* features of 512 dimensions on
128 samples.

How it is computed. For block-centred X with k_i = |x_i|² and s = Σ k_i, the numerator is Σ_{i≠j} A_ij B_ij with

    A_ij = x_i·x_j + u_i + u_j,    u_i = k_i/(m-2) - s/(2 (m-1)(m-2)),

so A = P Qᵀ off its diagonal with P = [X, u, 1] and Q = [X, 1, u]. All pairs of n models are one Gram product of the n
rows vec(A). A few pairs of narrow features never form A: Σ_j A_ij B_ij = p_iᵀ (Q_XᵀQ_Y) p'_i.

Its standard error is an infinitesimal jackknife: sample i moves HSIC by 2 (Σ_j A_ij B_ij - its mean), and CKA by the
chain rule; samples are pooled in groups of `GROUP`, which are independent, to keep the cost that of the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates, concatenate
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset
from zoarium.measure.hsic import HsicSums, Prepared, blocks_of, cheapest_route
from zoarium.measure.performance import activations, dtype_of
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

BUDGET = 2**27  # bytes of activations, or of Gram matrices, held at a time


@measure(
    "cka", scope="pair", across=True,
    reference="Kornblith et al. 2019; Song et al. 2012 (unbiased HSIC); Nguyen, Raghu & Kornblith 2021 (minibatches)",
    cost="one forward pass a model, one Gram product for all pairs",
)  # fmt: skip
def cka(
    cohorts: Sequence[Cohort], pairs: Tensor, data: Dataset, *, layers: Sequence[str] = ("logits",),
    samples: int | None = 1000, split: Literal["test", "train"] = "test", block: int = 256, seed: int = 0,
) -> dict[str, Estimates]:  # fmt: skip
    """Debiased linear CKA of pairs of models.

    Parameters
    ----------
    cohorts : sequence of Cohort
        Models; architectures may differ.
    pairs : Tensor of shape (m, 2)
        Rows, counted through all cohorts.
    data : Dataset
        Where the inputs come from.
    layers : sequence of str, default ("logits",)
        Names of layers every architecture has; "logits" is the output. Maps of a convolution are flattened.
    samples : int, optional, default 1000
        Inputs, drawn without replacement from `seed`; None for the whole split.
    split : {"test", "train"}, default "test"
    block : int, default 256
        Largest number of inputs compared with one another; the inputs are cut into equal blocks.
    seed : int, default 0
        Draws and shuffles the inputs.

    Returns
    -------
    dict of str to Estimates
        ``cka`` for the logits and ``cka:LAYER`` for any other layer: 1 for features equal up to rotation and scale,
        about 0 for independent ones (it can be a little below). NaN with a reason for features that are constant or not
        finite.

    Raises
    ------
    MeasureError
        For fewer than 8 samples, or an unknown split.
    NetError
        For a layer that a net does not have.

    Notes
    -----
    All pairs of n models on N inputs take about 2 n² N `block` operations a layer, and n `block`² numbers of memory.

    Examples
    --------
    >>> from zoarium.testing.cohorts import small_cohort, small_dataset
    >>> got = cka([small_cohort()], torch.tensor([[0, 0], [0, 1]]), small_dataset())
    >>> itself, other = got["cka"].value.tolist()
    >>> round(itself, 6), 0.2 < other < 0.9
    (1.0, True)
    """
    if split not in ("test", "train"):
        raise MeasureError(f"cka: split must be 'test' or 'train', found {split!r}.")
    x = (data.test if split == "test" else data.train).x
    order = torch.randperm(len(x), generator=generator("cka", seed))  # shuffled: data sorted by class make poor blocks
    x = x[order[: samples if samples is not None else len(x)]]
    blocks = blocks_of(len(x), block)
    pairs = pairs.reshape(-1, 2)
    done: dict[str, list[Estimates]] = {layer: [] for layer in layers}
    for piece in _pieces(pairs, blocks[0].stop):
        models, local = piece.unique(return_inverse=True)
        chosen = _select(cohorts, models)
        sums = {}
        for layer in layers:
            route = cheapest_route(len(models), len(piece), _width(chosen, layer, x), blocks[0].stop)
            sums[layer] = HsicSums(len(models), local.reshape(-1, 2), len(x), route)
        for rows in blocks:
            prepared: dict[str, list[Prepared]] = {layer: [] for layer in layers}
            for at, cohort in _within_memory(chosen, x, rows.stop - rows.start):
                taken = cohort.features(cohort.inputs(x[rows]), list(layers))
                for layer in layers:
                    prepared[layer].append(sums[layer].prepare(taken.pop(layer).flatten(2), at))
            for layer in layers:
                sums[layer].add(prepared[layer])
        for layer in layers:
            value, stderr, reason = sums[layer].finish()
            done[layer].append(Estimates(value, stderr, len(x), 0, reason))
    names = {layer: "cka" if layer == "logits" else f"cka:{layer}" for layer in layers}
    return {names[layer]: concatenate(parts) if parts else Estimates([]) for layer, parts in done.items()}


def cka_matrix(
    features: Tensor | np.ndarray | Sequence[Tensor | np.ndarray], *, block: int | None = None
) -> np.ndarray:
    """Debiased linear CKA of every two of n sets of features on the same m samples.

    Parameters
    ----------
    features : array (n, m, d), or sequence of n arrays (m, d_i)
        Rows are samples, in one order for all.
    block : int, optional
        Largest number of samples compared with one another (see :func:`cka`); default all of them. Shuffle the
        samples before cutting them into blocks.

    Returns
    -------
    array of shape (n, n)
        Symmetric, 1 on the diagonal; NaN in rows and columns of features that are constant or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 6))
    >>> rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    >>> cka_matrix([x, 3 * x @ rotation, np.ones((100, 2))]).round(6)
    array([[ 1.,  1., nan],
           [ 1.,  1., nan],
           [nan, nan, nan]])
    """
    sets = [torch.as_tensor(f) for f in features]
    sets = [f if f.is_floating_point() else f.double() for f in sets]
    if not sets:
        return np.empty((0, 0))
    for n, f in enumerate(sets):
        if f.dim() != 2 or len(f) != len(sets[0]):
            raise MeasureError(
                f"CKA compares (samples, features) matrices on the same samples: number {n} has shape "
                f"{tuple(f.shape)}, the first {tuple(sets[0].shape)}."
            )
    dtype = sets[0].dtype
    for f in sets:
        dtype = torch.promote_types(dtype, f.dtype)
    blocks = blocks_of(len(sets[0]), block)
    i, j = torch.triu_indices(len(sets), len(sets))
    sums = HsicSums(len(sets), torch.stack([i, j], 1), len(sets[0]), "all")
    for rows in blocks:
        sums.add([sums.prepare(f[None, rows].to(dtype), slice(n, n + 1)) for n, f in enumerate(sets)])
    value = np.empty((len(sets), len(sets)))
    value[i, j] = value[j, i] = sums.finish()[0]
    return value


def _pieces(pairs: Tensor, block: int) -> Iterator[Tensor]:
    """Cut a long list of few pairs where their models' matrices outgrow the budget; most of all pairs stay together."""
    models = len(pairs.unique())
    most = max(2, BUDGET // (block**2 * 4))
    if len(pairs) > 4 * models or models <= most:
        if len(pairs):
            yield pairs
        return
    start, seen = 0, set()
    for n, (a, b) in enumerate(pairs.tolist()):
        if len(seen | {a, b}) > most:
            yield pairs[start:n]
            start, seen = n, set()
        seen |= {a, b}
    yield pairs[start:]


def _select(cohorts: Sequence[Cohort], models: Tensor) -> list[Cohort]:
    """The cohorts with nothing but `models`, sorted rows counted through all of them."""
    chosen, start = [], 0
    for cohort in cohorts:
        inside = models[(models >= start) & (models < start + len(cohort))] - start
        start += len(cohort)
        if len(inside):
            chosen.append(cohort if len(inside) == len(cohort) else cohort.select(inside))
    return chosen


def _width(cohorts: Sequence[Cohort], layer: str, x: Tensor) -> float:
    """Features of a layer, the mean over models."""
    widths = [c.select([0]).features(c.inputs(x[:1]), [layer])[layer].numel() for c in cohorts]
    return float(np.average(widths, weights=[len(c) for c in cohorts]))


def _within_memory(cohorts: Sequence[Cohort], x: Tensor, block: int) -> Iterator[tuple[slice, Cohort]]:
    """The cohorts in slices whose activations on a block fit in the budget, with their rows among all models."""
    start = 0
    for cohort in cohorts:
        step = max(1, BUDGET // (block * activations(cohort, x) * dtype_of(cohort).itemsize))
        for first in range(0, len(cohort), step):
            last = min(first + step, len(cohort))
            part = cohort if last - first == len(cohort) else cohort.select(range(first, last))
            yield slice(start + first, start + last), part
        start += len(cohort)
