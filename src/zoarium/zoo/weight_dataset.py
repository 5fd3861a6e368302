"""A zoo as a data set whose samples are models: weights in, any measured quantity out.

Two forms. "flat" lays all parameters of a model in one row. "tokens" cuts them into equal pieces as sequence models
want them: each unit's incoming weights and bias make a row, rows are cut into tokens of one size, and each token knows
its place, its layer and its index in the layer. Schürholt, Mahoney & Borth, "Towards scalable and versatile weight
space learning" (SANE), 2024 (arXiv 2406.09997).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoarium._core.errors import DataError, unknown_name
from zoarium._core.seeds import stream

if TYPE_CHECKING:
    from zoarium.zoo.zoo import Zoo

Form = Literal["flat", "tokens"]
HISTORY = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class WeightDataset(Dataset):
    """Models of a zoo as samples.

    Parameters
    ----------
    zoo : Zoo
        A zoo or a view of one. All its weights are held in memory.
    targets : sequence of str, default ("test_accuracy",)
        Columns of ``zoo.measured``, or "phase"; loss and accuracy come from the training history where they were not
        measured. Models that lack one (null or NaN) are left out, see :attr:`left_out`.
    form : {"flat", "tokens"}, default "flat"
    token_size : int, default 64
        Numbers a token, for "tokens".
    epoch : int, optional
        A stored epoch; default each model's last.

    Raises
    ------
    DataError
        For an unknown target (listing the known), an unknown form, or when no model has every target.

    Notes
    -----
    A sample is a dict of tensors that the default collate function stacks: models smaller than the largest are padded
    with zeros, and ``mask`` is True where a number is a weight.

    ==========  =====================  ==============================================================
    key         flat                   tokens
    ==========  =====================  ==============================================================
    weights     (p,) float             (t, token_size) float
    mask        (p,) bool              (t, token_size) bool
    positions   -                      (t, 3) int: place in the model, layer, place in the layer
    targets     (k,) float             (k,) float; text targets as their number in :attr:`classes`
    ==========  =====================  ==============================================================

    Buffers (batch-norm statistics) are not part of the weights.

    Examples
    --------
    >>> import zoarium as za
    >>> zoo = za.grow("mlp", width=[2, 4, 8], seed=range(2), epochs=1)
    >>> dataset = zoo.as_dataset(targets=["test_accuracy"])
    >>> [len(part) for part in dataset.split((0.34, 0.33, 0.33), seed=0)]
    [2, 2, 2]
    """

    def __init__(
        self, zoo: Zoo, targets: Sequence[str] = ("test_accuracy",), *,
        form: Form = "flat", token_size: int = 64, epoch: int | None = None,
    ) -> None:  # fmt: skip
        if form not in ("flat", "tokens"):
            raise DataError(f"form must be 'flat' or 'tokens', found {form!r}.")
        if isinstance(token_size, bool) or not isinstance(token_size, int) or token_size < 1:
            raise DataError(f"token_size must be a whole number from 1, found {token_size!r}.")
        self.target_names = (targets,) if isinstance(targets, str) else tuple(targets)
        self.form: Form = form
        table, self.classes = target_table(zoo, self.target_names)
        complete = table.drop_nulls().filter(pl.all_horizontal(pl.col(self.target_names).is_finite()))
        values = {row[0]: row[1:] for row in complete.iter_rows()}
        ids: list[str] = []
        self._blocks: list[tuple[Tensor, Tensor, Tensor]] = []  # weights (n, ...), mask (...), positions of a cohort
        self._places: list[tuple[int, int]] = []  # sample -> (block, row)
        loaded = 0
        for ref in zoo.cohorts(epoch=epoch):
            rows = [row for row, id in enumerate(ref.ids) if id in values]
            loaded += len(ref.ids)
            if not rows:
                continue
            cohort = ref.load().select(rows)
            self._places += [(len(self._blocks), row) for row in range(len(rows))]
            self._blocks.append(_flat(cohort.params) if form == "flat" else tokens_of(cohort.params, token_size))
            ids += cohort.ids
        if not loaded:
            raise DataError(
                "no model here has weights of a net that is known; grow some, or say which net foreign ones are with "
                "zoo.set_net."
            )
        if not ids:
            names = ", ".join(self.target_names)
            raise DataError(
                f"none of {loaded} models with weights has a value for every target ({names}); measure them first."
            )
        self.ids = tuple(ids)
        self.targets = torch.tensor([values[id] for id in ids], dtype=torch.float32)  # (N, k)
        self.left_out = tuple(id for id in table["id"] if id not in set(ids))
        self.groups = groups_of(zoo, self.ids)
        self.length = max(len(mask) for _, mask, _ in self._blocks)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One model; see the class's notes for shapes."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        block, row = self._places[index]
        weights, mask, positions = self._blocks[block]
        sample = {"weights": self._padded(weights[row]), "mask": self._padded(mask), "targets": self.targets[index]}
        return sample if self.form == "flat" else {**sample, "positions": self._padded(positions)}

    def _padded(self, tensor: Tensor) -> Tensor:
        out = tensor.new_zeros(self.length, *tensor.shape[1:])
        out[: len(tensor)] = tensor
        return out

    def select(self, rows: Sequence[int]) -> WeightDataset:
        """Some of the models, in the order given; weights are shared and padded as here."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.ids = tuple(self.ids[row] for row in rows)
        view.targets = self.targets[list(rows)]
        view.groups = self.groups[list(rows)]
        view._places = [self._places[row] for row in rows]
        return view

    def split(self, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0) -> tuple[WeightDataset, ...]:
        """Parts that share no cell.

        Seeds of one cell are near copies: a learner that has seen one has seen the others. A derived model goes with
        its parents' cell.

        Parameters
        ----------
        fractions : sequence of float, default (0.7, 0.15, 0.15)
            Shares of the cells; each part gets at least one.
        seed : int, default 0
            Deals the cells.

        Raises
        ------
        DataError
            For shares that do not add up to 1, or fewer cells than parts.
        """
        shares = np.asarray(fractions, dtype=float)
        if shares.ndim != 1 or not len(shares) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
            raise DataError(f"fractions must be positive and add up to 1, found {tuple(fractions)}.")
        cells = np.unique(self.groups)
        if len(cells) < len(shares):
            raise DataError(
                f"{len(cells)} cell(s) cannot be split into {len(shares)} parts; grow more cells or ask for fewer."
            )
        counts = np.maximum(1, np.floor(shares * len(cells)).astype(int))
        while counts.sum() < len(cells):
            counts[np.argmax(shares * len(cells) - counts)] += 1
        while counts.sum() > len(cells):
            counts[np.argmax(np.where(counts > 1, counts - shares * len(cells), -np.inf))] -= 1
        order = np.random.default_rng(stream("weight split", seed)).permutation(cells)
        parts = np.split(order, np.cumsum(counts)[:-1])
        return tuple(self.select(np.flatnonzero(np.isin(self.groups, part)).tolist()) for part in parts)

    def __repr__(self) -> str:
        shape = tuple(self[0]["weights"].shape)
        groups = len(np.unique(self.groups))
        return f"WeightDataset({len(self)} models in {groups} groups, {self.form} {shape}, {self.target_names})"


