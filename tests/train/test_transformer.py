"""Transformers whose backward pass is written out train as the plain loop trains them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from zoarium._core.errors import NetError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.nets import build, stack
from zoarium.nets.gpt import GPT2
from zoarium.nets.transformer import transformer_of
from zoarium.nets.vit import VisionTransformer
from zoarium.train import data_key, plan, train_one_plainly, train_program, transformer
from zoarium.train.architecture import describe
from zoarium.train.attention import SIGMOID, gelu, power
from zoarium.train.plan import Program
from zoarium.zoo.config import ModelConfig, Training

VIT = {"patch": 2, "width": 8, "depth": 2, "heads": 2}
GPT = {"model_dim": 8, "n_layers": 2, "n_heads": 2, "context": 7}


def images(count=40, classes=3, task="classification"):
    draw = generator("images")
    x = torch.randn(count + 10, 2, 4, 6, generator=draw)
    y = torch.arange(count + 10) % classes if task == "classification" else x.flatten(1)[:, :classes].sin()
    return Dataset("images", Split(x[:count], y[:count]), Split(x[count:], y[count:]), task, classes)


def sentences(count=24, length=6, vocabulary=9):
    text = torch.randint(vocabulary, (count + 8, length + 1), generator=generator("sentences"))
    train, test = (Split(part[:, :-1].clone(), part[:, 1:].clone()) for part in (text[:count], text[count:]))
    return Dataset("sentences", train, test, "language", vocabulary)


TASKS = {"vit": (VIT, images()), "gpt2": (GPT, sentences())}


def configs_of(net, batches=(4, 8), seeds=(0, 1), params=(), **training):
    settings = {"epochs": 1, "clip_norm": 1.0, **training}
    return [
        ModelConfig(
            net=net, net_params={**TASKS[net][0], **dict(params)}, data=net, seed=s,
            training=Training(batch_size=b, **settings),
        )
        for b, s in itertools.product(batches, seeds)
    ]  # fmt: skip


def trained(configs, dataset, dtype=torch.float64, factory=None):
    """All models in one program: {row: state dict}, and the result."""
    rows = tuple(sorted(range(len(configs)), key=lambda i: configs[i].training.batch_size))
    program = Program(rows, "one", "transformer", "", 0.0, 0)
    result = train_program(program, configs, {data_key(c): dataset for c in configs}, factory=factory, dtype=dtype)
    (part,) = result.parts
    last = part.checkpoints[-1].params
    return {row: {name: t[k] for name, t in last.items()} for k, row in enumerate(part.rows)}, result


def assert_plain(configs, dataset, dtype=torch.float64, tolerance=1e-10):
    states, _ = trained(configs, dataset, dtype)
    for row, config in enumerate(configs):
        wanted, _ = train_one_plainly(config, dataset, dtype=dtype)
        assert list(states[row]) == list(wanted)
        for name, tensor in wanted.items():
            difference = (states[row][name] - tensor).abs().max().item()
            assert difference <= tolerance * max(1.0, tensor.abs().max().item()), (row, name, difference)


@pytest.mark.parametrize("net", TASKS)
def test_the_house_transformers_take_the_written_out_route(net):
    one = describe(configs_of(net)[0], TASKS[net][1])
    assert (one.route, one.batch_statistics) == ("transformer", False)
    assert "written out" in one.reason


OPTIMISERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None},
    {"optimizer": "sgd", "nesterov": True, "clip_norm": 0.1},
    {"optimizer": "adam", "lr": 0.01, "eps": 1e-4},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "eps": 1e-4},
]


@pytest.mark.parametrize("settings", OPTIMISERS, ids=lambda s: "-".join(str(v) for v in s.values()))
@pytest.mark.parametrize("net", TASKS)
def test_every_optimiser_agrees_with_torch_across_batches_and_seeds(net, settings):
    assert_plain(configs_of(net, (4, 8, 12), **settings), TASKS[net][1])


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 0.2},
        {"drop_last": True, "epochs": 2},
        {"steps": 9},
        {"schedule": "cosine", "epochs": 2},
    ],
    ids=lambda s: next(iter(s)),
)
@pytest.mark.parametrize("net", TASKS)
def test_smoothing_incomplete_batches_and_a_number_of_steps_agree(net, settings):
    batches = (5,) if "steps" in settings else (4, 10)
    assert_plain(configs_of(net, batches, **settings), TASKS[net][1])


@pytest.mark.parametrize("net", TASKS)
def test_models_of_one_program_may_differ_in_every_hyperparameter(net):
    values = [
        {"lr": 0.01, "clip_norm": None, "label_smoothing": 0.0},
        {"lr": 0.05, "clip_norm": 0.1, "label_smoothing": 0.2, "weight_decay": 0.01},
        {"lr": 0.0, "schedule": "cosine"},
    ]
    configs = [c for b, value in zip((4, 8, 8), values, strict=True) for c in configs_of(net, (b,), (3,), **value)]
    assert_plain(configs, TASKS[net][1])


@pytest.mark.parametrize(
    ("net", "params"),
    [
        ("vit", {"depth": 1}),
        ("vit", {"heads": 1, "mlp_ratio": 1.5}),
        ("vit", {"heads": 8}),
        ("gpt2", {"n_layers": 1, "n_heads": 1}),
        ("gpt2", {"context": 6, "n_heads": 4}),
    ],
)
def test_every_shape_agrees(net, params):
    assert_plain(configs_of(net, (6,), params=params), TASKS[net][1])


def test_regression_agrees():
    assert_plain(configs_of("vit"), images(task="regression"))


@pytest.mark.parametrize("budget", [1, 30_000, 200_000])
@pytest.mark.parametrize("net", TASKS)
def test_work_cut_into_tiles_agrees_whatever_their_size(net, budget, monkeypatch):
    monkeypatch.setattr(transformer, "TRANSFORMER_TILE", budget)
    assert_plain(configs_of(net, (8,), (0, 1, 2)), TASKS[net][1])


@pytest.mark.parametrize("net", TASKS)
def test_float32_agrees_to_one_part_in_ten_thousand_after_ten_steps(net):
    assert_plain(configs_of(net, (4,), steps=10), TASKS[net][1], torch.float32, 1e-4)


@pytest.mark.parametrize("net", TASKS)
def test_a_model_grown_alone_is_the_model_grown_in_company(net):
    configs, dataset = configs_of(net, (4, 8), (0, 1, 2)), TASKS[net][1]
    states, _ = trained(configs, dataset)
    for row in (0, 4):
        (alone,) = trained(configs[row : row + 1], dataset)[0].values()
        for name, tensor in alone.items():
            torch.testing.assert_close(states[row][name], tensor, rtol=0, atol=1e-10)


@pytest.mark.parametrize("net", TASKS)
def test_the_same_program_gives_the_same_bits(net):
    configs = configs_of(net, (4, 8))
    first, again = (trained(configs, TASKS[net][1], torch.float32)[0] for _ in range(2))
    assert all(torch.equal(first[row][name], again[row][name]) for row in first for name in first[row])


@pytest.mark.parametrize("net", TASKS)
def test_history_is_that_of_the_plain_loop(net):
    configs, dataset = configs_of(net, (4, 8), (0,), epochs=2, label_smoothing=0.1), TASKS[net][1]
    _, result = trained(configs, dataset)
    for row, config in enumerate(configs):
        _, wanted = train_one_plainly(config, dataset, dtype=torch.float64)
        mine = result.history["row"] == row
        for name, values in wanted.items():
            assert result.history[name][mine].tolist() == pytest.approx(values, abs=1e-9), name


def test_augmented_images_are_those_of_the_plain_loop():
    assert_plain(configs_of("vit", augment="crop_flip"), images())


@pytest.mark.parametrize("net", TASKS)
def test_sharp_attention_neither_overflows_nor_vanishes(net):
    """Scores of some hundreds, where 2^score is no number, take the careful way."""
    dataset = TASKS[net][1]

    def sharp(in_shape, n_outputs):
        module = build(net, TASKS[net][0], in_shape=in_shape, n_outputs=n_outputs)
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if "in_proj_weight" in name or "c_attn.weight" in name:
                    weight.mul_(300 if net == "gpt2" else 20)
        return module

    config = ModelConfig(net="mine", data=net, training=Training(batch_size=8, epochs=1, lr=1e-3, clip_norm=1.0))
    states, _ = trained([config], dataset, torch.float64, sharp)
    wanted, _ = train_one_plainly(config, dataset, sharp, dtype=torch.float64)
    for name, tensor in wanted.items():
        torch.testing.assert_close(states[0][name], tensor, rtol=1e-8, atol=1e-8)


def test_powers_beyond_the_range_are_scaled_by_row_and_masked():
    scores = torch.tensor([[[500.0, 900.0], [498.0, 499.0]]])
    mask = torch.ones(2, 2).tril()
    power(scores, mask)
    assert torch.equal(scores[0, 0] / scores[0, 0].sum(), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(scores[0, 1] / scores[0, 1].sum(), torch.tensor([1 / 3, 2 / 3]))
    small = torch.tensor([[[-2.0, 3.0], [0.0, 1.0]]])
    power(small)
    assert torch.equal(small, torch.tensor([[[0.25, 8.0], [1.0, 2.0]]]))


def test_gelu_by_a_sigmoid_is_torchs_tanh_approximation_and_its_derivative():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64).requires_grad_()
    wanted = F.gelu(x, approximate="tanh")
    (slope,) = torch.autograd.grad(wanted.sum(), x)
    y = (SIGMOID * x).detach()
    out, spare, gate = (torch.empty_like(y) for _ in range(3))
    gelu(y, "tanh", out, spare, gate, keep=True)
    torch.testing.assert_close(out / SIGMOID, wanted.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y, slope, rtol=0, atol=1e-12)


def test_a_model_that_diverges_leaves_the_others_alone():
    configs = configs_of("vit", (8,), (0, 1), clip_norm=None)
    wild = configs[1].model_copy(update={"training": Training(batch_size=8, epochs=1, lr=1e30, clip_norm=None)})
    (alone,) = trained(configs[:1], images(), torch.float32)[0].values()
    states, result = trained([configs[0], wild], images(), torch.float32)
    assert list(result.diverged) == [1]
    for name, tensor in alone.items():
        torch.testing.assert_close(states[0][name], tensor, rtol=1e-4, atol=1e-5)


class Scaled(VisionTransformer):
    """A user's subclass with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def odd(kind):
    net = build("vit", VIT, in_shape=(2, 4, 6), n_outputs=3)
    assert isinstance(net, VisionTransformer)
    block = net.encoder.layers[0]
    if kind == "a subclass":
        return Scaled((2, 4, 6), 3, 2, 8, 2, 2, 32)
    if kind == "a hook":
        block.mlp.register_forward_hook(lambda module, args, out: 2 * out)
    elif kind == "another activation":
        block.mlp[1] = nn.GELU(approximate="tanh")
    elif kind == "another epsilon":
        block.ln_1.eps = 1e-3
    elif kind == "a layer more":
        net.heads.append(nn.Linear(3, 3))
    elif kind == "tied weights":
        net.encoder.layers[1].ln_1.weight = block.ln_1.weight
    elif kind == "a parametrised weight":
        register_parametrization(block.mlp[0], "weight", nn.Softplus())
    elif kind == "a forward of its own":
        block.forward = lambda x: x
    elif kind == "dropout":
        block.mlp.append(nn.Dropout(0.5))
    elif kind == "other heads":
        block.self_attention.heads = 4
    elif kind == "a block less":
        net.encoder.layers[1] = nn.Identity()
    elif kind == "no bias":
        net.heads[0] = nn.Linear(8, 3, bias=False)
    elif kind == "a frozen weight":
        net.class_token.requires_grad_(False)
    return net


