"""A model in any company trains as it does alone in a plain PyTorch loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from zoarium._core.seeds import generator
from zoarium.data import load
from zoarium.data.dataset import Dataset, Split
from zoarium.train import data_key, plan, train_one_plainly, train_program
from zoarium.train.architecture import describe
from zoarium.train.plan import Program
from zoarium.zoo.config import ModelConfig, Training


def blobs(count=50, shape=(6,), classes=3, seed=0):
    draw = generator("blobs", seed)
    y = torch.arange(count + 20) % classes
    centres = torch.randn(classes, *shape, generator=draw)
    x = centres[y] + 0.5 * torch.randn(count + 20, *shape, generator=draw)
    return Dataset("blobs", Split(x[:count], y[:count]), Split(x[count:], y[count:]), "classification", classes)


def waves(count=50, outputs=2):
    draw = generator("waves")
    x = torch.randn(count + 20, 5, generator=draw)
    y = torch.sin(x[:, :outputs])
    return Dataset("waves", Split(x[:count], y[:count]), Split(x[count:], y[count:]), "regression", outputs)


def mlp_configs(widths=(4,), batches=(16,), seeds=(0,), net=None, **training):
    settings = {"epochs": 1, "clip_norm": 1.0, **training}
    return [
        ModelConfig(
            net="mlp",
            net_params={"width": w, **(net or {})},
            seed=s,
            data="blobs",
            training=Training(**{"batch_size": b, **settings}),
        )
        for w, b, s in itertools.product(widths, batches, seeds)
    ]


def together(configs, dataset, factory=None, dtype=torch.float64, **options):
    """All models in as few programs as their architectures allow: {row: state dict}."""
    data = {data_key(c): dataset for c in configs}
    programs = plan(configs, data, factory=factory, dtype=dtype)
    return collect(programs, configs, data, factory, dtype, **options)


def as_one(configs, dataset, factory=None, dtype=torch.float64, **options):
    """All models in one program, whatever a plan would say."""
    rows = sorted(range(len(configs)), key=lambda i: configs[i].training.batch_size)
    data = {data_key(c): dataset for c in configs}
    route = describe(configs[0], dataset, factory).route
    return collect([Program(tuple(rows), "one", route, "", 0.0, 0)], configs, data, factory, dtype, **options)


def collect(programs, configs, data, factory, dtype, **options):
    states, results = {}, []
    for program in programs:
        result = train_program(program, configs, data, factory=factory, dtype=dtype, **options)
        results.append(result)
        for part in result.parts:
            last = part.checkpoints[-1]
            for k, row in enumerate(part.rows):
                states[row] = {name: t[k] for name, t in {**last.params, **last.buffers}.items()}
    return states, results


def assert_equal_to_plain(configs, dataset, states, factory=None, dtype=torch.float64, tolerance=1e-10):
    for row, config in enumerate(configs):
        wanted, _ = train_one_plainly(config, dataset, factory, dtype=dtype)
        for name, tensor in wanted.items():
            difference = (states[row][name].double() - tensor.double()).abs().max().item()
            assert difference <= tolerance * max(1.0, tensor.double().abs().max().item()), (row, name, difference)


OPTIMISERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None},
    {"optimizer": "sgd", "nesterov": True},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


@pytest.mark.parametrize("settings", OPTIMISERS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_every_optimiser_agrees_with_torch_across_widths_batches_and_seeds(settings):
    configs = mlp_configs((2, 5), (4, 8, 16), (0, 1), **settings)
    states, _ = as_one(configs, blobs())
    assert_equal_to_plain(configs, blobs(), states)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "step"])
def test_every_schedule_agrees_with_torch(schedule):
    configs = mlp_configs((4,), (8, 50), (0, 1), schedule=schedule, epochs=2)
    states, _ = as_one(configs, blobs())
    assert_equal_to_plain(configs, blobs(), states)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_models_of_one_program_may_differ_in_every_hyperparameter(optimizer):
    values = [
        {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.5, "clip_norm": None, "beta1": 0.8, "eps": 1e-6},
        {"lr": 0.05, "weight_decay": 0.01, "momentum": 0.9, "clip_norm": 0.1, "label_smoothing": 0.2, "beta2": 0.99},
        {"lr": 0.0, "momentum": 0.0, "schedule": "cosine"},
        {"lr": 0.02, "schedule": "step", "step_milestones": (0.3,), "step_factor": 0.5},
    ]
    configs = [
        config
        for batch, value in zip((4, 8, 8, 12), values, strict=True)
        for config in mlp_configs((3,), (batch,), (7,), optimizer=optimizer, **value)
    ]
    states, _ = as_one(configs, blobs())
    assert_equal_to_plain(configs, blobs(), states)


ACTIVATIONS = ["relu", "tanh", "gelu", "silu", "leaky_relu", "elu", "sigmoid", "softplus", "identity"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_agrees_and_narrow_nets_may_be_padded(activation):
    configs = mlp_configs((2, 6), (8, 16), (0,), net={"activation": activation, "depth": 2})
    states, _ = together(configs, blobs())
    assert_equal_to_plain(configs, blobs(), states)
    assert all(states[row]["fc1.weight"].shape[0] == c.net_params["width"] for row, c in enumerate(configs))


@pytest.mark.parametrize("batches", [(7,), (6, 9, 15), (50,), (1, 3)])
def test_incomplete_last_batches_and_batches_that_do_not_nest_agree(batches):
    configs = mlp_configs((3,), batches, (0,))
    states, _ = as_one(configs, blobs(50))
    assert_equal_to_plain(configs, blobs(50), states)


def test_drop_last_leaves_out_the_incomplete_batch_of_each_model():
    configs = mlp_configs((3,), (4, 6, 8), (0,), drop_last=True, epochs=2)
    states, _ = as_one(configs, blobs(50))
    assert_equal_to_plain(configs, blobs(50), states)


def test_equal_steps_mode_stops_in_the_middle_of_an_epoch():
    configs = mlp_configs((3,), (8, 16), (0, 1), steps=9)
    states, results = together(configs, blobs(50))
    assert_equal_to_plain(configs, blobs(50), states)
    assert all(r.history["step"].max() == 9 for r in results)


def test_regression_agrees():
    configs = mlp_configs((3, 5), (8, 16), (0,))
    states, results = as_one(configs, waves())
    assert_equal_to_plain(configs, waves(), states)
    assert torch.tensor(results[0].history["test_accuracy"]).isnan().all()


def test_regression_on_a_target_without_a_second_axis_is_not_broadcast():
    data = waves(outputs=1)
    flat = Dataset("flat", Split(data.train.x, data.train.y[:, 0]), Split(data.test.x, data.test.y[:, 0]), data.task, 1)
    configs = mlp_configs((3,), (8,), (0,))
    assert_equal_to_plain(configs, data, as_one(configs, flat)[0])


def test_float32_agrees_to_one_part_in_ten_thousand_after_ten_steps():
    configs = mlp_configs((4, 16), (5, 10), (0, 1), steps=None)
    configs = [c.model_copy(update={"training": c.training.model_copy(update={"epochs": 1})}) for c in configs]
    states, _ = as_one(configs, blobs(50), dtype=torch.float32)
    assert_equal_to_plain(configs, blobs(50), states, dtype=torch.float32, tolerance=1e-4)


def norm_net(in_shape, n_outputs, width=4):
    return nn.Sequential(
        nn.Conv2d(in_shape[0], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * in_shape[1] * in_shape[2], n_outputs),
    )  # fmt: skip


class Residual(nn.Module):
    """A user's module that is no chain."""

    def __init__(self, in_shape, n_outputs, width=4):
        super().__init__()
        self.first, self.last = nn.Linear(in_shape[0], width), nn.Linear(width, n_outputs)

    def forward(self, x):
        h = self.first(x)
        return self.last(h + torch.tanh(h))