def target_table(zoo: Zoo, names: Sequence[str]) -> tuple[pl.DataFrame, dict[str, tuple[str, ...]]]:
    """Targets of every model, ``id`` and one float column a name, and the classes of those that are text."""
    if not names:
        raise DataError("give at least one target, such as 'test_accuracy'.")
    table = zoo.measured
    if "phase" in names and "phase" not in table.columns:
        phases = dict(zoo.phases().select("cell", "phase").iter_rows())
        of = [(id, phases.get(cell)) for cell, ids in zoo.cells().select("cell", "ids").iter_rows() for id in ids]
        frame = pl.DataFrame(of, schema={"id": pl.String, "phase": pl.String}, orient="row")
        table = table.join(frame.unique("id", keep="first"), on="id", how="left", maintain_order="left")
    absent = [name for name in HISTORY if name in names and name not in table.columns]
    if absent:
        history = zoo.history
        absent = [name for name in absent if name in history.columns]
        last = history.sort("epoch").unique("id", keep="last").select("id", *absent)
        table = table.join(last, on="id", how="left", maintain_order="left")
    columns, classes = [pl.col("id")], {}
    for name in names:
        if name not in table.columns or name == "id":
            raise DataError(unknown_name("target", name, [*(c for c in table.columns if c != "id"), "phase"]))
        kind = table[name].dtype
        if kind.is_numeric() or kind == pl.Boolean:
            columns.append(pl.col(name).cast(pl.Float64))
        elif kind == pl.String:
            classes[name] = tuple(sorted(table[name].drop_nulls().unique()))
            numbers = {label: float(n) for n, label in enumerate(classes[name])}
            columns.append(pl.col(name).replace_strict(numbers, default=None, return_dtype=pl.Float64))
        else:
            raise DataError(f"target {name!r} holds {kind}, neither numbers nor text; choose another column.")
    return table.select(columns), classes


