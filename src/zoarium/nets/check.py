"""Whether a net fits its data, asked before any training starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoarium._core.errors import NetError

if TYPE_CHECKING:
    from zoarium.data.dataset import Dataset


def check_net(module: nn.Module, dataset: Dataset) -> None:
    """Run a net on two samples of its data and compare what comes out with the targets.

    Parameters
    ----------
    module : torch.nn.Module
        The net; its weights, buffers and mode are left as they are.
    dataset : Dataset
        What it is to be trained on.

    Raises
    ------
    NetError
        When it has no parameters, cannot read the inputs, or its outputs do not match the labels.

    Examples
    --------
    >>> from torch import nn
    >>> from zoarium.data import load
    >>> check_net(nn.Linear(4, 3), load("iris"))
    """
    name = type(module).__name__
    params = [p for p in module.parameters() if p.is_floating_point()]
    if not params:
        raise NetError(f"net {name} has no parameters to train; give it at least one layer.")
    x = dataset.train.x[:2]
    x = x.to(params[0]) if x.is_floating_point() else x.to(params[0].device)
    modes = {child: child.training for child in module.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            out = module.eval()(x)
    except Exception as error:  # a user's own forward may raise anything
        first = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        raise NetError(
            f"net {name} cannot read inputs of shape {dataset.in_shape} from {dataset.name!r}: {first}. "
            "Give a net that takes this shape, or other data."
        ) from error
    finally:
        for child, mode in modes.items():
            child.training = mode
    rows = dataset.train.y[:2].shape if dataset.task == "language" else (len(x),)  # one prediction a token, or a sample
    wanted = (*rows, dataset.n_outputs)
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted:
        found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        kind = {"classification": "classes", "regression": "target columns", "language": "tokens"}[dataset.task]
        raise NetError(
            f"net {name} gives {found} for {len(x)} samples of {dataset.name!r}, whose {dataset.n_outputs} {kind} need "
            f"shape {wanted}; let its last layer have n_outputs={dataset.n_outputs} units."
        )


def single_value_error(size: tuple[int, ...]) -> NetError:
    """The error of batch norm that would train on one value a channel: one image that shrinks to one pixel."""
    return NetError(
        f"batch norm cannot train on a batch of one image of {size[-2]} x {size[-1]} pixels, which "
        "shrinks to one pixel; set drop_last=True, or a batch_size of which no single sample is left over."
    )