class Branching(Residual):
    """A module whose path depends on its data: vmap cannot take it."""

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.tanh(h) if h.sum().item() > 0 else h)


def user_configs(batches, seeds=(0, 1), **training):
    return [
        ModelConfig(
            net="mine", data="blobs", seed=s, training=Training(batch_size=b, epochs=1, clip_norm=1.0, **training)
        )
        for b in batches
        for s in seeds
    ]


def test_batch_norm_statistics_agree_buffers_included():
    data = blobs(40, (1, 4, 4))
    configs = user_configs((8, 16))
    states, results = together(configs, data, norm_net)
    assert_equal_to_plain(configs, data, states, norm_net)
    assert len(results) == 2  # batch statistics keep batch sizes apart


@pytest.mark.parametrize("factory", [Residual, Branching])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_users_module_agrees_on_whichever_route(factory, optimizer):
    configs = user_configs((8, 16), optimizer=optimizer, label_smoothing=0.1)
    states, _ = together(configs, blobs(), factory)
    assert_equal_to_plain(configs, blobs(), states, factory)


def test_a_module_vmap_cannot_take_runs_in_a_loop_and_says_why():
    configs = user_configs((8,))
    (program,) = plan(configs, {data_key(configs[0]): blobs()}, factory=Branching)
    assert program.route == "loop"
    assert "vmap cannot take it" in program.reason