ODD = [
    "a subclass", "a hook", "another activation", "another epsilon", "a layer more", "tied weights",
    "a parametrised weight", "a forward of its own", "dropout", "other heads", "no bias", "a frozen weight",
    "a block less",
]  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_a_changed_transformer_is_not_taken_for_the_house_one(kind):
    assert transformer_of(build("vit", VIT, in_shape=(2, 4, 6), n_outputs=3)) is not None
    assert transformer_of(odd(kind)) is None
    assert stack(odd(kind)).kind == "vmap"


def test_a_gpt_with_an_untied_or_exchanged_layer_is_not_taken_for_the_house_one():
    net = build("gpt2", GPT, in_shape=(6,), n_outputs=9)
    assert isinstance(net, GPT2)
    assert transformer_of(net) is not None
    net.h[0].mlp.act = nn.GELU()
    assert transformer_of(net) is None
    assert transformer_of(nn.Sequential(build("gpt2", GPT, in_shape=(6,), n_outputs=9))) is None


def test_a_plan_joins_batch_sizes_of_transformers_within_its_memory():
    configs = configs_of("gpt2", (4, 8, 16), range(4))
    data = {data_key(c): sentences() for c in configs}
    (program,) = plan(configs, data)
    assert program.route == "transformer"
    assert "micro-steps of 4" in program.reason
    budget = 64 << 20
    parts = plan(configs_of("gpt2", (4,), range(60)), data, memory=budget)
    assert len(parts) > 1
    assert all(part.bytes <= budget for part in parts)


