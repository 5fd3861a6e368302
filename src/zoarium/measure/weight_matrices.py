"""Which tensors of a model are learnt matrices, and why the others are not.

Checkpoints carry more than weights: batch-norm statistics, masks, position tables, scalers of the inputs, one-hot
codes, gains that nobody trained. They are alike in unrelated models and have spectra of their own, so they are left
out of norms, spectra and comparisons, each with its reason. A tensor is judged by its type, its shape, its numbers and,
where these cannot tell, by the last part of its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BUFFERS = ("inv_freq", "position_ids", "masked_bias", "mel_basis", "fb", "window")  # tables computed, never learnt
ROWS, COLUMNS = 64, 4096  # of the corner looked at first; most tensors are told apart by it
BLOCK = 1 << 20  # numbers looked at once
NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class WeightMatrices:
    """Matrices of a model, and the reason for each tensor that is not among them.

    Parameters
    ----------
    kept : dict of str to Tensor
        Matrices of shape (out, in); kernels of convolutions are (out, in * k * k). They share memory with the tensors
        given.
    left_out : dict of str to str
        Reason by name.
    """

    kept: dict[str, Tensor]
    left_out: dict[str, str]

    def __str__(self) -> str:
        reasons: dict[str, int] = {}
        for reason in self.left_out.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        told = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        return f"{len(self.kept)} matrices kept, {len(self.left_out)} tensors left out" + (f" ({told})" if told else "")


def weight_matrices(tensors: Iterable[tuple[str, Tensor]]) -> WeightMatrices:
    """Keep the learnt matrices among named tensors, and say why the others are left out.

    Parameters
    ----------
    tensors : iterable of (str, Tensor)
        Such as ``state_dict.items()``, or a model from elsewhere. All kept tensors are held; `why_left_out` judges one
        at a time.

    Returns
    -------
    WeightMatrices

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> print(weight_matrices(net.state_dict().items()))
    1 matrices kept, 6 tensors left out (2 one axis: a bias or a gain; 1 normalisation gain, all ones; 3 batch-norm statistic)
    """  # noqa: E501 - the output is one line
    kept: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for name, tensor in tensors:
        reason = why_left_out(name, tensor)
        if reason:
            left_out[name] = reason
        else:
            kept[name] = as_matrix(tensor)
    return WeightMatrices(kept, left_out)


def as_matrix(tensor: Tensor) -> Tensor:
    """View a tensor of two axes or more as (out, in * k * k)."""
    return tensor.detach().flatten(1)


def why_left_out(name: str, tensor: Tensor) -> str:
    """Why a tensor is no learnt matrix; empty where it is one.

    Parameters
    ----------
    name : str
        Its last part is looked at.
    tensor : Tensor
        Any type and shape; not changed.

    Returns
    -------
    str
        Left out are: numbers that are not real floats, batch-norm statistics and computed tables (by name),
        tensors of fewer than two axes or with a single row or column, tensors that are not finite, constants, masks and
        one-hot codes (only 0 and one other value, which includes identities), diagonals and permutations with any
        values, tensors whose rows (or columns) are all the same, and tables of sines and cosines.

    Notes
    -----
    Looks at a block of a million numbers at a time: beside the tensor some 20 MB are held, whatever its size and type.

    Examples
    --------
    >>> import torch
    >>> why_left_out("embed.weight", torch.eye(5))
    'mask or one-hot code: only 0 and 1'
    """
    last = name.rpartition(".")[2]
    if last in STATISTICS:
        return "batch-norm statistic"
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')} numbers are no weights"
    if tensor.numel() == 0:
        return "empty"
    if last in BUFFERS or last.endswith("_buffer"):
        return "a computed table, by its name"
    values = tensor.detach()
    low, high = _extremes(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "weights are not finite"
    if values.dim() < 2:
        if values.dim() == 0:
            return "a single number"
        return "normalisation gain, all ones" if low == high == 1 else "one axis: a bias or a gain"
    matrix = values.flatten(1)  # (out, in)
    if low == high:
        return f"constant: all {low:g}"
    if 1 in matrix.shape:
        return "a single row or column"
    return _by_its_numbers(matrix, low, high)


def _extremes(values: Tensor) -> tuple[float, float]:
    """Least and largest number; NaN where any is."""
    low, high = math.inf, -math.inf
    for piece in values.flatten().split(BLOCK):
        # torch has no order for 8-bit floats
        least, most = torch.aminmax(piece.float() if piece.element_size() == 1 else piece)
        if not math.isfinite(float(least)) or not math.isfinite(float(most)):
            return math.nan, math.nan
        low, high = min(low, float(least)), max(high, float(most))
    return low, high


def _blocks(matrix: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of at most `BLOCK` numbers that cover a matrix (out, in), the first a small one; 8 bits as float32."""
    out, inward = matrix.shape
    wide = min(inward, BLOCK)
    tall = max(1, BLOCK // wide)
    for top in range(0, out, tall):
        for left in range(0, inward, wide):
            rows, columns = slice(top, top + tall), slice(left, left + wide)
            block = matrix[rows, columns]
            yield rows, columns, block.float() if block.element_size() == 1 else block


def _all(matrix: Tensor, holds: Callable[[Tensor, slice, slice], Tensor]) -> bool:
    """Whether a relation holds everywhere in a matrix; most that do not fail in its first corner."""
    few = matrix[:ROWS, :COLUMNS]
    few = few.float() if few.element_size() == 1 else few
    if not bool(holds(few, slice(0, ROWS), slice(0, COLUMNS)).all()):
        return False
    return all(bool(holds(block, rows, columns).all()) for rows, columns, block in _blocks(matrix))


def _by_its_numbers(matrix: Tensor, low: float, high: float) -> str:
    if low * high == 0:
        other = high or low
        if _all(matrix, lambda block, *_: (block == 0) | (block == other)):
            return f"mask or one-hot code: only 0 and {other:g}"
    if _one_a_line(matrix):
        return "diagonal or permutation"
    row, column = matrix[:1].float(), matrix[:, :1].float()  # no type of weights but float64 loses anything
    if matrix.dtype == torch.float64:
        row, column = matrix[:1], matrix[:, :1]
    if _all(matrix, lambda block, _, columns: block == row[:, columns]):
        return "every row is the same: a scaler or a buffer"
    if _all(matrix, lambda block, rows, _: block == column[rows]):
        return "every column is the same: a scaler or a buffer"
    if max(-low, high) <= 1.001 and (_is_sinusoidal(matrix) or _is_fourier_basis(matrix)):
        return "table of sines and cosines"
    return ""


def _one_a_line(matrix: Tensor) -> bool:
    """Whether each row and each column holds at most one number that is not zero."""
    few = matrix[:ROWS, :COLUMNS].float() != 0
    if int(few.sum(0).max()) > 1 or int(few.sum(1).max()) > 1:
        return False
    across, down = torch.zeros(matrix.shape[0], dtype=torch.long), torch.zeros(matrix.shape[1], dtype=torch.long)
    for rows, columns, block in _blocks(matrix):
        filled = block != 0
        across[rows] += filled.sum(1)
        down[columns] += filled.sum(0)
    return int(across.max()) <= 1 and int(down.max()) <= 1


def _tolerance(matrix: Tensor) -> float:
    return 0.02 if matrix.dtype in NARROW or matrix.element_size() == 1 else 1e-4


def _is_sinusoidal(matrix: Tensor) -> bool:
    """Whether neighbouring columns, or the two halves, are sine and cosine of one angle."""
    width = matrix.shape[1]
    if width % 2 or matrix.shape[0] < 3 or 3 * width > BLOCK:
        return False
    x = matrix[: min(ROWS, BLOCK // width)].double()
    halves = (x[:, ::2], x[:, 1::2]), (x[:, : width // 2], x[:, width // 2 :])
    return any(bool(((a.square() + b.square() - 1).abs() < _tolerance(matrix)).all()) for a, b in halves)


def _is_fourier_basis(matrix: Tensor) -> bool:
    """Whether rows of the two halves are sine and cosine of one angle, under one window: a table for spectrograms."""
    height, width = matrix.shape
    if height % 2 or height < 6 or width < 4 or 6 * width > BLOCK:
        return False
    half, few = height // 2, min(ROWS, height // 2, BLOCK // (2 * width))
    cosine, sine = (matrix[start : start + few].double().square() for start in (0, half))  # (few, width)
    window, least = cosine + sine, _tolerance(matrix)
    if not 0.5 < float(window.max()) < 1.001 or bool(((cosine - cosine[:1]).abs() < least).all()):
        return False  # the second: weights of two values, say
    return bool(((window - window[:1]).abs() < least).all())
