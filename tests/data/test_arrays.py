from __future__ import annotations

import contextlib

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from zoarium._core.errors import DataError
from zoarium.data import Dataset, from_arrays, from_torch

X = np.random.default_rng(0).normal(size=(30, 3))
Y = np.arange(30) % 3


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.tolist(),
        torch.tensor(X),
        torch.tensor(X).bfloat16(),
        pl.DataFrame(X, schema=["a", "b", "c"]),
        X.astype("f4"),
    ],
    ids=["numpy", "lists", "torch", "bfloat16", "polars", "float32"],
)
@pytest.mark.parametrize(
    "y", [Y, Y.tolist(), torch.tensor(Y), pl.Series(Y), Y.astype("u1"), Y[:, None], Y.astype(float)],
    ids=["numpy", "list", "torch", "polars", "bytes", "column", "float"],
)  # fmt: skip
def test_any_kind_of_array_gives_the_same_data(x, y):
    data = from_arrays(x, y, task="classification")
    expected = from_arrays(X, Y, task="classification")
    assert torch.equal(data.train.y, expected.train.y)
    torch.testing.assert_close(data.test.x, expected.test.x, rtol=0.01, atol=0.01)
    assert (data.n_outputs, data.classes, len(data.test)) == (3, ("0", "1", "2"), 6)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=4, max_size=60).filter(lambda v: len(set(v)) > 1),
    test_size=st.floats(0.05, 0.9), seed=st.integers(0, 5),
)  # fmt: skip
def test_a_split_loses_no_row_and_keeps_every_classs_share_up_to_one(labels, test_size, seed):
    rows = np.arange(len(labels), dtype=float)
    data = from_arrays(rows, labels, test_size=test_size, seed=seed, task="classification")
    assert sorted([*data.train.x.flatten().tolist(), *data.test.x.flatten().tolist()]) == rows.tolist()
    share = len(data.test) / len(labels)
    for number, label in enumerate(data.classes):
        held_out = int((data.test.y == number).sum())
        assert abs(held_out - share * labels.count(int(label))) <= 1
    again = from_arrays(rows, labels, test_size=test_size, seed=seed, task="classification")
    assert again.fingerprint == data.fingerprint


def test_text_labels_are_numbered_in_sorted_order_and_gaps_are_closed():
    named = from_arrays(X, np.array(["cat", "ant", "bee"])[Y])
    assert named.classes == ("ant", "bee", "cat")
    gaps = from_arrays(X, np.array([7, 1, 3])[Y])
    assert gaps.classes == ("1", "3", "7")
    assert torch.equal(gaps.train.y, named.train.y.where(named.train.y == -1, torch.tensor([0, 1, 2])[named.train.y]))
    assert from_arrays(X, Y > 0).classes == ("0", "1")


def test_fractions_and_several_columns_mean_regression():
    one, two = from_arrays(X, X[:, 0]), from_arrays(X, X[:, :2])
    assert (one.task, one.n_outputs, one.train.y.shape) == ("regression", 1, (24, 1))
    assert (two.task, two.n_outputs) == ("regression", 2)
    assert from_arrays(X, np.arange(30), task="regression").n_outputs == 1


def test_a_test_split_of_ones_own_is_used_as_it_is():
    data = from_arrays(X, Y, X[:5] + 1, Y[:5], name="mine")
    assert (len(data.train), len(data.test), data.name) == (30, 5, "mine")
    np.testing.assert_allclose(data.test.x.numpy(), X[:5] + 1, rtol=1e-6)


def test_inputs_of_the_user_are_not_shared_with_the_data():
    x = torch.zeros(30, 3)
    data = from_arrays(x, Y, x, Y)
    x += 1
    assert data.train.x.sum() == data.test.x.sum() == 0


def spoilt(value: object, row: int = 4, column: int = 1) -> np.ndarray:
    x = X.astype(object) if isinstance(value, str) or value is None else X.copy()
    x[row, column] = value
    return x