def test_history_is_that_of_the_plain_loop():
    configs = mlp_configs((2, 5), (8, 25), (0,), epochs=3)
    _, (result,) = as_one(configs, blobs())
    for row, config in enumerate(configs):
        _, wanted = train_one_plainly(config, blobs(), dtype=torch.float64)
        mine = result.history["row"] == row
        for name, values in wanted.items():
            assert result.history[name][mine].tolist() == pytest.approx(values, abs=1e-9), name


@pytest.mark.parametrize("batch_norm", [False, True])
def test_convolutional_nets_run_as_one_grouped_net_and_agree(batch_norm):
    data = blobs(40, (1, 6, 6))
    configs = [
        ModelConfig(
            net="cnn",
            net_params={"width": 3, "batch_norm": batch_norm},
            data="blobs",
            seed=s,
            training=Training(batch_size=b, epochs=1, clip_norm=1.0),
        )
        for b in (8, 16)
        for s in (0, 1)
    ]
    assert describe(configs[0], data).route == "conv"
    states, _ = together(configs, data)
    assert_equal_to_plain(configs, data, states)


def conv_configs(net, settings, batches, seeds=(0, 1), **training):
    return [
        ModelConfig(
            net=net, net_params=settings, data="blobs", seed=s,
            training=Training(batch_size=b, **{"epochs": 1, "clip_norm": 1.0, **training}),
        )
        for b in batches
        for s in seeds
    ]  # fmt: skip


@pytest.mark.parametrize(
    "training",
    [
        {"label_smoothing": 0.2},
        {"drop_last": True, "epochs": 2},
        {"clip_norm": None, "optimizer": "adam", "lr": 0.01},
        {"steps": 7},
    ],
    ids=str,
)
def test_convolutional_nets_of_several_batch_sizes_share_micro_steps_and_agree(training):
    data = blobs(50, (2, 8, 8))
    configs = conv_configs("cnn", {"width": 2, "depth": 2}, (6, 9, 15) if "steps" not in training else (6,), **training)
    states, results = as_one(configs, data)
    assert_equal_to_plain(configs, data, states)
    assert len(results) == 1


RESIDUAL = {"resnet8": {"width": 2}, "resnet18": {"width": 2, "stem": "cifar", "zero_init_residual": True}}


@pytest.mark.parametrize("net", RESIDUAL)
def test_residual_nets_agree_running_statistics_included(net):
    data = blobs(42, (1, 8, 8))
    configs = conv_configs(net, RESIDUAL[net], (8, 16), label_smoothing=0.1)
    assert describe(configs[0], data).route == "conv"
    states, results = together(configs, data)
    assert_equal_to_plain(configs, data, states)
    assert len(results) == 2  # batch statistics keep batch sizes apart


@pytest.mark.parametrize(("net", "settings"), [("cnn", {"width": 4}), ("resnet8", {"width": 4})])
def test_convolutions_in_float32_agree_to_one_part_in_ten_thousand_after_ten_steps(net, settings):
    data = blobs(160, (1, 8, 8))  # in batches of 8 one relu of one net flips, and plain float32 is 4e-4 from float64
    configs = conv_configs(net, settings, (16,), lr=0.1)
    states, _ = as_one(configs, data, dtype=torch.float32)
    assert_equal_to_plain(configs, data, states, dtype=torch.float32, tolerance=1e-4)


