"""Batch-norm statistics of models whose weights were moved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from zoarium.nets import stack
from zoarium.zoo.cohort import Cohort

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def has_batchnorm(cohort: Cohort) -> bool:
    """Whether the architecture keeps running batch-norm statistics."""
    return any(isinstance(m, BATCH_NORMS) and m.track_running_stats for m in cohort.module.modules())


def reestimate_batchnorm(cohort: Cohort, x: Tensor, *, batch_size: int = 1024) -> Cohort:
    """The cohort with its batch-norm statistics estimated anew on training inputs.

    Averaged, pruned or otherwise edited weights produce activations that the stored running mean and variance do not
    describe; without this step such models fail for a reason that has nothing to do with their weights.

    Parameters
    ----------
    cohort : Cohort
        Returned as it is where the architecture has no batch norm.
    x : Tensor of shape (N, ...)
        Training inputs.
    batch_size : int, default 1024
        Inputs a forward pass; the statistics are the plain mean of the passes'.

    Returns
    -------
    Cohort
        Same parameters, new buffers. Only batch norm runs in training mode; dropout stays off.
    """
    if not has_batchnorm(cohort):
        return cohort
    module = copy.deepcopy(cohort.module).eval()
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    for norm in norms:
        norm.train()
    net = stack(module)
    buffers = {k: v.clone() for k, v in cohort.buffers.items()}
    with torch.no_grad():
        chunks = [c for c in x.split(batch_size) if len(c) > 1] or [x]  # a single input has no variance
        for index, chunk in enumerate(chunks):
            for norm in norms:
                norm.momentum = 1.0 / (index + 1)  # a running mean of equal shares
            net(cohort.params, chunk, buffers)
    return Cohort(cohort.ids, cohort.params, cohort.module, buffers)
