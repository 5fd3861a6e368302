"""Small trained populations for tests: the same bits every time, in well under a second."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.nets import build, stack
from zoarium.zoo.cohort import Cohort


@lru_cache(maxsize=8)
def small_dataset(train: int = 200, test: int = 120, dtype: torch.dtype = torch.float64) -> Dataset:
    """A few handwritten digits, 8 x 8 pixels in [0, 1], flattened to 64 features."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=generator("small_dataset"))[: train + test]
    inputs = torch.as_tensor(x)[order].to(dtype) / 16
    labels = torch.as_tensor(y)[order].long()
    return Dataset(
        "small_digits", Split(inputs[:train], labels[:train]), Split(inputs[train:], labels[train:]),
        "classification", 10, tuple("0123456789"),
    )  # fmt: skip


def small_cohort(
    n: int = 4, *, net: str = "mlp", width: int = 6, steps: int = 100, dtype: torch.dtype = torch.float64
) -> Cohort:
    """Networks of one architecture trained for a few steps on :func:`small_dataset`.

    Parameters
    ----------
    n : int, default 4
        Models; they differ in the seed.
    net : str, default "mlp"
        A registered net with a `width` and nothing else required.
    width : int, default 6
        Its width.
    steps : int, default 100
        Full-batch gradient steps: enough for 80 % test accuracy, few enough that no gradient vanishes.
    dtype : torch.dtype, default torch.float64
        Double precision, so that laws can be checked to tight tolerances.

    Returns
    -------
    Cohort
        Ids ``small-0``, ``small-1``, ... Model i does not depend on `n`.
    """
    data = small_dataset(dtype=dtype)
    modules = [build(net, {"width": width}, in_shape=data.in_shape, n_outputs=data.n_outputs, seed=i) for i in range(n)]
    cohort = Cohort.from_modules(modules, [f"small-{i}" for i in range(n)]).to(dtype=dtype)
    forward = stack(cohort.module.eval())
    params = {k: v.clone().requires_grad_() for k, v in cohort.params.items()}
    for _ in range(steps):
        out = forward(params, data.train.x, cohort.buffers)  # (n, b, c)
        loss = F.cross_entropy(out.flatten(0, 1), data.train.y.repeat(n), reduction="sum") / len(data.train)
        grads = torch.autograd.grad(loss, list(params.values()))
        with torch.no_grad():
            for p, g in zip(params.values(), grads, strict=True):
                p -= 0.5 * g
    return cohort.with_params({k: v.detach() for k, v in params.items()})
