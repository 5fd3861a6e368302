"""A model with its computation, as a program of `torch.export`: loads where PyTorch is, without the net's code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import NetError

if TYPE_CHECKING:
    from torch import Tensor, nn


def write_program(path: Path, module: nn.Module, in_shape: tuple[int, ...], where: str) -> None:
    """Write ``model.pt2``: the module in evaluation mode, for any number of samples of that shape.

    Parameters
    ----------
    path : Path
    module : nn.Module
        A net that embeds gets token numbers (b, t) for any t from 2 to its length, any other gets (b, *in_shape) in the
        type of its parameters.
    in_shape : tuple of int
        Shape of one input.
    where : str
        Which model, for the error.

    Raises
    ------
    NetError
        If `torch.export` cannot follow the net's code.
    """
    import torch
    from torch import nn

    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    tokens = any(isinstance(m, nn.Embedding) for m in module.modules())
    example = torch.zeros(3, *in_shape, dtype=torch.int64 if tokens else dtype)
    free = {0: torch.export.Dim("batch", min=1)}
    if tokens and len(in_shape) == 1 and in_shape[0] > 2:
        free[1] = torch.export.Dim("tokens", min=2, max=in_shape[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(_traced(module.eval(), example, free), path)
    except Exception as error:  # torch.export raises many kinds, none of them documented
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise NetError(f"torch.export cannot follow the net of {where}: {reason}; choose format='torch'.") from error


def _traced(module: nn.Module, example: Tensor, free: dict[int, Any]) -> Any:
    """The program, read from the net's bytecode or, where that fails, from one run of it.

    A run takes ``len(x)`` in a net's code for a constant; the bytecode is read for any batch.
    """
    import torch

    try:
        return torch.export.export(module, (example,), dynamic_shapes=(free,), strict=True)
    except Exception:
        return torch.export.export(module, (example,), dynamic_shapes=(free,), strict=False)