@pytest.mark.parametrize("net", TASKS)
def test_features_of_the_stacked_form_are_what_hooks_see(net):
    module = build(net, TASKS[net][0], in_shape=TASKS[net][1].in_shape, n_outputs=TASKS[net][1].n_outputs).double()
    x = TASKS[net][1].train.x[:5]
    x = x.double() if x.is_floating_point() else x
    draw = torch.Generator().manual_seed(0)
    params = {
        k: p.detach() + 0.2 * torch.randn(3, *p.shape, generator=draw, dtype=p.dtype)
        for k, p in module.named_parameters()
    }
    net_ = stack(module)
    layers = [layer for layer in net_.layers if layer != "wpe"]  # read as a table, never run
    got = net_.features(params, x, [*layers, "logits"])
    for i in range(3):
        seen, hooks = {}, []
        for layer in layers:
            take = lambda m, a, out, k=layer, seen=seen: seen.__setitem__(k, out)  # noqa: E731
            hooks.append(module.get_submodule(layer).register_forward_hook(take))
        seen["logits"] = torch.func.functional_call(module, {k: p[i] for k, p in params.items()}, (x,))
        for hook in hooks:
            hook.remove()
        for layer, value in got.items():
            torch.testing.assert_close(value[i], seen[layer], rtol=0, atol=1e-10)