def groups_of(zoo: Zoo, ids: Sequence[str]) -> np.ndarray:
    """Number the groups of models (N,): equal within a cell, and for a derived model and its parents."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.get(name, name) != name:
            name = above[name]
        return name

    for (members,) in zoo.cells().select("ids").iter_rows():
        for id in members:
            above[root(id)] = root(members[0])
    if "parents" in zoo.table.columns:
        for id, parents in zoo.table.select("id", "parents").iter_rows():
            for parent in parents or ():
                above[root(id)] = root(parent)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(id), len(numbers)) for id in ids], dtype=np.int64)


def layers_of(params: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of the tensors of each layer (those that share a prefix), in order."""
    layers: dict[str, list[str]] = {}
    for name in params:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _flat(params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    flat = torch.cat([p.flatten(1) for p in params.values()], dim=1).float()  # (n, p)
    return flat, torch.ones(flat.shape[1], dtype=torch.bool), torch.zeros(0, 3, dtype=torch.int64)


def tokens_of(params: Mapping[str, Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stacked parameters {name: (n, *shape)} as tokens.

    Returns
    -------
    tokens : Tensor of shape (n, t, size)
        Rows of units, weights before bias, each filled up with zeros to a multiple of `size` and cut.
    mask : Tensor of shape (t, size)
        True where a number is a parameter.
    positions : Tensor of shape (t, 3)
        Place of the token in the model, number of its layer, place in the layer.
    """
    tokens: list[Tensor] = []
    masks: list[Tensor] = []
    places: list[tuple[int, int]] = []
    for layer, names in enumerate(layers_of(params).values()):
        by_units: dict[int, list[Tensor]] = {}
        for name in names:  # a bias stands beside the weights of its unit; tensors of other lengths follow
            tensor = params[name].float()
            tensor = tensor.reshape(len(tensor), tensor.shape[1] if tensor.dim() > 1 else 1, -1)
            by_units.setdefault(tensor.shape[1], []).append(tensor)
        count = 0
        for parts in by_units.values():
            rows = torch.cat(parts, dim=2)  # (n, units, fan_in + 1)
            n, units, width = rows.shape
            whole = math.ceil(width / size) * size
            padded = rows.new_zeros(n, units, whole)
            padded[..., :width] = rows
            mask = (torch.arange(whole) < width).expand(units, whole)
            tokens.append(padded.reshape(n, -1, size))
            masks.append(mask.reshape(-1, size))
            places += [(layer, count + place) for place in range(len(masks[-1]))]
            count += len(masks[-1])
    positions = torch.tensor([(n, *place) for n, place in enumerate(places)], dtype=torch.int64).reshape(-1, 3)
    return torch.cat(tokens, dim=1), torch.cat(masks), positions
