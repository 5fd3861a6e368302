"""A user's own arrays, or a torch data set that fits in memory, checked and split once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium.data.dataset import Dataset, Split, Task
from zoarium.data.split import count_of_test, split_rows


def from_arrays(
    x: Any, y: Any, x_test: Any = None, y_test: Any = None, *,
    test_size: float | int = 0.2, seed: int = 0, task: Task | None = None, name: str = "arrays",
) -> Dataset:  # fmt: skip
    """A data set from inputs and targets.

    Parameters
    ----------
    x : array-like of shape (N, ...)
        Numbers: a NumPy array, tensor, polars or pandas frame, or nested lists. Kept as float32, as they are: scale
        them first if they need it. (For whole-number inputs, such as tokens, make a :class:`Dataset` yourself.)
    y : array-like of shape (N,) or (N, k)
        Classes as whole numbers from 0 or as text, or real numbers for regression.
    x_test, y_test : array-like, optional
        A test split of your own; by default one is drawn from `x` and `y`.
    test_size : float or int, default 0.2
        Share, or number, of rows drawn for the test split; classes stay in proportion.
    seed : int, default 0
        Draws the split.
    task : {"classification", "regression"}, optional
        By default regression if `y` holds fractions or several columns, otherwise classification.
    name : str, default "arrays"
        Name shown in tables and stored in zoos.

    Returns
    -------
    Dataset
        With ``classes`` in sorted order. Whole-number classes with gaps are renumbered from 0.

    Raises
    ------
    DataError
        Naming the row (and column) of what cannot be used: NaN, infinities, text among numbers, negative or fractional
        labels, a single class, a test class never trained on, different lengths, too few rows.

    Examples
    --------
    >>> from_arrays([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0], [4.0, 5.0]], ["no", "yes", "yes", "no", "no"])
    Dataset('arrays', 4 train + 1 test, input (2,), 2 classes)
    """
    if task not in (None, "classification", "regression"):
        raise DataError(f"task must be 'classification' or 'regression', found {task!r}.")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"name must be a text that is not empty, found {name!r}.")
    if (x_test is None) != (y_test is None):
        given = "x_test" if y_test is None else "y_test"
        raise DataError(f"{name}: {given} is given alone; give x_test and y_test, or neither.")
    inputs, targets = _inputs("x", x), _array("y", y)
    _same_length("x", len(inputs), "y", targets)
    if len(inputs) < 2:
        raise DataError(f"{name}: x has {len(inputs)} row(s); at least 2 are needed to train and test.")
    task = task or _guess(targets)
    labels, classes = _targets("y", targets, task, None)
    if x_test is not None:
        test_x, test_targets = _inputs("x_test", x_test), _array("y_test", y_test)
        _same_length("x_test", len(test_x), "y_test", test_targets)
        if test_x.shape[1:] != inputs.shape[1:]:
            raise DataError(
                f"{name}: a row of x has shape {tuple(inputs.shape[1:])}, one of x_test {tuple(test_x.shape[1:])}; "
                "give both the same shape."
            )
        test_y, _ = _targets("y_test", test_targets, task, classes)
        if test_y.shape[1:] != labels.shape[1:]:
            raise DataError(
                f"{name}: y has {labels.shape[1]} target column(s), y_test {test_y.shape[1]}; give as many."
            )
        train, test = Split(inputs, labels), Split(test_x, test_y)
    else:
        count = count_of_test(len(inputs), test_size, name)
        rows, held_out = split_rows(len(inputs), count, seed, labels if task == "classification" else None)
        train, test = Split(inputs[rows], labels[rows]), Split(inputs[held_out], labels[held_out])
    n_outputs = len(classes) if task == "classification" else labels.shape[1]
    return Dataset(name, train, test, task, n_outputs, tuple(map(str, classes)))


def from_torch(
    dataset: Any, test: Any = None, *,
    test_size: float | int = 0.2, seed: int = 0, task: Task | None = None, name: str | None = None,
) -> Dataset:  # fmt: skip
    """A data set from a `torch.utils.data.Dataset` of (input, target) pairs that fits in memory.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Read once, in order; a random augmentation in it is drawn once and then fixed.
    test : torch.utils.data.Dataset, optional
        The test split; by default one is drawn from `dataset`.
    test_size, seed, task, name
        As in :func:`from_arrays`; the default name is the class's.

    Raises
    ------
    DataError
        As :func:`from_arrays`, and for samples that are no pairs or whose shapes differ.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from_torch(TensorDataset(torch.randn(50, 3), torch.arange(50) % 2))
    Dataset('TensorDataset', 40 train + 10 test, input (3,), 2 classes)
    """
    x, y = _read(dataset, "dataset")
    x_test, y_test = (None, None) if test is None else _read(test, "test")
    name = type(dataset).__name__ if name is None else name
    return from_arrays(x, y, x_test, y_test, test_size=test_size, seed=seed, task=task, name=name)


def _read(dataset: Any, what: str) -> tuple[Tensor, Any]:
    """Every sample of a torch data set, stacked."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        samples = (dataset[i] for i in range(len(dataset)))
    elif isinstance(dataset, torch.utils.data.IterableDataset):
        samples = iter(dataset)
    else:
        raise DataError(f"{what} must be a torch.utils.data.Dataset, found {type(dataset).__name__}.")
    xs: list[Tensor] = []
    ys: list[Any] = []
    for row, sample in enumerate(samples):
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise DataError(
                f"{what}: sample {row} is no pair (input, target) but {type(sample).__name__}; return pairs."
            )
        try:
            x = torch.as_tensor(sample[0] if isinstance(sample[0], Tensor) else np.asarray(sample[0]))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{what}: the input of sample {row} is {type(sample[0]).__name__}, not numbers; convert it in the "
                "data set's transform."
            ) from error
        if xs and x.shape != xs[0].shape:
            raise DataError(
                f"{what}: sample {row} has shape {tuple(x.shape)}, sample 0 {tuple(xs[0].shape)}; give all one shape."
            )
        xs.append(x)
        ys.append(sample[1].tolist() if hasattr(sample[1], "tolist") else sample[1])
    if not xs:
        raise DataError(f"{what} is empty; give at least 2 samples.")
    return torch.stack(xs), ys


