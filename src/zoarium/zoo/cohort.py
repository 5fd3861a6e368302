"""Models of one architecture, stacked in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from zoarium._core.errors import NetError
from zoarium.nets import Layout, StackedNet, stack


@dataclass(frozen=True)
class Cohort:
    """n models of one architecture; ``params[name]`` is (n, *shape) and ``cohort(x)`` is (n, b, ...).

    Parameters
    ----------
    ids : tuple of str
        One id a model.
    params, buffers : dict of str to Tensor
        Stacked parameters and buffers (batch-norm statistics), each (n, *shape).
    module : torch.nn.Module
        The architecture; its own weights are not used. A cohort is always in evaluation mode.
    """

    ids: tuple[str, ...]
    params: dict[str, Tensor]
    module: nn.Module
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module], ids: Sequence[str] | None = None) -> Cohort:
        """Stack modules of one architecture; the originals are copied, not changed."""
        first = modules[0]
        layout = Layout.of(first)
        names = tuple(ids) if ids is not None else tuple(f"model_{i}" for i in range(len(modules)))
        for name, module in zip(names, modules, strict=True):
            if Layout.of(module) != layout:
                raise NetError(
                    f"cannot stack {name!r} with {names[0]!r}: their parameters differ in name or shape. "
                    "Put models of one architecture in one cohort."
                )
        params = {k: torch.stack([dict(m.named_parameters())[k].detach() for m in modules]) for k in layout.names}
        buffers = {k: torch.stack([dict(m.named_buffers())[k] for m in modules]) for k, _ in first.named_buffers()}
        return cls(names, params, first, buffers)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    @cached_property
    def net(self) -> StackedNet:
        """The architecture as one stacked function, in evaluation mode."""
        return stack(self.module.eval())

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters."""
        return self.net.layout

    @property
    def flat(self) -> Tensor:
        """All parameters as one (n, p) matrix (a copy)."""
        return self.layout.flatten(self.params)

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs in the type of the parameters; whole numbers, such as tokens, stay as they are."""
        like = next(iter(self.params.values()))
        return x.to(like) if x.is_floating_point() else x.to(like.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (n, b, ...) on one batch (b, ...), without gradients."""
        with torch.no_grad():
            return self.net(self.params, x, self.buffers)

    def features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Activations ``{layer: (n, b, ...)}``; "logits" names the output."""
        with torch.no_grad():
            return self.net.features(self.params, x, layers, self.buffers)

    def select(self, rows: Sequence[int] | Tensor) -> Cohort:
        """The cohort of some of the rows, in the order given (rows may repeat)."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return Cohort(
            tuple(self.ids[i] for i in index.tolist()),
            {k: v[index] for k, v in self.params.items()},
            self.module,
            {k: v[index] for k, v in self.buffers.items()},
        )

    def with_params(self, params: dict[str, Tensor], ids: Sequence[str] | None = None) -> Cohort:
        """The same architecture with other weights."""
        return Cohort(tuple(ids) if ids is not None else self.ids, params, self.module, self.buffers)

    def state(self, row: int) -> dict[str, Tensor]:
        """State dict of one model (copies)."""
        return {k: v[row].clone() for k, v in {**self.params, **self.buffers}.items()}

    def to(self, *args: object, **kwargs: object) -> Cohort:
        """Move or cast, as `torch.Tensor.to`; integer buffers keep their type."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(*args, **kwargs) if tensor.is_floating_point() else tensor  # type: ignore[arg-type]

        return Cohort(
            self.ids,
            {k: move(v) for k, v in self.params.items()},
            self.module,
            {k: move(v) for k, v in self.buffers.items()},
        )