def test_the_history_of_a_convolutional_net_is_that_of_the_plain_loop():
    data = blobs(40, (1, 8, 8))
    configs = conv_configs("cnn", {"width": 3, "batch_norm": True}, (8,), epochs=2)
    _, (result,) = as_one(configs, data)
    for row, config in enumerate(configs):
        _, wanted = train_one_plainly(config, data, dtype=torch.float64)
        mine = result.history["row"] == row
        for name, values in wanted.items():
            assert result.history[name][mine].tolist() == pytest.approx(values, abs=1e-9), name


def test_a_plan_says_how_many_models_run_side_by_side_and_why():
    data = blobs(40, (1, 8, 8))
    small, wide = (conv_configs("cnn", {"width": w}, (8,)) for w in (2, 256))
    (one,) = plan(small, {data_key(small[0]): data})
    assert (one.route, "all 2 models" in one.reason) == ("conv", True)
    (one,) = plan(wide, {data_key(wide[0]): data})
    assert "one model at a time through dense kernels" in one.reason


@pytest.mark.parametrize("kind", ["flip", "crop_flip", "crop_flip_rotate"])
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_augmented_images_are_those_of_the_plain_loop_whatever_shares_the_program(net, kind):
    data = blobs(40, (1, 8, 8))
    configs = [
        ModelConfig(
            net=net,
            net_params={"width": 3},
            data="blobs",
            seed=s,
            training=Training(batch_size=b, epochs=2, augment=kind),
        )
        for b in (8, 16)
        for s in (0, 1)
    ]
    states, _ = as_one(configs, data)
    assert_equal_to_plain(configs, data, states)
    plain, _ = train_one_plainly(
        configs[0].model_copy(update={"training": Training(batch_size=8, epochs=2)}), data, dtype=torch.float64
    )
    assert any(not torch.equal(states[0][name], tensor) for name, tensor in plain.items())


def test_batch_norm_sees_micro_batches_where_asked_to():
    data = blobs(40, (1, 4, 4))
    configs = user_configs((16,), micro_batch=8)
    states, _ = together(configs, data, norm_net)
    assert_equal_to_plain(configs, data, states, norm_net)
    whole, _ = train_one_plainly(user_configs((16,))[0], data, norm_net, dtype=torch.float64)
    assert not torch.allclose(states[0]["1.running_mean"], whole["1.running_mean"])


def test_micro_batches_that_do_not_fill_a_batch_are_refused():
    with pytest.raises(ValueError, match="micro_batch 5 does not divide batch_size 16"):
        Training(batch_size=16, micro_batch=5)


def sentences(count=24, length=6, vocabulary=7):
    draw = generator("sentences")
    text = torch.randint(0, vocabulary, (count + 8, length + 1), generator=draw)
    train, test = (Split(part[:, :-1].clone(), part[:, 1:].clone()) for part in (text[:count], text[count:]))
    return Dataset("sentences", train, test, "language", vocabulary)


def gpt_configs(batches=(4, 8), seeds=(0, 1), **training):
    return [
        ModelConfig(
            net="gpt2",
            net_params={"model_dim": 8, "n_layers": 1, "n_heads": 2},
            data="sentences",
            seed=s,
            training=Training(batch_size=b, **{"epochs": 1, "optimizer": "adamw", "lr": 0.01, **training}),
        )
        for b in batches
        for s in seeds
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_language_models_agree(smoothing):
    configs = gpt_configs(label_smoothing=smoothing)
    states, _ = together(configs, sentences())
    assert_equal_to_plain(configs, sentences(), states)


def test_the_history_of_a_language_model_is_loss_and_accuracy_a_token():
    (config,) = gpt_configs((4,), (0,))
    _, (result,) = together([config], sentences())
    _, wanted = train_one_plainly(config, sentences(), dtype=torch.float64)
    for name, values in wanted.items():
        assert result.history[name].tolist() == pytest.approx(values, abs=1e-9), name


def test_physics_informed_nets_agree():
    data = load("convection_pinn", beta=3.0, n_initial=8, n_boundary=4, n_residual=20)
    configs = [
        ModelConfig(
            net="pinn_mlp",
            net_params={"width": 5, "depth": 2, "periodic": periodic},
            data="convection_pinn",
            seed=s,
            training=Training(batch_size=b, epochs=2, optimizer="adam"),
        )
        for periodic in ("soft", "hard")
        for b in (8, 32)
        for s in (0, 1)
    ]
    states, _ = together(configs, data)
    assert_equal_to_plain(configs, data, states)
