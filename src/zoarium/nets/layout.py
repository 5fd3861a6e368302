"""How named parameters lie in one flat row, so that n models are one (n, p) matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the parameters of one architecture in a flat row of `size` numbers."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module's parameters, in the order of ``named_parameters``."""
        return cls(tuple((name, tuple(p.shape)) for name, p in module.named_parameters()))

    @property
    def names(self) -> list[str]:
        """Parameter names in order."""
        return [name for name, _ in self.shapes]

    @property
    def size(self) -> int:
        """Number of parameters p."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Split ``(..., p)`` into named tensors ``(..., *shape)`` that share its memory where they can."""
        out: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes:
            count = math.prod(shape)
            out[name] = flat[..., start : start + count].unflatten(-1, shape) if shape else flat[..., start]
            start += count
        return out

    def flatten(self, params: Mapping[str, Tensor], batch_dims: int = 1) -> Tensor:
        """Join named tensors ``(..., *shape)`` into ``(..., p)``."""
        return torch.cat(
            [params[name].flatten(batch_dims) if shape else params[name].unsqueeze(-1) for name, shape in self.shapes],
            dim=-1,
        )
