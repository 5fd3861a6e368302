"""The tables that ship with scikit-learn, with features standardised by their training split."""

from __future__ import annotations

from importlib import import_module

import torch

from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import dataset
from zoarium.data.split import split_rows, standardised


@dataset("iris", reference="Fisher 1936, via scikit-learn", licence="CC BY 4.0")
def iris(*, seed: int = 0) -> Dataset:
    """Iris flowers: 105 to train on, 45 to test, 4 measurements, 3 species; classes in proportion."""
    return _table("iris", seed)


@dataset("wine", reference="Aeberhard & Forina 1991 (UCI), via scikit-learn", licence="CC BY 4.0")
def wine(*, seed: int = 0) -> Dataset:
    """Italian wines: 125 to train on, 53 to test, 13 chemical measurements, 3 growers; classes in proportion."""
    return _table("wine", seed)


@dataset("breast_cancer", reference="Wolberg, Street & Mangasarian 1993 (UCI), via scikit-learn", licence="CC BY 4.0")
def breast_cancer(*, seed: int = 0) -> Dataset:
    """Breast tumours: 398 to train on, 171 to test, 30 measurements, malignant or benign; classes in proportion."""
    return _table("breast_cancer", seed)


@dataset("diabetes", reference="Efron et al. 2004, via scikit-learn", licence="none stated")
def diabetes(*, seed: int = 0) -> Dataset:
    """Progress of diabetes (a regression): 309 to train on, 133 to test, 10 measurements; target standardised."""
    return _table("diabetes", seed)


def _table(name: str, seed: int) -> Dataset:
    """A table of scikit-learn, 70 % of it to train on."""
    bunch = getattr(import_module("sklearn.datasets"), f"load_{name}")()
    names = tuple(str(c) for c in getattr(bunch, "target_names", ()))
    x = torch.as_tensor(bunch.data, dtype=torch.float64)
    if names:
        y = torch.as_tensor(bunch.target, dtype=torch.int64)
    else:
        y = torch.as_tensor(bunch.target, dtype=torch.float64).unsqueeze(1)
    rows, held_out = split_rows(len(x), round(0.3 * len(x)), seed, y if names else None)
    train, test = standardised(Split(x[rows], y[rows]), Split(x[held_out], y[held_out]), targets=not names)
    return Dataset(
        name, _single(train), _single(test), "classification" if names else "regression", len(names) or 1, names
    )


def _single(split: Split) -> Split:
    return Split(split.x.float(), split.y.float() if split.y.is_floating_point() else split.y)
