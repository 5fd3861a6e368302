"""Ensembles: the mean of what several models predict.

    p̄(y | x) = (1/k) Σ_i softmax f_i(x)

Lakshminarayanan, Pritzel & Blundell, "Simple and scalable predictive uncertainty estimation using deep ensembles",
2017. By Jensen's inequality the cross-entropy of p̄ is at most the mean cross-entropy of its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from zoarium.zoo.cohort import Cohort


def ensemble_probabilities(
    cohort: Cohort,
    groups: Sequence[Sequence[int]],
    x: Tensor,
    *,
    of: Literal["probabilities", "logits"] = "probabilities",
) -> Tensor:
    """Class probabilities of one ensemble a group of rows.

    Parameters
    ----------
    cohort : Cohort
        Classifiers of one architecture.
    groups : sequence of sequences of int
        Rows of the cohort; groups may overlap and differ in size.
    x : Tensor of shape (b, ...)
        Inputs.
    of : {"probabilities", "logits"}, default "probabilities"
        What is averaged: probabilities (a mixture), or logits (a normalised geometric mean of the probabilities).

    Returns
    -------
    Tensor of shape (groups, b, c)
        Rows sum to one.

    See Also
    --------
    ensemble_outputs : The same from outputs already computed, and for regression.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from zoarium.zoo.cohort import Cohort
    >>> cohort = Cohort.from_modules([nn.Linear(4, 3) for _ in range(4)])
    >>> tuple(ensemble_probabilities(cohort, [[0, 1], [2, 3]], torch.ones(5, 4)).shape)
    (2, 5, 3)
    """
    logits = cohort(x)  # (n, b, c)
    if of == "logits":
        return ensemble_outputs(logits, groups).softmax(-1)
    return ensemble_outputs(logits.softmax(-1), groups)


def ensemble_outputs(outputs: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Mean over each group of rows of ``outputs`` (n, ...): shape (groups, ...)."""
    means = [outputs[list(group)].mean(0) for group in groups]
    return torch.stack(means) if means else outputs[:0]
