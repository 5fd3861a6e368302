from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from zoarium._core.errors import DataError, MissingExtraError
from zoarium.data import load, patches


def plain_photos(monkeypatch, height=40, width=60):
    """Two photos whose pixels tell where they are: photo, row, column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    photos = {name: np.stack([np.full_like(rows, n), rows, columns], -1) for n, name in enumerate(("one", "two"))}
    monkeypatch.setattr(patches, "photos", lambda: photos)


def places(x):
    """(photo, row, column) of every pixel, (N, 3, size, size)."""
    return (x * 255).round().long()


@pytest.mark.parametrize(("classes", "size"), [(2, 8), (10, 4), (24, 4), (4, 20), (10, 6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_is_a_block_and_no_pixel_is_in_both_splits(monkeypatch, classes, size, seed):
    plain_photos(monkeypatch)
    make = patches.colour_patches
    data = make(classes=classes, size=size, n_train=4 * classes, n_test=classes, jitter=0, normalize=False, seed=seed)
    seen = {}
    for kind, split in (("train", data.train), ("test", data.test)):
        where = places(split.x)
        assert torch.equal(where, where[:, :, :1, :1] + torch.stack([  # contiguous, upright
            torch.zeros(size, size), *torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        ]).long())  # fmt: skip
        assert len({tuple(corner) for corner in where[:, :, 0, 0].tolist()}) == len(split)  # all different
        seen[kind] = {tuple(pixel) for pixel in where.movedim(1, -1).reshape(-1, 3).tolist()}
        of_class = [where[split.y == c].movedim(1, -1).reshape(-1, 3) for c in range(classes)]
        boxes = [(p[0, 0].item(), p[:, 1].min(), p[:, 1].max(), p[:, 2].min(), p[:, 2].max()) for p in of_class]
        for i, (photo, top, bottom, left, right) in enumerate(boxes):
            assert of_class[i][:, 0].unique().tolist() == [photo]
            for other in boxes[:i]:
                apart = other[0] != photo or other[1] > bottom or top > other[2] or other[3] > right or left > other[4]
                assert apart
    assert not seen["train"] & seen["test"]


def test_patches_are_shared_out_evenly_over_classes_and_named_after_their_block():
    data = load("colour_patches", classes=20, size=8, n_train=405, n_test=100)
    assert sorted(data.train.y.bincount().tolist()) == [20] * 15 + [21] * 5
    assert data.test.y.bincount().tolist() == [5] * 20
    assert len(set(data.classes)) == 20
    assert {name.split()[0] for name in data.classes} == {"china", "flower"}


def test_channels_are_standardised_by_the_training_split():
    data = load("colour_patches", n_train=200, n_test=50)
    assert data.train.x.mean((0, 2, 3)).abs().max() < 1e-4
    assert (data.train.x.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert data.test.x.mean((0, 2, 3)).abs().max() > 1e-3


def test_jitter_changes_the_light_of_a_patch_and_nothing_else():
    lit, plain = (load("colour_patches", n_train=20, n_test=10, jitter=j, normalize=False) for j in (0.3, 0.0))
    assert plain.train.x.max() <= 1
    ratio = lit.train.x / plain.train.x.clamp(min=1e-6)
    seen = plain.train.x > 0.05
    for row in range(20):
        for channel in range(3):
            of = ratio[row, channel][seen[row, channel]]
            if len(of) > 1:
                assert of.min() >= 0.7 and of.max() <= 1.3 and of.max() - of.min() < 1e-4
    assert torch.equal(lit.train.y, plain.train.y)


def test_the_seed_draws_the_patches():
    one, two, again = (patches.colour_patches(n_train=50, n_test=10, seed=s) for s in (0, 1, 0))
    assert one.fingerprint == again.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"classes": 7}, "classes must be an even number.*found 7"),
        ({"classes": 0}, "classes must be an even number"),
        ({"jitter": 1.0}, r"jitter must lie in \[0, 1\), found 1.0"),
        ({"size": 0}, "size of 1 or more.*found size=0"),
        ({"n_test": 9}, "at least the 10 classes.*n_test=9"),
        ({"classes": 200, "size": 33}, "with classes=200 a block has 42 x 64 pixels, too few.*size=33"),
        ({"classes": 200, "size": 32}, r"block 'china 0,0' has 11 different train patches.*n_train asks for 20"),
    ],
)  # fmt: skip
def test_settings_that_give_no_honest_task_are_named(params, says):
    with pytest.raises(DataError, match=says):
        patches.colour_patches(**params)


def test_patches_without_pillow_name_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"'colour_patches' needs PIL.*pip install 'zoarium\[data\]'"):
        patches.colour_patches()


def test_smaller_digits_are_means_of_squares_and_fewer_ones_stay_balanced():
    full, small = load("mnist_5k"), load("mnist_5k", size=14, n_train=500)
    assert small.in_shape == (1, 14, 14)
    assert small.train.y.bincount().tolist() == [50] * 10
    squares = full.test.x.reshape(-1, 1, 14, 2, 14, 2).double().mean((3, 5))
    torch.testing.assert_close(small.test.x.double(), squares, rtol=0, atol=1e-6)
    for params, says in (({"size": 9}, "size must be 28, 14, 7 or 4"), ({"n_train": 4001}, "between 10 and 4000")):
        with pytest.raises(DataError, match=says):
            load("mnist_5k", **params)
