"""Learning-rate schedules in closed form, one value an optimiser step.

With T steps in all and t = 0 .. T-1 (the torch schedulers these agree with are stepped after every optimiser step):

    constant    lr
    cosine      lr (1 + cos(pi t / T)) / 2                                    CosineAnnealingLR(T_max=T)
    step        lr factor^#{m : round(m T) <= t}                              MultiStepLR
    one_cycle   lr/25 -> lr over the first `warmup` T steps, then -> lr/250,000, both along half a cosine   OneCycleLR

Smith & Topin, "Super-convergence", 2018; Loshchilov & Hutter, "SGDR", 2017.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from zoarium.zoo.config import Training

DIV_FACTOR = 25.0  # one_cycle begins at lr / 25 ...
FINAL_DIV_FACTOR = 1e4  # ... and ends at that over 10,000


def rates(training: Training, steps: int) -> np.ndarray:
    """Learning rate of every optimiser step.

    Parameters
    ----------
    training : Training
        Its `lr`, `schedule` and the schedule's own settings are read.
    steps : int
        Optimiser steps in the whole training.

    Returns
    -------
    array of shape (steps,), float64; read only.

    Examples
    --------
    >>> rates(Training(lr=1.0, schedule="step", step_milestones=(0.5,), step_factor=0.1), 4).tolist()
    [1.0, 1.0, 0.1, 0.1]
    """
    return _rates(
        training.schedule, training.lr, training.warmup, training.step_milestones, training.step_factor, steps
    )


@lru_cache(maxsize=512)
def _rates(
    schedule: str, lr: float, warmup: float, milestones: tuple[float, ...], factor: float, steps: int
) -> np.ndarray:
    t = np.arange(steps, dtype=np.float64)
    if schedule == "constant":
        out = np.full(steps, lr)
    elif schedule == "cosine":
        out = lr * (1 + np.cos(np.pi * t / max(steps, 1))) / 2
    elif schedule == "step":
        passed = sum(((t >= round(m * steps)) for m in milestones), np.zeros(steps))
        out = lr * factor**passed
    else:
        low, last = lr / DIV_FACTOR, lr / DIV_FACTOR / FINAL_DIV_FACTOR
        top = warmup * steps - 1  # where the rise ends, as OneCycleLR counts; it need not be a whole step
        rise = t / top if top > 0 else np.ones(steps)
        fall = (t - top) / (steps - 1 - top) if steps - 1 > top else np.ones(steps)
        out = np.where(t <= top, _half_cosine(low, lr, rise), _half_cosine(lr, last, fall))
    out.setflags(write=False)
    return out


def _half_cosine(start: float, end: float, share: np.ndarray) -> np.ndarray:
    return end + (start - end) / 2 * (1 + np.cos(np.pi * share))
