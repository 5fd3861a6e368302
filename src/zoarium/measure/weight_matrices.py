"""Which tensors of a model are learnt matrices, and why the others are not.

Checkpoints carry more than weights: batch-norm statistics, masks, position tables, scalers of the inputs, one-hot
codes, gains that nobody trained. They are alike in unrelated models and have spectra of their own, so they are left
out of norms, spectra and comparisons, each with its reason. A tensor is judged by its type, its shape, its numbers and,
where these cannot tell, by the last part of its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BUFFERS = ("inv_freq", "position_ids", "masked_bias", "mel_basis", "fb", "window")  # tables computed, never learnt
MATRIX_ROWS = 64  # rows looked at first; most tensors are told apart by them
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
    Beside the tensor at most two bytes are held for each of its numbers, four for 8-bit floats.

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
    if values.element_size() == 1:  # torch has no arithmetic for 8-bit floats
        values = values.float()
    low, high = (float(v) for v in torch.aminmax(values))  # NaN where any is
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


def _by_its_numbers(matrix: Tensor, low: float, high: float) -> str:
    few = matrix[:MATRIX_ROWS]
    if low * high == 0:
        other = high or low
        if _all((few == 0) | (few == other)) and _all((matrix == 0).logical_or_(matrix == other)):
            return f"mask or one-hot code: only 0 and {other:g}"
    if int((few != 0).sum(1).max()) <= 1 or int((few != 0).sum(0).max()) <= 1:
        filled = matrix != 0  # (out, in)
        if int(filled.sum(1).max()) <= 1 and int(filled.sum(0).max()) <= 1:
            return "diagonal or permutation"
    if _all(few == few[:1]) and _all(matrix == matrix[:1]):
        return "every row is the same: a scaler or a buffer"
    if _all(few == few[:, :1]) and _all(matrix == matrix[:, :1]):
        return "every column is the same: a scaler or a buffer"
    if max(-low, high) <= 1.001 and _is_sinusoidal(few):
        return "table of sines and cosines"
    return ""


def _is_sinusoidal(rows: Tensor) -> bool:
    """Whether neighbouring columns, or the two halves, are sine and cosine of one angle."""
    width = rows.shape[1]
    if width % 2 or rows.shape[0] < 3:
        return False
    x = rows.double()
    tolerance = 0.02 if rows.dtype in NARROW else 1e-4
    halves = (x[:, ::2], x[:, 1::2]), (x[:, : width // 2], x[:, width // 2 :])
    return any(_all((a.square() + b.square() - 1).abs() < tolerance) for a, b in halves)


def _all(mask: Tensor) -> bool:
    return bool(mask.all())