@pytest.mark.parametrize("net", TASKS)
def test_hessian_vector_products_of_the_stacked_form_agree_with_one_model_at_a_time(net):
    dataset = TASKS[net][1]
    module = build(net, TASKS[net][0], in_shape=dataset.in_shape, n_outputs=dataset.n_outputs).double()
    x = dataset.train.x[:3]
    x = x.double() if x.is_floating_point() else x
    params = {k: torch.stack([p.detach(), p.detach().sin()]) for k, p in module.named_parameters()}

    def product(loss, leaves):
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        return torch.autograd.grad(grads, list(leaves.values()), [torch.ones_like(g).cumsum(-1) for g in grads])

    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    got = product(stack(module)(leaves, x).sin().sum(), leaves)
    for i in range(2):
        own = {k: p[i].clone().requires_grad_() for k, p in params.items()}
        wanted = product(torch.func.functional_call(module, own, (x,)).sin().sum(), own)
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine[i], theirs, rtol=1e-8, atol=1e-8)


def test_a_layer_the_decoder_never_runs_is_named():
    module = build("gpt2", GPT, in_shape=(6,), n_outputs=9)
    params = {k: p.detach().unsqueeze(0) for k, p in module.named_parameters()}
    with pytest.raises(NetError, match="'wpe' is not run in the forward pass"):
        stack(module).features(params, sentences().train.x[:2], ["wpe"])
