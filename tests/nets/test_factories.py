from __future__ import annotations

import pytest
import torch
from torch import nn

import zoarium as za
from zoarium._core.errors import NetError
from zoarium.data import from_arrays, load
from zoarium.nets import NETS, build, check_net
from zoarium.nets.registry import axes_of


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 1, 5), (2, 3, 3)])
@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_cnn_takes_images_of_any_size_and_gives_one_output_a_class(shape, depth, batch_norm):
    net = build("cnn", {"width": 2, "depth": depth, "batch_norm": batch_norm}, in_shape=shape, n_outputs=7)
    assert net(torch.randn(3, *shape)).shape == (3, 7)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == depth * batch_norm


def test_the_size_of_a_cnn_does_not_depend_on_the_size_of_its_images():
    small, large = (build("cnn", {}, in_shape=(1, side, side), n_outputs=10) for side in (8, 28))
    assert [p.shape for p in small.parameters()] == [p.shape for p in large.parameters()]


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 2, 3, 4)])
def test_a_cnn_on_inputs_that_are_no_images_says_so_with_a_way_out(shape):
    with pytest.raises(NetError, match=r"'cnn' needs images.*reshape.*net='mlp'"):
        build("cnn", {}, in_shape=shape, n_outputs=2)


@pytest.mark.parametrize(
    ("net", "params"),
    [
        ("mlp", {"width": 0}),
        ("mlp", {"depth": -1}),
        ("cnn", {"width": -2}),
        ("cnn", {"depth": 0}),
        ("cnn", {"width": True}),
    ],
)
def test_a_size_that_is_not_positive_is_named(net, params):
    (name,) = params
    with pytest.raises(NetError, match=rf"'{net}': {name} must be a whole number from 1"):
        build(net, params, in_shape=(1, 8, 8), n_outputs=2)


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_an_unknown_activation_lists_the_known(net):
    with pytest.raises(NetError, match=r"unknown activation 'relo'. Did you mean 'relu'"):
        build(net, {"activation": "relo"}, in_shape=(1, 8, 8), n_outputs=2)


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_initial_weights_depend_on_the_seed_alone_and_the_global_stream_is_left_alone(net):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build(net, {}, in_shape=(1, 8, 8), n_outputs=10, seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = (build(net, {}, in_shape=(1, 8, 8), n_outputs=10, seed=s) for s in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_users_registered_factory_has_its_own_axes_and_needs_only_the_shapes_it_asks_for():
    @za.net("test_bottleneck")
    def bottleneck(n_outputs: int, *, narrow: int = 3) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(narrow), nn.Linear(narrow, n_outputs))

    assert axes_of("test_bottleneck") == {"narrow": 3}
    assert "test_bottleneck" in NETS
    assert build("test_bottleneck", {"narrow": 2}, in_shape=(4,), n_outputs=5)[2].weight.shape == (5, 2)


def test_a_net_that_fits_its_data_passes_and_keeps_its_mode_and_statistics():
    data = load("digits")
    net = build("cnn", {"batch_norm": True}, in_shape=data.in_shape, n_outputs=data.n_outputs)
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    check_net(net, data)
    assert net.training
    assert not net[1].training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Raising(nn.Linear):
    """Fails in a way of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Linear(4, 2), r"shape \(2, 2\) for 2 samples of 'iris'.*3 classes.*n_outputs=3"),
        (nn.Linear(5, 3), r"cannot read inputs of shape \(4,\) from 'iris': .*shapes"),
        (nn.Identity(), "has no parameters"),
        (nn.LSTM(4, 3), r"gives a tuple for 2 samples"),
        (Raising(4, 3), "no such thing"),
    ],
)
def test_a_net_that_does_not_fit_its_data_is_told_where(net, says):
    with pytest.raises(NetError, match=says):
        check_net(net, load("iris"))


def test_a_regression_net_with_the_wrong_width_hears_of_target_columns():
    data = from_arrays([[0.0], [1.0], [2.0]], [[0.5, 1.0], [1.5, 2.0], [0.0, 0.1]])
    with pytest.raises(NetError, match="2 target columns"):
        check_net(nn.Linear(1, 1), data)
