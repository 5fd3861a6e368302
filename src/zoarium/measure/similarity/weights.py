"""Similarity of models by their weights, over the learnt matrices that they have in common; no architecture is needed.

    l2_distance     = ||a - b|| / sqrt((||a||^2 + ||b||^2) / 2)         0 for copies, sqrt(2) for orthogonal weights
    cosine_distance = 1 - <a, b> / (||a|| ||b||)
    cosine_stderr   = sqrt(sum_l ||a_l||^2 ||b_l||^2 / p_l) / (||a|| ||b||)       = 1/sqrt(p) for a single matrix
    sign_agreement  = share of equal signs where neither is zero;   sign_expected = (1 + s_a s_b) / 2

a and b are the common matrices side by side, p_l the numbers of matrix l, s the mean sign. `cosine_stderr` is the
spread of the cosine between weights that are independent with mean zero; since trained weights have means and share
statistics of their data, whether two models are *related* is judged by the test of
:mod:`zoarium.measure.similarity.independence`, which needs no such assumption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from zoarium._core.errors import MeasureError
from zoarium.measure.similarity.gram import Key, TensorProducts, buffer_numbers, tensor_products
from zoarium.measure.similarity.independence import UNITS
from zoarium.measure.similarity.names import match_names
from zoarium.measure.similarity.sources import Source, open_sources
from zoarium.measure.similarity.spectra import spectral_distances

if TYPE_CHECKING:
    import polars as pl

LEVEL = 0.001
UNMATCHED = "no other model has a tensor of this name and shape"
ROUNDING = 1e-15  # of sums of squares in float64; less than this of them is no distance


@dataclass(frozen=True)
class WeightSimilarity:
    """What `weight_similarity_result` returns.

    Parameters
    ----------
    pairs : polars.DataFrame
        A row a pair of models, as `weight_similarity` tells.
    tensors : polars.DataFrame
        A row a pair and tensor: ``a``, ``b``, ``tensor`` (its shared name), ``shape``, ``identical``, ``l2_distance``,
        ``cosine_distance``, ``sign_agreement``, ``z``; empty unless `per_tensor` was asked for.
    models : polars.DataFrame
        A row a model: ``model``, ``tensors``, ``parameters`` (numbers of all its tensors), ``kept`` and
        ``kept_parameters`` (learnt matrices that another model has too), ``share`` (of its parameters that was
        compared), ``renamed`` (the prefix exchanged to match names).
    left_out : polars.DataFrame
        A row a tensor that was not compared: ``model``, ``tensor`` (its own name), ``parameters``, ``reason``.
    """

    pairs: pl.DataFrame
    tensors: pl.DataFrame
    models: pl.DataFrame
    left_out: pl.DataFrame

    def __str__(self) -> str:
        related = int(self.pairs["related"].sum())
        compared = len(self.pairs) - self.pairs["matched"].eq(0).sum()
        share = self.models["share"].mean()
        return (
            f"{len(self.models)} models, {len(self.pairs)} pairs: {compared} have matrices in common, {related} are "
            f"related; {share if isinstance(share, float) else 0:.0%} of a model's parameters was compared on average"
        )


def weight_similarity(
    models: Any, *, spectra: bool = False, level: float = LEVEL, units: int = UNITS,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> pl.DataFrame:  # fmt: skip
    """How alike every pair of models is by weights alone, and whether they can be independent.

    Parameters
    ----------
    models : path, Zoo, mapping or iterable
        A folder of checkpoints (looked through with its sub-folders), a zoo, or several of: paths, what
        ``za.read_model`` returns, models of a zoo, modules, state dicts. A mapping names them.
    spectra : bool, default False
        Also compare singular values, which needs no equal names or shapes.
    level : float, default 0.001
        Probability that any pair of independent models is called related, over all pairs (Bonferroni).
    units : int, default 128
        Units of each side of a matrix that the test of independence looks at.
    on_progress : callable, optional
        Called with (tensors done, tensors in all, name).

    Returns
    -------
    polars.DataFrame
        A row a pair: ``a``, ``b``; ``matched`` (matrices compared), ``parameters`` (numbers in them), ``share_a`` and
        ``share_b`` (of all the parameters of each); ``identical`` (share of the compared numbers in matrices that are
        equal bit by bit); ``l2_distance`` (relative), ``cosine_distance`` (0 to 2), ``cosine_stderr``;
        ``sign_agreement`` and ``sign_expected``; ``z`` and ``p`` of the test of independence (small p: the models share
        a start, or one was made from the other), ``related``; with `spectra` also ``spectral_distance`` and
        ``spectral_matched``; ``reason`` (why there is nothing to compare). Quantities are null where there is none.

    Raises
    ------
    MeasureError
        For fewer than two models, or something that holds no named tensors.
    StoreError
        For files that cannot be read.

    Notes
    -----
    Compared are the learnt matrices (`why_left_out`) that correspond by name and shape, a prefix such as ``module.``
    aside; kernels of convolutions too. Tensors are read one at a time: at most twice from each model, never once a
    pair. The peak of memory is the tensor being read, a buffer as large as the largest tensor (64 MiB at least), and
    about 200 MiB: at most 3 times the largest tensor and that constant, whatever the number of models; with `spectra`
    see `singular_values`. Time is of order p n^2. An l2_distance below 1e-7 cannot be told from rounding.

    The test is silent about copies whose units were permuted; those have a `spectral_distance` of zero. Layers without
    hidden units on either side, as in a linear classifier, can make models of the same data look related.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> a, c = nn.Linear(40, 30), nn.Linear(40, 30)
    >>> b = {f"module.{k}": v + 0.01 * torch.randn_like(v) for k, v in a.state_dict().items()}
    >>> weight_similarity({"a": a, "b": b, "c": c}).select("a", "b", "related").rows()
    [('a', 'b', True), ('a', 'c', False), ('b', 'c', False)]
    """
    return weight_similarity_result(models, spectra=spectra, level=level, units=units, on_progress=on_progress).pairs


def weight_similarity_result(
    models: Any, *, spectra: bool = False, per_tensor: bool = False, level: float = LEVEL, units: int = UNITS,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> WeightSimilarity:  # fmt: skip
    """`weight_similarity` with the tables behind it: each tensor, each model, and what was left out.

    Parameters
    ----------
    models, spectra, level, units, on_progress
        As for `weight_similarity`.
    per_tensor : bool, default False
        Keep a row a pair and tensor.

    Returns
    -------
    WeightSimilarity
    """
    if not 0 < level < 1:
        raise MeasureError(f"level must lie between 0 and 1, found {level}.")
    if units < 8:
        raise MeasureError(f"units must be at least 8, found {units}.")
    sources = open_sources(models)
    shared, renamed = match_names([source.shapes for source in sources])
    keys, left_out = _keys(sources, shared)
    total = sum(len(key.own) for key in keys)
    sums = _Sums(len(sources))
    rows: list[dict[str, Any]] = []
    limit, done = buffer_numbers(sources, keys), 0
    for key in keys:

        def tick(name: str = key.name) -> None:
            nonlocal done
            done += 1
            if on_progress:
                on_progress(done, total, name)

        found = tensor_products(sources, key, limit, units=units, rest=tick)
        left_out += [(i, key.own[i], key.numel, reason) for i, reason in found.left_out.items()]
        sums.add(found)
        if per_tensor:
            rows += _tensor_rows(sources, found)
    spectral = spectral_distances(sources) if spectra else None
    return WeightSimilarity(
        _pair_table(sources, sums, spectral, level),
        _frame(rows, ("a", "b", "tensor"), ("l2_distance", "cosine_distance", "sign_agreement", "z"), shape=True),
        _model_table(sources, sums, renamed),
        _left_out_table(sources, left_out),
    )


def _keys(
    sources: Sequence[Source], shared: Sequence[dict[str, str]]
) -> tuple[list[Key], list[tuple[int, str, int, str]]]:
    """Tensors that two models have at least, and those that one alone has."""
    groups: dict[tuple[str, tuple[int, ...]], dict[int, str]] = {}
    for i, source in enumerate(sources):
        for own, shape in source.shapes.items():
            groups.setdefault((shared[i][own], shape), {})[i] = own
    keys, alone = [], []
    for (name, shape), own in groups.items():
        if len(own) > 1:
            keys.append(Key(name, shape, own))
        else:
            alone += [(i, held, math.prod(shape), UNMATCHED) for i, held in own.items()]
    return keys, alone


class _Sums:
    """What is summed over tensors for every pair."""

    def __init__(self, n: int):
        self.matched, self.parameters, self.identical = (np.zeros((n, n)) for _ in range(3))
        self.dot, self.first, self.second, self.variance = (np.zeros((n, n)) for _ in range(4))
        self.distance, self.signs, self.nonzero, self.expected = (np.zeros((n, n)) for _ in range(4))
        self.z, self.tested = np.zeros((n, n)), np.zeros((n, n))
        self.kept, self.kept_parameters = np.zeros(n, dtype=int), np.zeros(n, dtype=int)

    def add(self, found: TensorProducts) -> None:
        if len(found.rows) < 2:
            return
        at, p = np.ix_(found.rows, found.rows), found.key.numel
        square = found.gram.diagonal()
        self.matched[at] += 1
        self.parameters[at] += p
        self.identical[at] += p * found.same
        self.dot[at] += found.gram
        self.first[at] += square[:, None]
        self.second[at] += square[None, :]
        self.variance[at] += np.outer(square, square) / p
        self.distance[at] += _squared_distance(found)
        self.signs[at] += found.signs
        self.nonzero[at] += found.nonzero
        mean = found.positive / np.maximum(found.filled, 1)
        self.expected[at] += found.nonzero * np.outer(mean, mean)
        tested = np.isfinite(found.z)
        self.z[at] += np.where(tested, found.z, 0)
        self.tested[at] += tested
        self.kept[found.rows] += 1
        self.kept_parameters[found.rows] += p


def _squared_distance(found: TensorProducts) -> np.ndarray:
    square = found.gram.diagonal()
    total = square[:, None] + square[None, :]
    gap = total - 2 * found.gram
    return np.where(found.same | (gap < ROUNDING * total), 0.0, gap)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=under > 0)


def _pair_table(sources: Sequence[Source], sums: _Sums, spectral: Any, level: float) -> pl.DataFrame:
    from scipy.stats import norm

    names = [source.name for source in sources]
    sizes = np.array([max(1, sum(map(math.prod, source.shapes.values()))) for source in sources])
    norms = np.sqrt(sums.first) * np.sqrt(sums.second)
    l2 = np.sqrt(_ratio(sums.distance, (sums.first + sums.second) / 2))
    # by the chord where weights are close: 1 - cos would be rounding
    cosine = np.where(sums.identical == sums.parameters, 0.0, 1 - _ratio(sums.dot, norms)).clip(0, 2)
    z = _ratio(sums.z, np.sqrt(sums.tested))
    p = norm.sf(z)
    count = len(names) * (len(names) - 1) // 2
    columns: dict[str, np.ndarray] = {
        "identical": _ratio(sums.identical, sums.parameters), "l2_distance": l2,
        "cosine_distance": np.where(norms > 0, cosine, np.nan), "cosine_stderr": _ratio(np.sqrt(sums.variance), norms),
        "sign_agreement": (1 + _ratio(sums.signs, sums.nonzero)) / 2,
        "sign_expected": (1 + _ratio(sums.expected, sums.nonzero)) / 2, "z": z, "p": p,
    }  # fmt: skip
    rows = []
    for a, b in combinations(range(len(names)), 2):
        nothing = not sums.matched[a, b]
        row: dict[str, Any] = {
            "a": names[a], "b": names[b], "matched": int(sums.matched[a, b]), "parameters": int(sums.parameters[a, b]),
            "share_a": sums.parameters[a, b] / sizes[a], "share_b": sums.parameters[a, b] / sizes[b],
            **{name: _number(values[a, b]) for name, values in columns.items()},
            "related": bool(p[a, b] < level / count) if np.isfinite(p[a, b]) else None,
            "reason": "no learnt matrix of one name and shape in both" if nothing else "",
        }  # fmt: skip
        if spectral is not None:
            row |= {"spectral_distance": _number(spectral[0][a, b]), "spectral_matched": int(spectral[1][a, b])}
        rows.append(row)
    numbers = (*columns, *(["spectral_distance"] if spectral is not None else []))
    return _frame(rows, ("a", "b"), ("share_a", "share_b", *numbers))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _tensor_rows(sources: Sequence[Source], found: TensorProducts) -> list[dict[str, Any]]:
    distance, square = _squared_distance(found), found.gram.diagonal()
    rows = []
    for a, b in combinations(range(len(found.rows)), 2):
        norm = math.sqrt(square[a]) * math.sqrt(square[b])
        cosine = 0.0 if found.same[a, b] else min(2.0, max(0.0, 1 - found.gram[a, b] / norm))
        both = found.nonzero[a, b]
        rows.append({
            "a": sources[found.rows[a]].name, "b": sources[found.rows[b]].name, "tensor": found.key.name,
            "shape": list(found.key.shape), "identical": bool(found.same[a, b]),
            "l2_distance": math.sqrt(distance[a, b] / ((square[a] + square[b]) / 2)), "cosine_distance": cosine,
            "sign_agreement": (1 + found.signs[a, b] / both) / 2 if both else None, "z": _number(found.z[a, b]),
        })  # fmt: skip
    return rows


def _frame(
    rows: list[dict[str, Any]], texts: tuple[str, ...], numbers: tuple[str, ...], *, shape: bool = False
) -> pl.DataFrame:
    """Rows as a table whose types do not depend on what is in them."""
    import polars as pl

    schema: dict[str, Any] = dict.fromkeys(texts, pl.String)
    if shape:
        schema |= {"shape": pl.List(pl.Int64), "identical": pl.Boolean}
    if rows:
        known = {"matched": pl.Int64, "parameters": pl.Int64, "related": pl.Boolean, "reason": pl.String,
                 "spectral_matched": pl.Int64}  # fmt: skip
        schema |= {name: known.get(name, pl.Float64) for name in rows[0] if name not in schema}
    else:
        schema |= dict.fromkeys(numbers, pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def _model_table(sources: Sequence[Source], sums: _Sums, renamed: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    rows = []
    for i, source in enumerate(sources):
        size = sum(map(math.prod, source.shapes.values()))
        rows.append((source.name, len(source.shapes), size, int(sums.kept[i]), int(sums.kept_parameters[i]),
                     sums.kept_parameters[i] / max(1, size), renamed[i]))  # fmt: skip
    schema = {"model": pl.String, "tensors": pl.Int64, "parameters": pl.Int64, "kept": pl.Int64,
              "kept_parameters": pl.Int64, "share": pl.Float64, "renamed": pl.String}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _left_out_table(sources: Sequence[Source], left_out: list[tuple[int, str, int, str]]) -> pl.DataFrame:
    import polars as pl

    rows = [(sources[i].name, name, size, reason) for i, name, size, reason in sorted(left_out)]
    schema = {"model": pl.String, "tensor": pl.String, "parameters": pl.Int64, "reason": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")
