import numpy as np
import pytest
import torch

from zoarium._core.errors import MeasureError
from zoarium.measure.disagreement import disagreement
from zoarium.testing import check_measure
from zoarium.testing.cohorts import small_cohort, small_dataset
from zoarium.testing.measures import as_regression


def test_disagreement_keeps_the_laws_of_a_measure():
    check_measure("disagreement")


def test_both_quantities_are_those_of_the_plain_loop():
    cohort, data = small_cohort(), small_dataset()
    pairs = torch.tensor([[0, 1], [3, 2]])
    got = disagreement([cohort], pairs, data)
    p = cohort(data.test.x).softmax(2)
    for n, (i, j) in enumerate(pairs.tolist()):
        assert got["disagreement"].value[n] == pytest.approx(float((p[i].argmax(1) != p[j].argmax(1)).double().mean()))
        apart = (p[i] - p[j]).abs().sum(1) / 2
        assert got["probability_distance"].value[n] == pytest.approx(float(apart.mean()))
        assert got["probability_distance"].stderr[n] == pytest.approx(float(apart.std()) / len(apart) ** 0.5)


def test_it_is_a_distance_zero_to_itself_symmetric_and_within_the_triangle():
    cohort, data = small_cohort(), small_dataset()
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    for estimates in disagreement([cohort], pairs, data).values():
        d = estimates.value.reshape(4, 4)
        assert (np.diag(d) == 0).all() and np.allclose(d, d.T)
        assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-12).all()
        assert (d >= 0).all() and (d <= 1).all()


def test_rows_count_through_cohorts_of_different_architectures():
    wide, narrow, data = small_cohort(2, width=8), small_cohort(3, width=4), small_dataset()
    across = disagreement([wide, narrow], torch.tensor([[0, 2], [3, 4]]), data)["disagreement"].value
    alone = disagreement([narrow], torch.tensor([[1, 2]]), data)["disagreement"].value
    assert across[1] == alone[0]
    answers = wide(data.test.x)[0].argmax(1), narrow(data.test.x)[0].argmax(1)
    assert across[0] == pytest.approx(float((answers[0] != answers[1]).double().mean()))


def test_regression_has_none_and_says_why():
    got = disagreement([small_cohort()], torch.tensor([[0, 1]]), as_regression(small_dataset()))
    assert np.isnan(got["disagreement"].value[0]) and "regression" in got["disagreement"].reason[0]


def test_an_unknown_split_is_named():
    with pytest.raises(MeasureError, match=r"'test' or 'train', found 'valid'"):
        disagreement([small_cohort()], torch.tensor([[0, 1]]), small_dataset(), split="valid")
