from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import zoarium as za
from zoarium._core.errors import NetError
from zoarium.nets import build, stack
from zoarium.nets.resnet import BasicBlock, ResNet

N, B = 3, 6
SMALL = {
    "resnet8": ({"width": 2}, (3, 8, 8)),
    "resnet14": ({"width": 2}, (1, 8, 8)),
    "resnet18": ({"width": 2}, (3, 32, 32)),
    "resnet18 cifar": ({"width": 2, "stem": "cifar"}, (1, 8, 8)),
    "resnet50": ({"width": 1, "stem": "cifar"}, (1, 8, 8)),
}


def small(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    params, shape = SMALL[name]
    return build(name.partition(" ")[0], params, in_shape=shape, n_outputs=4).double(), shape


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def population(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """N jittered copies of a module's parameters and of its buffers."""
    draw = torch.Generator().manual_seed(1)

    def stacked(tensor: Tensor) -> Tensor:
        many = tensor.detach().expand(N, *tensor.shape).clone()
        if not many.is_floating_point():
            return many
        return many + 0.1 * torch.rand(many.shape, generator=draw, dtype=many.dtype)

    return (
        {k: stacked(p) for k, p in module.named_parameters()},
        {k: stacked(b) for k, b in module.named_buffers()},
    )


@pytest.mark.parametrize(("name", "expected"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_the_imagenet_nets_have_the_published_number_of_parameters(name, expected):
    with torch.device("meta"):
        assert count(build(name, {}, in_shape=(3, 224, 224), n_outputs=1000)) == expected


def test_the_cifar_stem_differs_by_its_kernel_alone():
    with torch.device("meta"):
        nets = [build("resnet18", {"stem": s}, in_shape=(3, 32, 32), n_outputs=10) for s in ("imagenet", "cifar")]
    assert count(nets[0]) - count(nets[1]) == 3 * 64 * (49 - 9)
    assert count(nets[1]) == 11_173_962  # the count of the usual CIFAR-10 ResNet-18


@pytest.mark.parametrize(("blocks", "expected"), [(3, 269_722), (9, 853_018), (18, 1_727_962)])
def test_the_small_nets_at_more_layers_are_the_papers_resnet_20_56_and_110(blocks, expected):
    with torch.device("meta"):
        net = ResNet(BasicBlock, (blocks,) * 3, 3, 10, width=16, stem="cifar", projection=False)
    assert count(net) == expected  # 0.27M, 0.85M and 1.7M in the paper's table 6


@pytest.mark.parametrize(("name", "n"), [("resnet8", 1), ("resnet14", 2)])
@pytest.mark.parametrize("w", [1, 5, 16])
@pytest.mark.parametrize(("c", "k"), [(3, 10), (1, 7)])
def test_the_small_nets_have_the_parameters_of_the_closed_form(name, n, w, c, k):
    stem = 9 * c * w + 2 * w
    first = 2 * n * (9 * w**2 + 2 * w)
    second = 9 * w * 2 * w + (2 * n - 1) * 9 * (2 * w) ** 2 + 2 * n * 4 * w
    third = 9 * 2 * w * 4 * w + (2 * n - 1) * 9 * (4 * w) ** 2 + 2 * n * 8 * w
    net = build(name, {"width": w}, in_shape=(c, 8, 8), n_outputs=k)
    assert count(net) == stem + first + second + third + 4 * w * k + k
    weighted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 6 * n + 2


def test_names_and_shapes_of_resnet50_are_those_of_published_checkpoints():
    with torch.device("meta"):
        state = build("resnet50", {}, in_shape=(3, 224, 224), n_outputs=1000).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert len(shapes) == 320  # 161 parameters, 3 buffers for each of 53 batch norms
    assert list(shapes)[:2] == ["conv1.weight", "bn1.weight"]
    assert shapes["layer1.0.conv1.weight"] == (64, 64, 1, 1)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.2.bn3.running_var"] == (2048,)
    assert shapes["fc.weight"] == (1000, 2048)


def restated(state: dict[str, Tensor], x: Tensor, *, imagenet: bool, training: bool) -> Tensor:
    """A residual network from its named tensors alone, one functional call after the other."""

    def norm(h: Tensor, name: str) -> Tensor:
        mean, var = (state[f"{name}.running_{key}"].clone() for key in ("mean", "var"))
        return F.batch_norm(h, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training)

    h = F.conv2d(x, state["conv1.weight"], stride=2 if imagenet else 1, padding=3 if imagenet else 1)
    h = norm(h, "bn1").relu()
    if imagenet:
        h = F.max_pool2d(h, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            halving = 2 if stage > 1 and block == 0 else 1
            convolutions = [i for i in (1, 2, 3) if f"{name}.conv{i}.weight" in state]
            halves_at = 2 if len(convolutions) == 3 else 1  # a bottleneck halves in its 3 x 3 convolution
            out = h
            for i in convolutions:
                weight = state[f"{name}.conv{i}.weight"]
                out = F.conv2d(
                    out, weight, stride=halving if i == halves_at else 1, padding=1 if weight.shape[-1] == 3 else 0
                )
                out = norm(out, f"{name}.bn{i}")
                out = out.relu() if i != convolutions[-1] else out
            if f"{name}.downsample.0.weight" in state:
                h = norm(F.conv2d(h, state[f"{name}.downsample.0.weight"], stride=halving), f"{name}.downsample.1")
            elif out.shape != h.shape:
                picked = h[:, :, ::2, ::2]
                h = torch.cat([picked, torch.zeros_like(picked)], dim=1)  # each stage doubles the channels
            h = (h + out).relu()
            block += 1
    return F.linear(h.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_the_net_restated_from_its_named_tensors(name, training):
    net, shape = small(name)
    params, buffers = population(net)
    state = {k: v[0] for k, v in {**params, **buffers}.items()}
    net.load_state_dict(state)
    x = torch.randn(B, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = restated(state, x, imagenet=name == "resnet18", training=training)
    torch.testing.assert_close(net.train(training)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_model", [False, True])
def test_a_stacked_resnet_gives_what_its_models_give_one_by_one_statistics_included(name, training, per_model):
    net, shape = small(name)
    net.train(training)
    params, buffers = population(net)
    before = {k: v.clone() for k, v in buffers.items()}
    lead = (N, B) if per_model else (B,)
    x = torch.randn(*lead, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    stacked = stack(net)
    out = stacked(params, x, buffers, per_model=per_model)
    assert stacked.kind == "grouped"
    for i in range(N):
        own = {k: v[i].clone() for k, v in before.items()}  # changed in place in training mode
        expected = functional_call(net, {**{k: v[i] for k, v in params.items()}, **own}, (x[i] if per_model else x,))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)
        for key, value in own.items():
            torch.testing.assert_close(buffers[key][i], value, rtol=1e-10, atol=1e-10)
            assert torch.equal(value, before[key][i]) != training


def test_stacked_gradients_are_those_of_each_model_alone():
    net, shape = small("resnet8")
    params, buffers = population(net.train())
    params = {k: v.requires_grad_() for k, v in params.items()}
    x = torch.randn(B, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    together = torch.autograd.grad(stack(net)(params, x, dict(buffers)).square().sum(), list(params.values()))
    _, fresh = population(net)
    own = {k: v[1].detach().requires_grad_() for k, v in params.items()}
    out = functional_call(net, {**own, **{k: v[1] for k, v in fresh.items()}}, (x,))
    alone = torch.autograd.grad(out.square().sum(), list(own.values()))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1], b, rtol=1e-8, atol=1e-8)


def test_features_name_the_output_of_a_block():
    net, shape = small("resnet18")
    params, buffers = population(net.eval())
    x = torch.randn(B, *shape, dtype=torch.float64)
    got = stack(net).features(params, x, ["layer2.1.relu", "logits"], buffers)
    assert got["layer2.1.relu"].shape == (N, B, 4, 4, 4)
    assert (got["layer2.1.relu"] >= 0).all()


def test_blocks_whose_last_norm_starts_at_zero_start_as_their_shortcut():
    for name, params in (("resnet8", {}), ("resnet50", {"width": 1, "stem": "cifar"})):
        net = build(name, {**params, "zero_init_residual": True}, in_shape=(3, 8, 8), n_outputs=2).eval()
        default = build(name, params, in_shape=(3, 8, 8), n_outputs=2)
        block, plain = net.layer1[0], default.layer1[0]
        h = torch.rand(2, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block(h), (h if block.downsample is None else block.downsample(h)).relu())
        assert (plain.last_norm.weight == 1).all()


def test_initial_convolutions_are_kaiming_uniform_within_their_bound():
    weight = build("resnet18", {"width": 16}, in_shape=(3, 32, 32), n_outputs=10).layer2[0].conv1.weight.detach()
    bound = (16 * 9) ** -0.5  # PyTorch's default, 1 / sqrt(fan_in)
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet18", "resnet50"])
def test_one_seed_gives_the_same_bits_and_another_seed_other_convolutions(name):
    one, again, other = (
        build(name, {"width": 2}, in_shape=(1, 8, 8), n_outputs=3, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not any(torch.equal(v, other[k]) for k, v in one.items() if "conv" in k or k.startswith("fc"))


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet18", "resnet50"])
def test_inputs_that_are_no_images_and_bad_widths_are_named(name):
    with pytest.raises(NetError, match=rf"'{name}' needs images.*\(64,\).*reshape.*net='mlp'"):
        build(name, {}, in_shape=(64,), n_outputs=2)
    with pytest.raises(NetError, match=rf"'{name}': width must be a whole number from 1, found 0"):
        build(name, {"width": 0}, in_shape=(1, 8, 8), n_outputs=2)


def test_an_unknown_stem_lists_the_known():
    with pytest.raises(NetError, match="'resnet18': stem must be 'imagenet' or 'cifar', found 'mnist'"):
        build("resnet18", {"stem": "mnist"}, in_shape=(1, 8, 8), n_outputs=2)


@pytest.mark.parametrize(
    ("name", "stem", "largest"), [("resnet18", "imagenet", 32), ("resnet18", "cifar", 8), ("resnet8", "cifar", 4)]
)
def test_a_batch_of_one_image_that_shrinks_to_a_pixel_is_refused_in_training_only(name, stem, largest):
    def net(side: int) -> nn.Module:
        params = {"width": 1} if name == "resnet8" else {"width": 1, "stem": stem}
        return build(name, params, in_shape=(1, side, side), n_outputs=2)

    image = torch.rand(1, 1, largest, largest)
    with pytest.raises(NetError, match=rf"one image of {largest} x {largest} pixels.*drop_last=True"):
        net(largest)(image)
    assert net(largest).eval()(image).shape == (1, 2)
    assert net(largest)(image.expand(2, -1, -1, -1)).shape == (2, 2)
    assert net(largest + 1)(torch.rand(1, 1, largest + 1, largest + 1)).shape == (1, 2)


def test_a_last_batch_of_one_sample_says_drop_last_and_with_it_the_net_grows():
    settings = {"width": 1, "epochs": 1, "batch_size": 27, "data": "digits", "workers": 1}  # 1,000 = 37 · 27 + 1
    with pytest.raises(NetError, match=r"one image of 8 x 8 pixels.*drop_last=True"):
        za.grow("resnet18", **settings)
    assert list(za.grow("resnet18", drop_last=True, **settings).table["status"]) == ["trained"]


def test_resnet8_grows_on_digits_and_learns():
    zoo = za.grow("resnet8", width=[2, 4], seed=range(2), steps=60, batch_size=32, data="digits", workers=1)
    assert set(zoo.table["status"]) == {"trained"}
    for (_,), rows in zoo.history.group_by("id"):
        assert rows.sort("step")["train_loss"][-1] < 2.2  # a fresh net knows nothing: ln 10 = 2.3
