"""Train on from given weights: the same engine, started from a cohort."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoarium._core.errors import GridError
from zoarium.data.dataset import Dataset
from zoarium.train.architecture import describe_module
from zoarium.train.run import Run
from zoarium.zoo.cohort import Cohort
from zoarium.zoo.config import Training


def fine_tune(
    cohort: Cohort,
    data: Dataset,
    training: Training,
    *,
    seeds: Sequence[int] | int = 0,
    dtype: torch.dtype | None = None,
) -> Cohort:
    """Train every model of a cohort on from its weights, all in one stack.

    Parameters
    ----------
    cohort : Cohort
        Where to start; it is not changed.
    data : Dataset
        What to train on; its inputs and number of outputs must be those of the net.
    training : Training
        Epochs or steps, optimiser, rates.
    seeds : int or sequence of int, default 0
        Order of the data, one seed for all models or one each.
    dtype : torch.dtype, optional
        Default: that of the cohort.

    Returns
    -------
    Cohort
        The same ids with new weights. A model that diverges keeps the weights of its last finite epoch.
    """
    n = len(cohort)
    order = [seeds] * n if isinstance(seeds, int) else list(seeds)
    if len(order) != n:
        raise GridError(f"fine_tune got {len(order)} seeds for {n} models; give one a model, or a single seed.")
    if training.batch_size > len(data.train):
        training = training.model_copy(update={"batch_size": len(data.train)})
    first = next(iter(cohort.params.values()))
    key = (data.name, 1.0, 0.0, 0)
    one = describe_module(cohort.module, data)
    run = Run(
        [training] * n, order, [key] * n, {key: data}, [one], [0] * n, "fine_tune", dtype or first.dtype, first.device
    )
    with torch.no_grad():
        for row in range(n):
            run.stack.load(row, cohort.state(row))
    for epoch in range(run.timetable.epochs):
        before = run.snapshot()
        run.train_epoch(epoch)
        lost = ~run.finite() | (run.diverged > 0)
        if bool(lost.any()):
            run.diverged[lost] = epoch + 1
            run.restore(before, lost)
    params, buffers = run.stack.dump(0, range(n))
    one.module.eval()
    return Cohort(cohort.ids, params, cohort.module, buffers)
