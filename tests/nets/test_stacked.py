from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization

from zoarium._core.errors import NetError
from zoarium.nets import build, stack
from zoarium.nets.stacked import chain_of

N, B = 3, 5


class Residual(nn.Module):
    """Not a chain: vmap takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.tanh(self.norm(self.first(x))))


class Wilful(nn.Module):
    """Control flow on values, which vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.out(self.norm(x))
        return h if h.sum().item() > 0 else 2 * h


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...], str]]:
    image = (2, 8, 8)

    def cnn(**params: object) -> nn.Module:
        return build("cnn", {"width": 3, **params}, in_shape=image, n_outputs=4)

    strided = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 0), bias=False), nn.GELU(),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1)), nn.Flatten(), nn.Linear(24, 5), nn.Tanh(),
        nn.Linear(5, 2, bias=False),
    )  # fmt: skip
    return {
        "mlp": (build("mlp", {"width": 5, "depth": 2}, in_shape=(2, 3), n_outputs=4), (2, 3), "bmm"),
        "linear on sequences": (nn.Sequential(nn.Linear(3, 4, bias=False), nn.ELU(), nn.Linear(4, 2)), (6, 3), "bmm"),
        "cnn": (cnn(), image, "grouped"),
        "cnn with batch norm": (cnn(batch_norm=True, depth=2), image, "grouped"),
        "strided cnn": (strided, image, "grouped"),
        "no head": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True)), image, "grouped"),
        "residual": (Residual(), (4,), "vmap"),
        "group norm": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), image, "vmap"),
        "wilful": (Wilful(), (4,), "loop"),
    }


def population(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)

    def stacked(tensor: Tensor) -> Tensor:
        many = tensor.detach().expand(N, *tensor.shape).clone()
        if not many.is_floating_point():
            return many
        return many + 0.3 * torch.rand(many.shape, generator=draw, dtype=many.dtype)

    params = {k: stacked(p) for k, p in module.named_parameters()}
    return params, {k: stacked(b) for k, b in module.named_buffers()}


def inputs(shape: tuple[int, ...], per_model: bool) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(*((N, B) if per_model else (B,)), *shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("per_model", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", nets())
def test_a_stack_agrees_with_its_models_one_by_one_in_outputs_and_buffers(name, per_model, training):
    module, shape, kind = nets()[name]
    module = module.double().train(training)
    params, buffers = population(module)
    x = inputs(shape, per_model)
    expected_buffers = {k: b.clone() for k, b in buffers.items()}
    expected = []
    for i in range(N):
        state = {k: v[i] for k, v in {**params, **expected_buffers}.items()}
        expected.append(functional_call(module, state, (x[i] if per_model else x,)))
    net = stack(module)
    out = net(params, x, buffers, per_model=per_model)
    assert net.kind == kind
    torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=1e-12)
    for key in buffers:
        torch.testing.assert_close(buffers[key], expected_buffers[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_model", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", nets())
def test_features_are_what_a_hook_on_each_layer_sees(name, per_model):
    module, shape, _ = nets()[name]
    module = module.double().eval()
    params, buffers = population(module)
    x = inputs(shape, per_model)
    net = stack(module)
    layers = net.layers
    got = net.features(params, x, [*layers, "logits"], buffers, per_model=per_model)
    for i in range(N):
        seen: dict[str, Tensor] = {}
        hooks = [
            module.get_submodule(k).register_forward_hook(
                lambda m, a, out, k=k, seen=seen: seen.__setitem__(k, out.clone())
            )
            for k in layers
        ]
        state = {k: v[i] for k, v in {**params, **buffers}.items()}
        seen["logits"] = functional_call(module, state, (x[i] if per_model else x,))
        for hook in hooks:
            hook.remove()
        for layer in got:
            torch.testing.assert_close(got[layer][i], seen[layer], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", nets())
def test_hessian_vector_products_agree_with_one_model_at_a_time(name):
    module, shape, _ = nets()[name]
    module = module.double().eval()
    params, buffers = population(module)
    x = inputs(shape, False)
    net = stack(module)

    def products(loss, leaves: dict[str, Tensor]) -> list[Tensor]:
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        directions = [torch.cos(torch.arange(g.numel(), dtype=g.dtype)).view_as(g) for g in grads]
        return list(torch.autograd.grad(grads, list(leaves.values()), directions))

    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    got = products((net(leaves, x, buffers) ** 2).sin().sum(), leaves)
    directions = {k: torch.cos(torch.arange(p.numel(), dtype=p.dtype)).view_as(p) for k, p in params.items()}
    for i in range(N):
        own = {k: p[i].clone().requires_grad_() for k, p in params.items()}
        loss = (functional_call(module, {**own, **{k: b[i] for k, b in buffers.items()}}, (x,)) ** 2).sin().sum()
        grads = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        expected = torch.autograd.grad(grads, list(own.values()), [directions[k][i] for k in own])
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine[i], theirs, rtol=1e-9, atol=1e-9)


def test_running_statistics_in_a_slice_of_a_larger_population_are_updated_in_place():
    module = build("cnn", {"width": 2, "batch_norm": True}, in_shape=(1, 4, 4), n_outputs=3).double().train()
    params, buffers = population(module)
    twice = {k: torch.stack([b, b], dim=-1) for k, b in buffers.items()}
    sliced = {k: b[..., 0] for k, b in twice.items()}  # not contiguous
    x = inputs((1, 4, 4), False)
    stack(module)(params, x, buffers)
    stack(module)(params, x, sliced)
    for key, expected in buffers.items():
        torch.testing.assert_close(twice[key][..., 0], expected)
    assert not torch.equal(twice["norm1.running_mean"][..., 0], twice["norm1.running_mean"][..., 1])


@pytest.mark.parametrize("name", ["cnn with batch norm", "residual", "wilful"])
def test_a_modules_own_buffers_are_left_alone_where_none_are_given(name):
    module, shape, _ = nets()[name]
    module = module.double().train()
    before = {k: b.clone() for k, b in module.named_buffers()}
    stack(module)(population(module)[0], inputs(shape, False))
    for key, buffer in module.named_buffers():
        assert torch.equal(buffer, before[key])


def test_a_module_vmap_cannot_take_becomes_a_loop_that_says_why():
    net = stack(Wilful().double())
    assert net.kind == "vmap"
    params, buffers = population(net.module)
    net(params, inputs((4,), False), buffers)
    assert net.kind == "loop"
    assert "vmap cannot take it" in net.reason
    assert ".item()" in net.reason


def test_an_example_decides_the_route_before_the_first_call():
    assert stack(Wilful(), example=torch.randn(3, 4)).kind == "loop"
    assert stack(Residual(), example=torch.randn(3, 4)).kind == "vmap"


def test_a_modules_own_mistake_is_raised_as_it_is():
    net = stack(Residual())
    params = {k: p.detach()[None] for k, p in net.module.named_parameters()}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        net(params, torch.randn(2, 5))
    assert net.kind == "vmap"


def test_dropout_masks_differ_between_models_in_training_and_vanish_in_evaluation():
    for module in (
        nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5)),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Dropout(0.5), nn.Flatten()),
    ):
        net = stack(module.train())
        x = torch.ones(2, 50) if net.kind == "vmap" else torch.ones(2, 1, 5, 5)
        params = {k: torch.ones(2, *p.shape) for k, p in module.named_parameters()}
        kept = net(params, x) != 0
        assert not torch.equal(kept[0], kept[1])
        module.eval()
        out = net(params, x)
        assert torch.equal(out[0], out[1])


