"""How differently two classifiers predict: where their answers differ, and how far their probabilities lie apart.

disagreement = (1/N) Σ_i 1[argmax f(x_i) ≠ argmax g(x_i)]
probability distance = (1/N) Σ_i ½ Σ_y |p_f(y | x_i) - p_g(y | x_i)|        (total variation)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoarium._core.errors import MeasureError
from zoarium._core.estimates import Estimates
from zoarium.data.dataset import Dataset
from zoarium.measure.performance import NO_CLASSES, NOT_FINITE, outputs_on
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

AT_ONCE = 2**22  # numbers a temporary may hold
QUANTITIES = ("disagreement", "probability_distance")


@measure(
    "disagreement", scope="pair", across=True, quantities=QUANTITIES,
    reference="Fort, Hu & Lakshminarayanan 2019, 'Deep ensembles: a loss landscape perspective'",
    cost="one forward pass a model",
)  # fmt: skip
def disagreement(
    cohorts: Sequence[Cohort], pairs: Tensor, data: Dataset, *, split: Literal["test", "train"] = "test"
) -> dict[str, Estimates]:
    """Share of samples on which two classifiers differ, and the distance of their probabilities.

    Parameters
    ----------
    cohorts : sequence of Cohort
        Classifiers; architectures may differ, classes may not.
    pairs : Tensor of shape (m, 2)
        Rows, counted through all cohorts.
    data : Dataset
        Where the inputs come from.
    split : {"test", "train"}, default "test"

    Returns
    -------
    dict of str to Estimates
        ``disagreement``, a share in [0, 1] with its binomial standard error; ``probability_distance``, mean total
        variation in [0, 1], standard error sd/√N. NaN with a reason for regression and for outputs that are not finite.

    Raises
    ------
    MeasureError
        When the models have different numbers of classes, or the split is unknown.

    Notes
    -----
    Keeps the probabilities of all models on all samples: n N c numbers.

    Examples
    --------
    >>> from zoarium.testing.cohorts import small_cohort, small_dataset
    >>> got = disagreement([small_cohort()], torch.tensor([[0, 0], [0, 1]]), small_dataset())
    >>> float(got["disagreement"].value[0]), float(got["probability_distance"].value[0])
    (0.0, 0.0)
    """
    if split not in ("test", "train"):
        raise MeasureError(f"disagreement: split must be 'test' or 'train', found {split!r}.")
    pairs = pairs.reshape(-1, 2)
    if data.task == "regression":
        none = Estimates(np.full(len(pairs), np.nan), np.nan, 0, 0, [NO_CLASSES] * len(pairs))
        return dict.fromkeys(QUANTITIES, none)
    x = (data.test if split == "test" else data.train).x
    # (n, N, c) each; of sequences, tokens are the samples
    out = [torch.cat([o for _, o in outputs_on(cohort, x)], 1).flatten(1, -2) for cohort in cohorts if len(cohort)]
    classes = {o.shape[2] for o in out}
    if len(classes) > 1:
        raise MeasureError(f"cannot compare predictions of nets with {sorted(classes)} classes; leave such pairs out.")
    logits = torch.cat([o.to(out[0]) for o in out])
    finite = logits.isfinite().all(2).all(1)
    answer, probability = logits.argmax(2), logits.softmax(2)
    step = max(1, AT_ONCE // logits[0].numel())
    differ, distance, spread = [], [], []
    for chunk in pairs.split(step):
        i, j = chunk.T
        differ.append((answer[i] != answer[j]).double().mean(1))
        apart = (probability[i] - probability[j]).abs().sum(2).double() / 2  # (pairs, N)
        distance.append(apart.mean(1))
        spread.append(apart.std(1))
    ok = finite[pairs].all(1).numpy()
    reason = ["" if fine else NOT_FINITE for fine in ok]
    share, mean, sd = (np.where(ok, torch.cat(part).numpy(), np.nan) for part in (differ, distance, spread))
    n = len(x)
    return {
        "disagreement": Estimates(share, np.sqrt(share * (1 - share) / n), n, 0, reason),
        "probability_distance": Estimates(mean, sd / n**0.5, n, 0, reason),
    }
