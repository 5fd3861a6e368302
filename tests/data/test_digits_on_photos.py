from __future__ import annotations

import pytest
import torch

from zoarium._core.errors import DataError
from zoarium.data import load, patches
from zoarium.data.images import mnist_5k


def test_a_sample_is_the_difference_of_a_patch_and_a_digit(monkeypatch):
    black = {name: 0 * pixels for name, pixels in patches.photos().items()}
    monkeypatch.setattr("zoarium.data.digits_on_photos.photos", lambda: black)
    data = load("digits_on_photos", n_train=30, n_test=10, seed=5)  # on black the digits are left
    digits = mnist_5k(size=14, n_train=30, seed=5)
    mean, sd = digits.train.x.mean(), digits.train.x.std()
    assert torch.allclose(data.train.x[:, 1:2], (digits.train.x - mean) / sd, atol=1e-4)
    assert torch.equal(data.train.y, digits.train.y)


@pytest.mark.parametrize("classes", [10, 20, 40, 100])
def test_a_class_is_a_digit_times_a_region_and_all_occur(classes):
    data = load("digits_on_photos", classes=classes, size=7)
    assert data.n_outputs == len(data.classes) == len(set(data.classes)) == classes
    assert data.train.y.unique().tolist() == list(range(classes))
    assert data.train.y.bincount().min() > 0.4 * len(data.train) / classes
    digits = mnist_5k(size=7, n_train=2000)
    assert torch.equal(data.test.y % 10, digits.test.y)


def test_regions_differ_in_colour():
    data = load("digits_on_photos", classes=20)
    one, two = (data.train.x[data.train.y // 10 == n].mean((0, 2, 3)) for n in (0, 1))
    assert (one - two).abs().max() > 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 30}, r"classes must be one of \(10, 20, 40, 100\), found 30"),
        ({"size": 16}, "size must be 28, 14 or 7 pixels a side, found 16"),
        ({"n_test": 2000}, "n_test from 10 to 1000, found n_train=2000, n_test=2000"),
    ],
)
def test_what_cannot_be_made_is_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        load("digits_on_photos", **wrong)
