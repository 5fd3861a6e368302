from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import zoarium as za
from zoarium._core.errors import NetError
from zoarium.data import from_arrays
from zoarium.nets import Layout, build, check_net, stack

N, B, T, VOCABULARY = 3, 4, 6, 11
SMALL = {"model_dim": 8, "n_layers": 2, "n_heads": 2}


def small(**params: object) -> nn.Module:
    return build("gpt2", {**SMALL, **params}, in_shape=(T,), n_outputs=VOCABULARY).double()


def population(module: nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        k: p.detach() + 0.2 * torch.randn(N, *p.shape, generator=draw, dtype=p.dtype)
        for k, p in module.named_parameters()
    }


def tokens(*lead: int, length: int = T) -> Tensor:
    return torch.randint(VOCABULARY, (*lead, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("model_dim", "n_layers", "n_heads", "expected"),
    [(768, 12, 12, 124_439_808), (1024, 24, 16, 354_823_168), (1280, 36, 20, 774_030_080)],
)
def test_gpt2_small_medium_and_large_have_the_published_number_of_parameters(model_dim, n_layers, n_heads, expected):
    params = {"model_dim": model_dim, "n_layers": n_layers, "n_heads": n_heads}
    with torch.device("meta"):
        net = build("gpt2", params, in_shape=(1024,), n_outputs=50_257)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        params = {"model_dim": 768, "n_layers": 12, "n_heads": 12}
        state = build("gpt2", params, in_shape=(1024,), n_outputs=50_257).state_dict()
    assert len(state) == 2 + 12 * 12 + 2
    assert state["wte.weight"].shape == (50_257, 768)
    assert state["wpe.weight"].shape == (1024, 768)
    assert state["h.0.attn.c_attn.weight"].shape == (768, 3 * 768)  # (in, out), unlike nn.Linear
    assert state["h.11.mlp.c_fc.weight"].shape == (768, 3072)
    assert state["h.11.mlp.c_proj.weight"].shape == (3072, 768)
    assert state["ln_f.bias"].shape == (768,)


def restated(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same net from PyTorch's own transformer layers, with copied weights."""
    t = x.shape[1]
    h = state["wte.weight"][x] + state["wpe.weight"][:t]
    theirs = {
        "self_attn.in_proj_weight": "attn.c_attn.weight", "self_attn.in_proj_bias": "attn.c_attn.bias",
        "self_attn.out_proj.weight": "attn.c_proj.weight", "self_attn.out_proj.bias": "attn.c_proj.bias",
        "linear1.weight": "mlp.c_fc.weight", "linear1.bias": "mlp.c_fc.bias",
        "linear2.weight": "mlp.c_proj.weight", "linear2.bias": "mlp.c_proj.bias",
        "norm1.weight": "ln_1.weight", "norm1.bias": "ln_1.bias",
        "norm2.weight": "ln_2.weight", "norm2.bias": "ln_2.bias",
    }  # fmt: skip
    for index in range(2):
        layer = nn.TransformerEncoderLayer(
            8, 2, 32, dropout=0.0, activation=partial(F.gelu, approximate="tanh"), batch_first=True, norm_first=True
        ).double()
        layer.load_state_dict({a: state[f"h.{index}.{b}"].T for a, b in theirs.items()})  # .T leaves vectors alone
        h = layer(h, src_mask=nn.Transformer.generate_square_subsequent_mask(t, dtype=torch.float64))
    return F.layer_norm(h, (8,), state["ln_f.weight"], state["ln_f.bias"]) @ state["wte.weight"].T


@pytest.mark.filterwarnings("ignore:The use of .x.T. on tensors of dimension other than 2")
def test_outputs_are_those_of_pytorchs_own_layers_with_copied_weights():
    net = small()
    state = {k: v[0] for k, v in population(net).items()}
    net.load_state_dict(state)
    x = tokens(B)
    assert net(x).shape == (B, T, VOCABULARY)
    torch.testing.assert_close(net(x), restated(state, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_model", [False, True])
def test_a_stacked_gpt_on_int64_tokens_gives_what_its_models_give_one_by_one(training, per_model):
    net = small().train(training)
    params, x = population(net), tokens(*((N, B) if per_model else (B,)))
    stacked = stack(net, example=tokens(2))
    out = stacked(params, x, per_model=per_model)
    assert stacked.kind == "transformer"
    assert out.shape == (N, B, T, VOCABULARY)
    for i in range(N):
        expected = functional_call(net, {k: v[i] for k, v in params.items()}, (x[i] if per_model else x,))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)


def test_tied_weights_are_one_parameter_whose_stacked_gradient_holds_both_uses():
    net, x = small(), tokens(B)
    names = Layout.of(net).names
    assert [name for name in names if "wte" in name] == ["wte.weight"]
    assert not any("head" in name for name in names)
    params = {k: v.requires_grad_() for k, v in population(net).items()}
    stacked = stack(net)
    (together,) = torch.autograd.grad(stacked(params, x).square().sum(), [params["wte.weight"]])
    own = {k: v[1].detach().requires_grad_() for k, v in params.items()}
    (alone,) = torch.autograd.grad(functional_call(net, own, (x,)).square().sum(), [own["wte.weight"]])
    torch.testing.assert_close(together[1], alone, rtol=1e-8, atol=1e-8)
    unseen = next(token for token in range(VOCABULARY) if token not in x)  # never an input, still an output
    assert (alone[unseen] != 0).any()
    with torch.no_grad():
        rows = stacked.layout.flatten(params)
        assert rows.shape == (N, sum(p.numel() for p in net.parameters()))
        torch.testing.assert_close(stacked(stacked.layout.views(rows), x), stacked(params, x), rtol=0, atol=0)


@pytest.mark.parametrize("changed", range(1, T))
def test_a_later_token_does_not_change_earlier_logits_but_its_own(changed):
    net = stack(small())
    params, x = population(net.module), tokens(B)
    other = x.clone()
    other[:, changed] = (x[:, changed] + 1) % VOCABULARY
    before, after = net(params, x), net(params, other)
    torch.testing.assert_close(before[:, :, :changed], after[:, :, :changed], rtol=0, atol=1e-12)
    assert (before[:, :, changed:] - after[:, :, changed:]).abs().amax((1, 3)).min() > 1e-6


def test_a_shorter_sequence_gives_the_first_logits_of_a_longer_one():
    net = small(context=9)
    x = tokens(B, length=9)
    torch.testing.assert_close(net(x[:, :4]), net(x)[:, :4], rtol=0, atol=1e-12)


def test_stacked_gradients_descend_the_loss_of_every_model():
    net = stack(small())
    params, x = population(net.module), tokens(16)

    def losses(params: dict[str, Tensor]) -> Tensor:
        logits = net(params, x[:, :-1])  # (n, b, t - 1, vocabulary)
        return -logits.log_softmax(-1).gather(-1, x[:, 1:].expand(N, -1, -1).unsqueeze(-1)).mean((1, 2, 3))

    start = losses(params)
    for _ in range(10):
        params = {k: v.detach().requires_grad_() for k, v in params.items()}
        gradients = torch.autograd.grad(losses(params).sum(), list(params.values()))
        params = {k: v - 0.1 * g for (k, v), g in zip(params.items(), gradients, strict=True)}
    assert (losses(params) < start - 0.1).all()


def test_fresh_weights_have_the_published_spread_and_know_nothing():
    net = build("gpt2", {"model_dim": 64, "n_layers": 8}, in_shape=(16,), n_outputs=50)
    assert net.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # √(2 · 8 layers) = 4
    assert (net.h[3].attn.c_attn.bias == 0).all()
    x = torch.randint(50, (8, 16), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert loss.item() == pytest.approx(torch.tensor(50.0).log().item(), abs=0.1)


def test_one_seed_gives_the_same_bits_and_another_seed_other_weights():
    one, again, other = (build("gpt2", SMALL, in_shape=(T,), n_outputs=5, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], again[k]) for k in one)
    drawn = [k for k, v in one.items() if v.dim() == 2]
    assert len(drawn) == 2 + 2 * 4
    assert not any(torch.equal(one[k], other[k]) for k in drawn)


@pytest.mark.parametrize(
    ("shape", "params", "says"),
    [
        ((1, 8, 8), {}, r"'gpt2' needs sequences \(tokens,\).*\(1, 8, 8\); tokenise"),
        ((8,), {"model_dim": 10, "n_heads": 4}, r"n_heads=4 attention heads cannot share model_dim=10.*example 12"),
        ((8,), {"context": 4}, r"context=4 is shorter than the sequences of 8 tokens; make it 8 or more"),
        ((8,), {"n_layers": 0}, "'gpt2': n_layers must be a whole number from 1, found 0"),
        ((8,), {"context": 8.5}, "'gpt2': context must be a whole number from 1, found 8.5"),
    ],
)
def test_what_cannot_be_built_is_named_with_a_way_out(shape, params, says):
    with pytest.raises(NetError, match=says):
        build("gpt2", params, in_shape=shape, n_outputs=5)


def test_inputs_that_are_no_tokens_or_too_long_are_named():
    net = small()
    with pytest.raises(NetError, match=r"token numbers of shape.*found shape \(2, 6\) in float32; tokenise"):
        net(torch.zeros(2, T))
    with pytest.raises(NetError, match=r"found shape \(6,\) in int64"):
        net(tokens())
    with pytest.raises(NetError, match=r"sequences of 7 tokens are longer than context=6"):
        net(tokens(2, length=7))


def test_data_of_one_label_a_sample_are_refused_before_training():
    data = from_arrays(tokens(12).numpy(), [0, 1, 2] * 4)
    with pytest.raises(NetError, match="GPT2"):
        check_net(build("gpt2", SMALL, in_shape=(T,), n_outputs=3), data)
    with pytest.raises(za.ZoariumError, match="GPT2"):
        za.grow("gpt2", epochs=1, data=data, workers=1)
