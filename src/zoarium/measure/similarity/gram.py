"""Inner products of all pairs of models over their common matrices, one tensor name at a time.

For the tensor l of every model, flattened to x_i, a block of columns of X = (x_1 .. x_n) is held at a time, and

    G_l = X X^T,      S_l = sign(X) sign(X)^T,      N_l = |sign(X)| |sign(X)|^T

are summed over blocks in float64: all pairs come from one product, and no tensor is read for a pair. A tensor of which
all copies fit into the buffer is read once from each model; a larger one is read twice, the second time range by range.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from zoarium.measure.similarity.independence import UNITS, UnitSample
from zoarium.measure.similarity.sources import Shape, Source
from zoarium.measure.weight_matrices import why_left_out

BUFFER = 64 << 20  # bytes of the buffer of columns, where no tensor is larger
COLUMNS = 1 << 21  # numbers turned to float64 at once
PIECE = 1 << 20  # numbers hashed at once


@dataclass(frozen=True)
class Key:
    """One tensor as several models have it: its shared name and shape, and the name each model gives it."""

    name: str
    shape: Shape
    own: dict[int, str]  # by the number of the model

    @property
    def numel(self) -> int:
        """Numbers of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorProducts:
    """Products of one tensor over the models that have it as a learnt matrix; `rows` says which those are."""

    key: Key
    rows: np.ndarray  # (k,)
    gram: np.ndarray  # (k, k) <x_i, x_j>
    signs: np.ndarray  # (k, k) numbers of one sign less those of two
    nonzero: np.ndarray  # (k, k) numbers that are zero in neither
    positive: np.ndarray  # (k,) sum of signs
    filled: np.ndarray  # (k,) numbers that are not zero
    z: np.ndarray  # (k, k)
    same: np.ndarray  # (k, k) equal in every number
    left_out: dict[int, str] = field(default_factory=dict)


def buffer_numbers(sources: Sequence[Source], keys: Sequence[Key]) -> int:
    """Numbers of float32 that the buffer may hold: as many bytes as the largest tensor to be read, or 64 MiB."""
    largest = max((_nbytes(sources[i].model.tensors[own]) for key in keys for i, own in key.own.items()), default=0)
    return max(largest, BUFFER) // 4


def _nbytes(info: object) -> int:
    size = getattr(info, "nbytes", None)
    return int(size) if size is not None else 4 * math.prod(tuple(info.shape))  # type: ignore[attr-defined]


def tensor_products(
    sources: Sequence[Source], key: Key, limit: int, *, units: int = UNITS, rest: Callable[[], None] = lambda: None
) -> TensorProducts:
    """Products of one tensor over all models that have it.

    Parameters
    ----------
    sources : sequence of Source
    key : Key
    limit : int
        Numbers of the buffer.
    units : int, default 128
        Units of each side that the test of independence looks at.
    rest : callable
        Called after each tensor is read.
    """
    n = len(key.own)
    wide = [i for i, own in key.own.items() if "float64" in str(sources[i].model.tensors[own].dtype)]
    limit = limit // 2 if wide else limit
    columns = max(1, min(key.numel, limit // n))
    whole = columns == key.numel
    buffer = torch.empty(n, columns, dtype=torch.float64 if wide else torch.float32)
    sample = UnitSample(key.name, key.shape, n, units=units) if len(key.shape) > 1 and key.numel else None
    kept: list[int] = []
    digests: list[bytes] = []
    left_out: dict[int, str] = {}
    for i, own in key.own.items():
        tensor = sources[i].tensor(own)
        reason = why_left_out(own, tensor)
        if reason:
            left_out[i] = reason
        else:
            if whole:
                buffer[len(kept)] = tensor.flatten()
            assert sample is not None  # a vector is left out
            sample.take(len(kept), tensor)
            digests.append(_digest(tensor))
            kept.append(i)
        del tensor
        rest()
    k = len(kept)
    gram, signs, nonzero = (np.zeros((k, k)) for _ in range(3))
    positive, filled = np.zeros(k), np.zeros(k)
    if k > 1:
        for start in range(0, key.numel, columns):
            stop = min(start + columns, key.numel)
            if not whole:
                for row, i in enumerate(kept):
                    buffer[row, : stop - start] = sources[i].part(key.own[i], start, stop)
            for part in buffer[:k, : stop - start].split(max(256, COLUMNS // k), dim=1):
                x = part.double()
                gram += (x @ x.T).numpy()
                x = x.sign_()
                signs += (x @ x.T).numpy()
                positive += x.sum(1).numpy()
                x = x.abs_()
                nonzero += (x @ x.T).numpy()
                filled += x.sum(1).numpy()
    z = sample.z(k) if sample is not None and k > 1 else np.full((k, k), np.nan)
    same = np.array([[a == b for b in digests] for a in digests], dtype=bool).reshape(k, k)
    rows = np.array(kept, dtype=int)
    fine = np.isfinite(gram.diagonal())
    left_out |= dict.fromkeys(rows[~fine].tolist(), "its squares are beyond float64")
    at = np.ix_(fine, fine)
    return TensorProducts(
        key, rows[fine], gram[at], signs[at], nonzero[at], positive[fine], filled[fine], z[at], same[at], left_out
    )


def _digest(tensor: Tensor) -> bytes:
    """A digest of the numbers, the same for all types that can write them."""
    found = hashlib.blake2b(digest_size=16)
    for piece in tensor.flatten().split(PIECE):
        narrow = piece.float()
        exact = tensor.dtype != torch.float64 or bool((narrow.double() == piece).all())
        found.update(np.ascontiguousarray((narrow if exact else piece).numpy() + 0.0).data)  # -0 is 0
    return found.digest()
