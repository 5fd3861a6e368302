"""Zoos that point at files outside them."""

from __future__ import annotations

import pytest
import torch

import zoarium as za
from zoarium._core.errors import HubError
from zoarium.zoo import Zoo


@pytest.fixture
def pointing(tmp_path):
    """A zoo of one model that lies elsewhere on this machine."""
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "mine.pt")
    return za.add(tmp_path / "zoo", tmp_path / "mine.pt").zoo


def test_a_zoo_that_points_at_local_files_is_not_pushed(pointing, hub):
    with pytest.raises(HubError, match=r"1 models of this zoo lie in files outside it, .*mine\.pt.*copy_weights"):
        pointing.push_to_hub("me/zoo")
    assert not hub.asked("POST")


def test_it_is_pushed_once_it_holds_the_weights(pointing, hub, tmp_path):
    pointing.copy_weights()
    pointing.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled")
    assert torch.equal(pulled[0].state_dict()["weight"], torch.ones(2, 3))
