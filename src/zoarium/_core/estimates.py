"""What a measure returns: values that carry their uncertainty, and the reason when there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, init=False)
class Estimates:
    """One value for each model (or pair, or cell), with the standard error of each.

    Parameters
    ----------
    value : array of shape (n,)
        NaN where the quantity does not exist; `reason` then says why.
    stderr : array of shape (n,) or float
        Standard error; 0 for an exact value, NaN where none can be given.
    samples : array of shape (n,) or int
        Data samples each value rests on.
    products : array of shape (n,) or int
        Hessian-vector products (or probes, or random draws) spent on each value; 0 where none are.
    reason : sequence of str, optional
        Why a value is NaN; empty strings elsewhere.
    """

    value: np.ndarray
    stderr: np.ndarray
    samples: np.ndarray
    products: np.ndarray
    reason: tuple[str, ...]

    def __init__(
        self,
        value: ArrayLike,
        stderr: ArrayLike = 0.0,
        samples: ArrayLike = 0,
        products: ArrayLike = 0,
        reason: Sequence[str] = (),
    ) -> None:
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        n = len(values)
        if reason and len(reason) != n:
            raise ValueError(f"{n} values but {len(reason)} reasons")
        object.__setattr__(self, "value", values)
        object.__setattr__(self, "stderr", np.broadcast_to(np.asarray(stderr, dtype=np.float64), (n,)).copy())
        object.__setattr__(self, "samples", np.broadcast_to(np.asarray(samples, dtype=np.int64), (n,)).copy())
        object.__setattr__(self, "products", np.broadcast_to(np.asarray(products, dtype=np.int64), (n,)).copy())
        object.__setattr__(self, "reason", tuple(reason) or ("",) * n)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Estimates:
        reason = np.asarray(self.reason, dtype=object)[rows]
        return Estimates(self.value[rows], self.stderr[rows], self.samples[rows], self.products[rows], tuple(reason))

    def __str__(self) -> str:
        shown = [f"{v:.4g} ± {e:.2g}" for v, e in zip(self.value[:5], self.stderr[:5], strict=True)]
        return "[" + ", ".join(shown) + (f", … ({len(self)} values)]" if len(self) > 5 else "]")


def concatenate(parts: Sequence[Estimates]) -> Estimates:
    """Estimates of several chunks as one."""
    return Estimates(
        np.concatenate([p.value for p in parts]),
        np.concatenate([p.stderr for p in parts]),
        np.concatenate([p.samples for p in parts]),
        np.concatenate([p.products for p in parts]),
        tuple(reason for p in parts for reason in p.reason),
    )