BAD = {
    "nan": ({"x": spoilt(np.nan)}, r"x has nan in row 4, column 1; fill or drop"),
    "infinity": ({"x": spoilt(np.inf)}, r"x has inf in row 4, column 1"),
    "too large": ({"x": spoilt(1e300)}, r"x has 1e\+300 in row 4, column 1"),
    "named column": ({"x": pl.DataFrame(spoilt(np.nan), schema=["age", "size", "c"])}, "row 4, column size"),
    "missing in a frame": ({"x": pl.DataFrame({"a": [1, None, 3] * 10})}, "x has nan in row 1, column a .10 such"),
    "image": ({"x": np.where(np.arange(30 * 4).reshape(30, 2, 2) == 6, np.nan, 0)}, r"row 1, at \(1, 0\)"),
    "text": ({"x": spoilt("tall")}, r"x must hold numbers, found 'tall' in row 4, column 1"),
    "digits as text": ({"x": X.astype(str)}, "x must hold numbers, found"),
    "none": ({"x": spoilt(None)}, "x has None in row 4, column 1; fill"),
    "huge": ({"x": [[10**400]] * 30}, "x must hold numbers, found 1000"),
    "complex": ({"x": X + 1j}, "x must hold numbers"),
    "ragged": ({"x": [[1.0, 2.0], [1.0]] * 15}, "x is no array.*same shape"),
    "scalar": ({"x": 3.0}, "x must be an array"),
    "empty": ({"x": np.zeros((0, 3)), "y": []}, r"x is empty \(shape \(0, 3\)\)"),
    "no features": ({"x": np.zeros((30, 0))}, r"x is empty \(shape \(30, 0\)\)"),
    "one row": ({"x": X[:1], "y": Y[:1]}, "at least 2"),
    "lengths": ({"y": Y[:-1]}, "x has 30 rows, y has 29"),
    "one class": ({"y": Y * 0}, "single class, 0"),
    "negative": ({"y": Y - 1}, r"negative label -1 in row 0"),
    "fraction": ({"y": Y + 0.5, "task": "classification"}, r"0.5 in row 0.*task='regression'"),
    "nan label": ({"y": np.where(Y == 1, np.nan, Y), "task": "classification"}, "y has nan in row 1"),
    "nan target": ({"y": spoilt(np.nan)[:, 1]}, "y has nan in row 4"),
    "mixed labels": ({"y": ["a", 1, 2] * 10, "task": "classification"}, "y has 1 in row 1; give every label"),
    "none label": ({"y": ["a", None, "b"] * 10}, "y has None in row 1"),
    "one-hot": ({"y": np.eye(3)[Y]}, "argmax"),
    "many numbers": ({"y": np.arange(30) * 7}, "30 different whole numbers"),
    "task": ({"task": "clustering"}, "task must be"),
    "test share": ({"test_size": 1.5}, "test_size must be a share"),
    "test number": ({"test_size": 30}, "below 30, found 30"),
    "name": ({"name": " "}, "name must be"),
    "half a test split": ({"x_test": X}, "x_test is given alone"),
    "test shape": ({"x_test": X[:, :2], "y_test": Y}, r"shape \(3,\), one of x_test \(2,\)"),
    "new class": ({"x_test": X, "y_test": Y + 1}, "y_test has class 3 in row 2, which the training split never shows"),
    "test lengths": ({"x_test": X, "y_test": Y[:4]}, "x_test has 30 rows, y_test has 4"),
    "target columns": ({"y": X, "x_test": X, "y_test": X[:, :2]}, "3 target column.*y_test 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_that_cannot_be_used_are_named_by_place(case):
    change, says = BAD[case]
    with pytest.raises(DataError, match=says):
        from_arrays(**{"x": X, "y": Y, **change})


ANYTHING = st.none() | st.floats() | st.integers() | st.text(max_size=2) | st.booleans()


@settings(deadline=None, max_examples=150)
@given(
    x=st.recursive(ANYTHING, lambda inner: st.lists(inner, max_size=4), max_leaves=12),
    y=st.lists(ANYTHING, max_size=5),
)  # fmt: skip
def test_nothing_a_user_passes_gives_anything_but_a_data_set_or_a_data_error(x, y):
    with contextlib.suppress(DataError):
        assert isinstance(from_arrays(x, y), Dataset)


class Pairs(TorchDataset):
    """Samples as they come."""

    def __init__(self, samples: list) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> object:
        return self.samples[index]


class Stream(IterableDataset):
    """No length, no index."""

    def __iter__(self):
        return iter(zip(torch.tensor(X), Y.tolist(), strict=True))


def test_a_torch_data_set_gives_what_its_arrays_give():
    expected = from_arrays(X, Y)
    tensors = from_torch(TensorDataset(torch.tensor(X), torch.tensor(Y)))
    assert (tensors.fingerprint, tensors.name) == (expected.fingerprint, "TensorDataset")
    assert from_torch(Pairs(list(zip(X, Y, strict=True))), name="mine").fingerprint == expected.fingerprint
    assert from_torch(Stream()).fingerprint == expected.fingerprint
    own = from_torch(Stream(), Pairs([(X[0], 1), (X[1], 0)]))
    assert (len(own.train), len(own.test)) == (30, 2)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ([1, 2], "must be a torch.utils.data.Dataset|sample 0 is no pair"),
        (3, "must be a torch.utils.data.Dataset, found int"),
        (Pairs([]), "dataset is empty"),
        (Pairs([(X[0], 0), X[1]]), "sample 1 is no pair"),
        (Pairs([(X[0], 0), (X[1, :2], 1)]), r"sample 1 has shape \(2,\), sample 0 \(3,\)"),
        (Pairs([(object(), 0)]), "input of sample 0 is object, not numbers"),
    ],
)
def test_a_torch_data_set_that_cannot_be_read_says_where(given_, says):
    with pytest.raises(DataError, match=says):
        from_torch(given_)
