from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoarium._core.errors import MeasureError
from zoarium.data.dataset import Dataset, Split
from zoarium.measure.performance import QUANTITIES, outputs_on, performance
from zoarium.testing import check_measure
from zoarium.testing.cohorts import small_cohort, small_dataset
from zoarium.testing.measures import as_regression
from zoarium.zoo.cohort import Cohort

CLASSES = tuple(q for q in QUANTITIES if not q.endswith("loss"))


class Copy(nn.Module):
    """Answers with its input, times one weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def as_given(logits, y, task="classification"):
    """One model whose outputs on both splits are `logits`, and its data."""
    split = Split(logits, y)
    cohort = Cohort.from_modules([Copy().to(logits.dtype)])
    return cohort, Dataset("given", split, split, task, logits.shape[1])


def test_performance_keeps_the_laws_of_a_measure():
    check_measure("performance")
    check_measure("performance", data=as_regression(small_dataset()))


def test_every_value_is_that_of_one_model_at_a_time():
    cohort, data = small_cohort(), small_dataset()
    got = performance(cohort, data)
    for row in range(len(cohort)):
        model = cohort.select([row])
        for name, split in (("train", data.train), ("test", data.test)):
            logits = model(split.x)[0]
            right = (logits.argmax(1) == split.y).double()
            losses = F.cross_entropy(logits, split.y, reduction="none")
            assert got[f"{name}_loss"].value[row] == pytest.approx(float(losses.mean()))
            assert got[f"{name}_loss"].stderr[row] == pytest.approx(float(losses.std()) / len(split) ** 0.5)
            assert got[f"{name}_accuracy"].value[row] == pytest.approx(float(right.mean()))
            assert got[f"{name}_error"].value[row] == pytest.approx(1 - float(right.mean()))
    gap = got["train_accuracy"].value - got["test_accuracy"].value
    assert got["generalization_gap"].value == pytest.approx(gap)


def test_the_answer_does_not_depend_on_how_samples_are_cut():
    cohort, x = small_cohort(), small_dataset().test.x
    pieces = list(outputs_on(cohort, x, budget=20_000))
    assert len(pieces) > 3
    assert torch.allclose(torch.cat([out for _, out in pieces], 1), cohort(x))


def test_half_right_at_full_confidence_has_a_calibration_error_of_one_half_and_a_binomial_error():
    logits = torch.tensor([[100.0, 0.0]] * 40, dtype=torch.float64)
    got = performance(*as_given(logits, torch.tensor([0, 1] * 20)))
    assert got["calibration_error"].value[0] == pytest.approx(0.5)
    assert got["test_accuracy"].stderr[0] == pytest.approx((0.25 / 40) ** 0.5)


def test_right_answers_as_often_as_said_are_calibrated():
    logits = torch.tensor([[0.75, 0.25]] * 400, dtype=torch.float64).log()
    y = (torch.arange(400) % 4 == 0).long()  # right in 3 of 4
    got = performance(*as_given(logits, y))
    assert got["calibration_error"].value[0] == pytest.approx(0, abs=1e-12)


def test_calibration_error_is_that_of_the_plain_loop_over_bins():
    cohort, data = small_cohort(), small_dataset()
    got = performance(cohort, data, bins=7)["calibration_error"].value
    p, answer = cohort(data.test.x).softmax(2).max(2)
    for row in range(len(cohort)):
        expected = 0.0
        for k in range(7):
            inside = (p[row] > k / 7) & (p[row] <= (k + 1) / 7)
            if inside.any():
                right = (answer[row] == data.test.y)[inside].double().mean()
                expected += float(inside.double().mean() * (right - p[row][inside].mean()).abs())
        assert got[row] == pytest.approx(expected)


def test_the_loss_of_a_confident_float32_model_keeps_its_digits():
    logits = torch.tensor([[20.0, 0.0]] * 10)
    got = performance(*as_given(logits, torch.zeros(10, dtype=torch.long)))
    assert got["train_loss"].value[0] == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-6)


def test_regression_has_losses_and_says_why_it_has_no_accuracy():
    data = as_regression(small_dataset())
    got = performance(small_cohort(), data)
    out = small_cohort()(data.test.x)
    assert got["test_loss"].value == pytest.approx((out - data.test.y).square().mean((1, 2)).numpy())
    for quantity in CLASSES:
        assert np.isnan(got[quantity].value).all()
        assert all("regression" in reason for reason in got[quantity].reason)


def test_data_with_more_classes_than_outputs_is_refused():
    data = small_dataset()
    many = replace(data, test=Split(data.test.x, data.test.y + 5))
    with pytest.raises(MeasureError, match=r"classes up to 14.*10 outputs"):
        performance(small_cohort(), many)
