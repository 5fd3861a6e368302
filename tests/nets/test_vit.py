from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import zoarium as za
from zoarium._core.errors import NetError
from zoarium.nets import build, stack

N, B, SHAPE = 3, 5, (2, 8, 8)
SMALL = {"patch": 2, "width": 8, "depth": 2, "heads": 2}


def small(**params: object) -> nn.Module:
    return build("vit", {**SMALL, **params}, in_shape=SHAPE, n_outputs=4).double()


def population(module: nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        k: p.detach() + 0.2 * torch.randn(N, *p.shape, generator=draw, dtype=p.dtype)
        for k, p in module.named_parameters()
    }


def images(*lead: int) -> Tensor:
    return torch.randn(*lead, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("patch", "width", "depth", "heads", "expected"),
    [(16, 768, 12, 12, 86_567_656), (32, 768, 12, 12, 88_224_232), (16, 1024, 24, 16, 304_326_632)],
)
def test_vit_base_and_large_have_the_published_number_of_parameters(patch, width, depth, heads, expected):
    params = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    with torch.device("meta"):
        net = build("vit", params, in_shape=(3, 224, 224), n_outputs=1000)
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("ratio", [1, 2.5, 4.0])
def test_the_number_of_parameters_is_the_closed_form(ratio):
    d, hidden, tokens = 8, round(8 * ratio), 17
    block = 4 * (d * d + d) + d * hidden + hidden + hidden * d + d + 4 * d
    expected = (2 * 4 * d + d) + d + tokens * d + 2 * block + 2 * d + (d * 4 + 4)
    assert sum(p.numel() for p in small(mlp_ratio=ratio).parameters()) == expected


def restated(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same net from PyTorch's own transformer layers, with copied weights."""
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (b, 16, C*4)
    h = patches @ state["conv_proj.weight"].flatten(1).T + state["conv_proj.bias"]
    h = torch.cat([state["class_token"].expand(len(x), 1, -1), h], dim=1) + state["encoder.pos_embedding"]
    theirs = {
        "self_attn.in_proj_weight": "self_attention.in_proj_weight",
        "self_attn.in_proj_bias": "self_attention.in_proj_bias",
        "self_attn.out_proj.weight": "self_attention.out_proj.weight",
        "self_attn.out_proj.bias": "self_attention.out_proj.bias",
        "linear1.weight": "mlp.0.weight", "linear1.bias": "mlp.0.bias",
        "linear2.weight": "mlp.3.weight", "linear2.bias": "mlp.3.bias",
        "norm1.weight": "ln_1.weight", "norm1.bias": "ln_1.bias",
        "norm2.weight": "ln_2.weight", "norm2.bias": "ln_2.bias",
    }  # fmt: skip
    for index in range(2):
        layer = nn.TransformerEncoderLayer(
            8, 2, 32, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        ).double()
        ours = f"encoder.layers.encoder_layer_{index}"
        layer.load_state_dict({a: state[f"{ours}.{b}"] for a, b in theirs.items()})
        h = layer(h)
    h = nn.functional.layer_norm(h, (8,), state["encoder.ln.weight"], state["encoder.ln.bias"], 1e-6)
    return h[:, 0] @ state["heads.head.weight"].T + state["heads.head.bias"]


def test_outputs_are_those_of_pytorchs_own_layers_with_copied_weights():
    net = small()
    state = {k: v[0] for k, v in population(net).items()}
    net.load_state_dict(state)
    x = images(B)
    torch.testing.assert_close(net(x), restated(state, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_model", [False, True])
def test_a_stacked_vit_gives_what_its_models_give_one_by_one(training, per_model):
    net = small().train(training)
    params, x = population(net), images(*((N, B) if per_model else (B,)))
    stacked = stack(net)
    out = stacked(params, x, per_model=per_model)
    assert stacked.kind == "transformer"
    for i in range(N):
        expected = functional_call(net, {k: v[i] for k, v in params.items()}, (x[i] if per_model else x,))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)


def test_stacked_hessian_vector_products_are_those_of_each_model_alone():
    net, x = small(depth=1), images(B)
    params = {k: v.requires_grad_() for k, v in population(net).items()}

    def curved(out: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(out.square().sum(), weights, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), weights)

    together = curved(stack(net)(params, x), list(params.values()))
    own = {k: v[2].detach().requires_grad_() for k, v in params.items()}
    for a, b in zip(together, curved(functional_call(net, own, (x,)), list(own.values())), strict=True):
        torch.testing.assert_close(a[2], b, rtol=1e-7, atol=1e-7)


def test_positions_matter_and_the_class_token_sees_every_patch():
    net, x = small(), images(1)
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=-1)
    assert (net(x) - net(swapped)).abs().max() > 1e-6
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).square().sum(), x)
    assert (gradient != 0).all()


def test_one_seed_gives_the_same_bits_and_another_seed_other_weights():
    one, again, other = (build("vit", SMALL, in_shape=SHAPE, n_outputs=3, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], again[k]) for k in one)
    drawn = [k for k, v in one.items() if v.dim() > 1 and k != "class_token"]
    assert len(drawn) == 2 * 4 + 3
    assert not any(torch.equal(one[k], other[k]) for k in drawn)


@pytest.mark.parametrize(
    ("shape", "params", "says"),
    [
        ((64,), {}, r"'vit' needs images.*\(64,\).*reshape"),
        ((1, 8, 8), {"patch": 3}, r"patch=3 pixels a side do not cover images of 8 x 8; choose patch from 1, 2, 4, 8"),
        ((1, 8, 8), {"width": 10, "heads": 4}, r"heads=4 attention heads cannot share width=10.*for example 12"),
        ((1, 8, 8), {"depth": 0}, "'vit': depth must be a whole number from 1, found 0"),
        ((1, 8, 8), {"mlp_ratio": 0.0}, "mlp_ratio must be above 0 .*found 0.0"),
        ((1, 8, 8), {"mlp_ratio": float("nan")}, "mlp_ratio must be above 0 .*found nan"),
        ((1, 8, 8), {"mlp_ratio": "4"}, "mlp_ratio must be above 0 .*found '4'"),
    ],
)
def test_what_cannot_be_built_is_named_with_a_way_out(shape, params, says):
    with pytest.raises(NetError, match=says):
        build("vit", params, in_shape=shape, n_outputs=2)


def test_images_of_another_size_are_refused_because_positions_are_learned():
    with pytest.raises(NetError, match=r"positions for images \(2, 8, 8\), found inputs of shape \(2, 4, 4\)"):
        small()(torch.zeros(1, 2, 4, 4, dtype=torch.float64))


def test_a_vit_grows_on_digits_and_learns():
    zoo = za.grow(
        "vit", patch=4, width=[8, 16], depth=1, heads=2, seed=range(2), steps=80, batch_size=[32, 64], optimizer="adam",
        lr=0.01, data="digits", workers=1,
    )  # fmt: skip
    assert len(zoo) == 8
    assert set(zoo.table["status"]) == {"trained"}
    for (_,), rows in zoo.history.group_by("id"):
        assert rows.sort("step")["train_loss"][-1] < 2.0  # a fresh net knows nothing: ln 10 = 2.3
