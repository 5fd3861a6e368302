import pytest
from torch import nn

import zoarium as za
from zoarium._core.errors import GridError, NetError
from zoarium.growth import dry_run


def test_a_dry_run_lists_every_model_once_in_the_programs_grow_would_train():
    grid = za.Grid("cnn", width=[2, 4], seed=range(3), epochs=1, data="digits")
    programs = dry_run(grid)
    assert programs["models"].sum() == 6
    assert list(programs["seconds"]) == sorted(programs["seconds"], reverse=True)
    assert programs["program"].n_unique() == len(programs)


def test_each_route_is_named_with_its_reason():
    def of(net, **axes):
        return dry_run(net, epochs=1, data="digits", **axes).row(0, named=True)

    def group_norm(in_shape, n_outputs):
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(72, n_outputs))

    assert of("mlp")["route"] == "chain"
    assert of("resnet8", width=2)["route"] == "conv"
    own = of(group_norm)
    assert own["route"] == "vmap"
    assert "GroupNorm" in own["reason"]


def test_a_dry_run_says_what_grow_would_say():
    with pytest.raises(GridError, match=r"give seed to the Grid, not to dry_run\(\)"):
        dry_run(za.Grid("mlp"), seed=3)
    with pytest.raises(NetError):
        dry_run(lambda in_shape, n_outputs: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), data="digits")