class Doubled(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_chains_that_only_look_plain_are_not_run_by_hand():
    shared = nn.Linear(3, 3)
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked[0].register_forward_hook(lambda module, args, out: 3 * out)
    positive = nn.Linear(3, 3)
    register_parametrization(positive, "weight", nn.Softplus())
    odd = {
        "a layer used twice": nn.Sequential(shared, nn.ReLU(), shared),
        "tied weights": tied,
        "a hook": hooked,
        "a forward of its own": Doubled(nn.Linear(3, 3)),
        "a parametrised weight": nn.Sequential(positive),
        "a flatten that starts later": nn.Sequential(nn.Flatten(2), nn.Linear(3, 3)),
    }
    for why, module in odd.items():
        assert chain_of(module) is None, why
        module = module.double()
        x = inputs((3,) if why != "a flatten that starts later" else (2, 3), False)
        params, _ = population(module)
        out = stack(module)(params, x)
        expected = torch.stack([functional_call(module, {k: p[i] for k, p in params.items()}, (x,)) for i in range(N)])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_a_feature_before_a_layer_that_works_in_place_is_what_came_before():
    module = nn.Sequential(OrderedDict(fc=nn.Linear(2, 4), act=nn.ReLU(inplace=True))).double()
    params, _ = population(module)
    got = stack(module).features(params, -inputs((2,), False), ["fc", "act"])
    assert (got["fc"] < 0).any()
    assert torch.equal(got["act"], got["fc"].relu())


def test_features_of_a_layer_that_is_unknown_unused_or_no_tensor_name_it():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare, self.rnn, self.out = nn.Linear(1, 1), nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    net = stack(Odd().double())
    params, _ = population(net.module)
    x = inputs((4, 3), False)
    with pytest.raises(NetError, match=r"unknown layer 'sparse'.*'spare'"):
        net.features(params, x, ["sparse"])
    with pytest.raises(NetError, match="'spare' is not run"):
        net.features(params, x, ["spare"])
    with pytest.raises(NetError, match="'rnn' gives a tuple"):
        net.features(params, x, ["rnn"])


def test_images_of_the_wrong_shape_are_named():
    net = stack(build("cnn", {"width": 2}, in_shape=(1, 8, 8), n_outputs=3))
    params = {k: torch.zeros(2, *s) for k, s in net.layout.shapes}
    with pytest.raises(NetError, match=r"\(64,\).*reshape"):
        net(params, torch.zeros(5, 64))
    with pytest.raises(NetError, match=r"1 channel.*\(3, 8, 8\)"):
        net(params, torch.zeros(5, 3, 8, 8))