def _array(what: str, values: Any) -> np.ndarray:
    """Any array-like as a NumPy array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    if not isinstance(values, Tensor) and hasattr(values, "to_numpy"):  # polars, pandas
        array = values.to_numpy()
    else:
        try:
            array = np.asarray(values)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{what} is no array: {str(error).partition('.')[0]}; give every row the same shape."
            ) from error
    if array.dtype.kind in "US" and isinstance(values, list | tuple):  # NumPy has turned numbers among text into text
        array = np.asarray(values, dtype=object)
    if array.ndim == 0:
        raise DataError(f"{what} must be an array with a row a sample, found {values!r}.")
    if len(array) == 0 or array.size == 0:
        raise DataError(f"{what} is empty (shape {array.shape}); give at least 2 rows.")
    return array


def _inputs(what: str, values: Any) -> Tensor:
    array = _array(what, values)
    numbers = _numbers(what, array, getattr(values, "columns", None))
    return numbers if numbers.dim() > 1 else numbers.unsqueeze(1)


def _numbers(what: str, array: np.ndarray, columns: Sequence[Any] | None = None) -> Tensor:
    """Finite float32 numbers, or an error that names the first that is not."""
    try:
        if array.dtype.kind not in "biuf" and not all(v is None or _is_number(v) for v in array.flat):
            raise ValueError
        wide = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        bad = next((i for i in np.ndindex(array.shape) if not _is_number(array[i])), (0,))
        raise DataError(
            f"{what} must hold numbers, found {array[bad]!r} in {_place(bad, columns)}; encode it as numbers first."
        ) from error
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    finite = np.isfinite(narrow)
    if not finite.all():
        bad = tuple(int(i) for i in np.argwhere(~finite)[0])
        more = f" ({int((~finite).sum())} such values)" if (~finite).sum() > 1 else ""
        raise DataError(f"{what} has {array[bad]} in {_place(bad, columns)}{more}; fill or drop such rows first.")
    return torch.from_numpy(narrow)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float | np.number) or isinstance(value, np.complexfloating):
        return False
    try:
        float(value)
    except OverflowError:  # a whole number beyond any float
        return False
    return True


def _place(index: tuple[int, ...], columns: Sequence[Any] | None = None) -> str:
    if len(index) == 1:
        return f"row {index[0]}"
    if len(index) == 2:
        return f"row {index[0]}, column {str(columns[index[1]]) if columns is not None else index[1]}"
    return f"row {index[0]}, at {index[1:]}"


def _same_length(one: str, n: int, other: str, array: np.ndarray) -> None:
    if n != len(array):
        raise DataError(f"{one} has {n} rows, {other} has {len(array)}; give one target a row.")


def _column(array: np.ndarray) -> np.ndarray:
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _guess(targets: np.ndarray) -> Task:
    flat = _column(targets)
    if flat.ndim == 2 and flat.dtype.kind in "iufb" and _one_hot(flat):
        return "classification"
    if flat.ndim > 1 or flat.dtype.kind == "f":
        return "regression"
    if flat.dtype.kind in "iu" and len(np.unique(flat)) > max(20, len(flat) // 2):
        raise DataError(
            f"y holds {len(np.unique(flat))} different whole numbers in {len(flat)} rows; say whether they are classes "
            "or quantities with task='classification' or task='regression'."
        )
    return "classification"


def _one_hot(array: np.ndarray) -> bool:
    return bool(np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all())


def _targets(what: str, array: np.ndarray, task: Task, known: Sequence[Any] | None) -> tuple[Tensor, list[Any]]:
    """Targets as the trainer wants them, and the classes; `known` are the training split's."""
    if task == "regression":
        if array.ndim > 2:
            raise DataError(f"{what} has shape {array.shape}; a regression target is (N,) or (N, k).")
        numbers = _numbers(what, array)
        return (numbers if numbers.dim() == 2 else numbers.unsqueeze(1)), []
    labels = _column(array)
    if labels.ndim != 1:
        hint = (
            "; give class numbers, for example y.argmax(1)" if labels.ndim == 2 and labels.dtype.kind in "iufb" else ""
        )
        raise DataError(f"{what} has shape {array.shape}, but classes need (N,){hint or '; give one class a row'}.")
    values = _labels(what, labels)
    if known is None:
        classes = sorted(set(values))
        if len(classes) < 2:
            raise DataError(f"{what} holds a single class, {classes[0]!r}; classification needs at least 2.")
    else:
        classes = list(known)
    number = {value: n for n, value in enumerate(classes)}
    for row, value in enumerate(values):
        if value not in number:
            raise DataError(
                f"{what} has class {value!r} in row {row}, which the training split never shows; it has: "
                f"{', '.join(map(str, classes[:20]))}."
            )
    return torch.tensor([number[value] for value in values], dtype=torch.int64), classes


def _labels(what: str, labels: np.ndarray) -> list[int] | list[str]:
    """Class labels as plain whole numbers from 0, or as text."""
    if labels.dtype.kind == "b":
        return labels.astype(int).tolist()
    values = labels.tolist()
    if all(isinstance(value, str) for value in values):
        return cast("list[str]", values)
    text = isinstance(values[0], str)
    for row, value in enumerate(values):
        if not (isinstance(value, str) if text else _is_number(value)):
            raise DataError(
                f"{what} has {value!r} in row {row}; give every label as a whole number or every one as text."
            )
        if isinstance(value, str):
            continue  # another row holds the odd one
        if not math.isfinite(value) or value != int(value):
            raise DataError(
                f"{what} has {value!r} in row {row}, but labels must be whole numbers or text; for real-valued targets "
                "pass task='regression'."
            )
        if value < 0:
            raise DataError(
                f"{what} has the negative label {value!r} in row {row}; number classes from 0, or name them."
            )
    return [int(value) for value in values]
