from __future__ import annotations

import pytest
import torch

from zoarium._core.errors import DataError
from zoarium.data.dataset import Dataset, Split
from zoarium.data.shift import SHIFTS, shifted_task


def images(task: str = "classification") -> Dataset:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8, generator=draw), torch.arange(12) % 4
    return Dataset("toy", Split(x[:8], y[:8]), Split(x[8:], y[8:]), task, 4)  # type: ignore[arg-type]


def text() -> Dataset:
    x = torch.randint(0, 6, (12, 5), generator=torch.Generator().manual_seed(1))
    return Dataset("toy", Split(x[:8, :-1], x[:8, 1:]), Split(x[8:, :-1], x[8:, 1:]), "language", 6)


def fitting(kind: str) -> Dataset:
    return text() if kind == "rename_tokens" else images()


def table() -> Dataset:
    x = torch.arange(20.0).reshape(4, 5)
    return Dataset(
        "rows", Split(x, torch.tensor([0, 1, 0, 1])), Split(x + 1, torch.tensor([1, 0, 1, 0])), "classification", 2
    )


@pytest.mark.parametrize("kind", list(SHIFTS))
def test_severity_zero_leaves_the_task_as_it_is(kind):
    data = fitting(kind)
    assert shifted_task(data, kind, 0.0).fingerprint == data.fingerprint


@pytest.mark.parametrize("kind", list(SHIFTS))
def test_full_severity_changes_both_splits_the_same_way_every_time(kind):
    data = fitting(kind)
    got = shifted_task(data, kind, 1.0, seed=3)
    assert got.fingerprint == shifted_task(data, kind, 1.0, seed=3).fingerprint
    for ours, theirs in ((got.train, data.train), (got.test, data.test)):
        assert not (torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y))
        assert ours.x.shape == theirs.x.shape


@pytest.mark.parametrize("kind", list(SHIFTS))
def test_a_shift_leaves_the_source_task_alone(kind):
    data = fitting(kind)
    shifted_task(data, kind)
    assert data.fingerprint == fitting(kind).fingerprint


@pytest.mark.parametrize("kind", [kind for kind in SHIFTS if kind != "rename_tokens"])
def test_tokens_are_only_ever_renamed(kind):
    with pytest.raises(DataError, match=r"'toy'"):
        shifted_task(text(), kind)


def test_what_is_no_text_has_no_tokens_to_rename():
    with pytest.raises(DataError, match="needs tokens, but 'toy' is a classification task"):
        shifted_task(images(), "rename_tokens")


def test_translation_by_full_severity_is_a_quarter_of_the_image():
    data = images()
    assert torch.equal(shifted_task(data, "translate").train.x[:, :, 2:, 2:], data.train.x[:, :, :-2, :-2])


def test_permuted_features_are_the_same_numbers_and_all_of_them_move():
    data = table()
    got = shifted_task(data, "permute_features")
    assert torch.equal(got.train.x.sort(1).values, data.train.x)
    assert not (got.train.x == data.train.x).any()


def test_flipped_features_keep_their_training_mean():
    data = table()
    torch.testing.assert_close(shifted_task(data, "flip_signs", 0.6).train.x.mean(0), data.train.x.mean(0))


def test_inversion_keeps_the_range_and_undoes_itself():
    data = images()
    once = shifted_task(data, "invert")
    torch.testing.assert_close(once.train.x.min(), data.train.x.min())
    torch.testing.assert_close(shifted_task(once, "invert").test.x, data.test.x)


def test_rotated_classes_are_a_permutation_of_the_labels():
    data = images()
    got = shifted_task(data, "rotate_classes", 0.5, seed=1)
    mapping = {(int(a), int(b)) for a, b in zip(data.train.y, got.train.y, strict=True)}
    assert len(mapping) == 4
    assert len({b for _, b in mapping}) == 4
    assert sum(a != b for a, b in mapping) == 2


def test_images_are_translated_and_tables_permuted_by_default():
    assert shifted_task(images()).name == "toy+translate"
    assert shifted_task(table()).name == "rows+permute_features"


@pytest.mark.parametrize(
    ("kind", "severity", "match"),
    [("translate", 1.0, "permute_features"), ("invert", 1.5, "between 0"), ("melt", 1.0, "Known: .*invert")],
)
def test_a_shift_that_does_not_apply_says_which_would(kind, severity, match):
    with pytest.raises(DataError, match=match):
        shifted_task(table(), kind, severity)


def test_classes_of_a_regression_cannot_be_rotated():
    with pytest.raises(DataError, match="regression"):
        shifted_task(images("regression"), "rotate_classes")
