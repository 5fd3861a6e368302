"""Convolutional nets written in other ways than a chain run as one grouped convolution a layer, or say why not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zoarium.nets import stack
from zoarium.nets.convgraph import Untraceable, conv_graph

N, B = 3, 4


class Net(nn.Module):
    """Two convolutions and a linear layer; a test says what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.out = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = h + self.second(h)
        return self.out(h.mean((2, 3)))


class Written(Net):
    """The forward of a user: functions, methods, sums in place, a padded shortcut, features by view."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.wide = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.out = nn.Linear(6 * 4, 3)
        del self.second

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.first(x)))
        short = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        h = self.wide(h)
        h += short
        h = torch.add(F.max_pool2d(h, 3, 1, 1), F.avg_pool2d(h, 3, 1, 1)).relu()
        h = F.adaptive_avg_pool2d(torch.tanh(h), (2, 2))
        return self.out(F.gelu(h.view(h.size(0), -1)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("per_model", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("kind", [Net, Written])
def test_a_users_net_agrees_with_its_models_one_by_one_in_outputs_and_buffers(kind, per_model, training):
    module = kind().double().train(training)
    draw = torch.Generator().manual_seed(0)
    shapes = {k: p.shape for k, p in module.named_parameters()}
    params = {k: torch.randn(N, *s, generator=draw, dtype=torch.float64) for k, s in shapes.items()}
    buffers = {k: b.expand(N, *b.shape).clone() for k, b in module.named_buffers()}
    before = {k: b.clone() for k, b in buffers.items()}
    x = torch.randn(*((N, B) if per_model else (B,)), 2, 4, 4, generator=draw, dtype=torch.float64)
    net = stack(module)
    out = net(params, x, buffers, per_model=per_model)
    assert net.kind == "grouped"
    for i in range(N):
        own = {k: b[i].clone() for k, b in before.items()}
        wanted = functional_call(module, ({k: p[i] for k, p in params.items()}, own), (x[i] if per_model else x,))
        torch.testing.assert_close(out[i], wanted, rtol=1e-10, atol=1e-10)
        for key, buffer in own.items():
            torch.testing.assert_close(buffers[key][i], buffer, rtol=1e-10, atol=1e-10)


def test_features_of_a_graph_are_what_hooks_see():
    module = Net().double().eval()
    seen: dict[str, Tensor] = {}
    x = torch.randn(B, 2, 4, 4, dtype=torch.float64)
    net = stack(module)
    for name in ("first", "norm", "second"):
        module.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
    wanted = module(x)
    params = {k: p.detach().expand(N, *p.shape) for k, p in module.named_parameters()}
    got = net.features(params, x, ["first", "norm", "second", "logits"])
    for name, value in {**seen, "logits": wanted}.items():
        torch.testing.assert_close(got[name][1], value)


def test_reading_a_net_leaves_the_mode_of_every_layer_as_it_was():
    module = Net().train()
    module.norm.eval()
    conv_graph(module)
    assert module.training
    assert module.first.training
    assert not module.norm.training


class ByValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h if h.sum() > 0 else -h


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.out(self.norm(self.second(self.second(h))).mean((2, 3)))


class Gate(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        return self.out((h * torch.sigmoid(self.second(h))).mean((2, 3)))


class Overwrites(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        return self.out((F.relu(h, inplace=True) + self.second(h)).mean((2, 3)))


class Moody(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.norm(self.first(x)), 0.5, self.training)
        return self.out(self.second(h).mean((2, 3)))


class Idle(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.first(x)).mean((2, 3)))


class Wrapped(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        return self.out(self.second(h).view(h.size(1), -1))


def hooked() -> nn.Module:
    net = Net()
    net.norm.register_forward_hook(lambda *_: None)
    return net


def tied() -> nn.Module:
    net = Twice()
    net.out.bias = net.norm.bias
    return net


REFUSED = {
    "a path by value": (ByValue, "cannot be written down"),
    "a layer run twice": (Twice, "runs twice"),
    "a product": (Gate, "it calls mul"),
    "a value overwritten": (Overwrites, "overwrites a value that is used elsewhere"),
    "another net in evaluation": (Moody, "calls dropout"),
    "an idle parameter": (Idle, "a parameter is used by no layer"),
    "another reshape": (Wrapped, "it calls view"),
    "hooks": (hooked, "it has hooks"),
    "tied weights": (tied, "tied weights"),
    "a layer of no kernel": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), "'1' is a GroupNorm"),
    "padding by reflection": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding_mode="reflect")), "'0' is a Conv2d"),
    "no convolution": (lambda: nn.Sequential(nn.Linear(2, 2)), "no convolution"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_net_that_is_no_such_graph_is_left_to_vmap_with_the_reason(what):
    make, reason = REFUSED[what]
    module = make()
    with pytest.raises(Untraceable, match=reason):
        conv_graph(module)
    if what != "no convolution":
        assert reason in stack(module).reason
