"""Random views of training images."""

from __future__ import annotations

import pytest
import torch

from zoarium._core.errors import GridError
from zoarium.data import load
from zoarium.train import plan
from zoarium.train.augment import Augmentation
from zoarium.zoo.config import ModelConfig, Training


def image(side=8):
    return torch.arange(1.0, side * side + 1).view(1, 1, side, side)


def view(kind, numbers, side=8):
    images = image(side)
    return Augmentation(kind, [0], [images - 1])(images, torch.tensor([numbers]))


MIDDLE = 0.5  # no shift, no rotation


def test_numbers_in_the_middle_leave_an_image_as_it_is():
    assert torch.equal(view("crop_flip_rotate", [MIDDLE, MIDDLE, 0.9, MIDDLE]), image())


def test_a_small_third_number_mirrors_left_and_right():
    assert torch.equal(view("flip", [0, 0, 0.1, 0]), image().flip(-1))


@pytest.mark.parametrize(("number", "shift"), [(0.0, -1), (0.34, 0), (0.99, 1)])
def test_a_shift_is_a_window_on_the_image_padded_by_an_eighth(number, shift):
    padded = torch.nn.functional.pad(image(), (1, 1, 1, 1))  # black is 0 here
    wanted = padded[..., 1 + shift : 9 + shift, 1:9]
    assert torch.equal(view("crop_flip", [number, MIDDLE, 0.9, 0]), wanted)


def test_rotation_by_the_largest_angle_keeps_the_centre_and_blackens_corners():
    turned = view("crop_flip_rotate", [MIDDLE, MIDDLE, 0.9, 1.0], side=9)
    assert turned[0, 0, 4, 4] == image(9)[0, 0, 4, 4]
    assert turned[0, 0, 0, 0] == 0


def test_rotation_agrees_with_nearest_sampling_of_a_rotated_grid():
    angle = torch.tensor(20.0).deg2rad()
    rotation = torch.tensor([[[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]]])
    grid = torch.nn.functional.affine_grid(rotation, [1, 1, 9, 9], align_corners=False)
    wanted = torch.nn.functional.grid_sample(image(9), grid, mode="nearest", align_corners=False)
    mine = view("crop_flip_rotate", [MIDDLE, MIDDLE, 0.9, 1.0], side=9)
    other = view("crop_flip_rotate", [MIDDLE, MIDDLE, 0.9, 0.0], side=9)
    assert torch.equal(mine, wanted) or torch.equal(other, wanted)  # the sign of an angle is a matter of convention


def test_a_model_sees_the_same_views_in_any_company():
    one, three = Augmentation("crop_flip", [1], [image()]), Augmentation("crop_flip", [0, 1, 2], [image()])
    assert torch.equal(one.draw(4, 10)[0], three.draw(4, 10)[1])
    assert not torch.equal(one.draw(4, 10), one.draw(5, 10))


def test_what_is_no_image_is_not_augmented():
    config = ModelConfig(net="mlp", data="iris", training=Training(augment="flip"))
    with pytest.raises(GridError, match=r"augment='flip' moves the pixels.*'iris' have shape \(4,\)"):
        plan([config], {("iris", 1.0, 0.0, 0): load("iris")})
