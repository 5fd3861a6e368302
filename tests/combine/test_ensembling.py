from __future__ import annotations

import torch
from torch import nn

from zoarium.combine import ensemble_probabilities
from zoarium.zoo.cohort import Cohort


def classifiers(n: int = 4) -> tuple[Cohort, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Cohort.from_modules([nn.Linear(3, 5) for _ in range(n)]), torch.randn(7, 3)


def test_an_ensemble_is_the_mean_of_its_members_probabilities():
    cohort, x = classifiers()
    got = ensemble_probabilities(cohort, [[0, 1], [1, 2, 3]], x)
    torch.testing.assert_close(got[1], cohort(x).softmax(-1)[[1, 2, 3]].mean(0))


def test_probabilities_sum_to_one_either_way():
    cohort, x = classifiers()
    for of in ("probabilities", "logits"):
        torch.testing.assert_close(ensemble_probabilities(cohort, [[0, 1, 2]], x, of=of).sum(-1), torch.ones(1, 7))


def test_the_mean_of_logits_is_the_normalised_geometric_mean_of_probabilities():
    cohort, x = classifiers(2)
    p = cohort(x).softmax(-1)
    expected = (p[0] * p[1]).sqrt()
    torch.testing.assert_close(
        ensemble_probabilities(cohort, [[0, 1]], x, of="logits")[0], expected / expected.sum(-1, True)
    )


def test_an_ensemble_of_one_is_that_model():
    cohort, x = classifiers()
    torch.testing.assert_close(ensemble_probabilities(cohort, [[2]], x)[0], cohort(x)[2].softmax(-1))
