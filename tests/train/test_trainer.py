"""Divergence, resuming, checkpoints and fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zoarium._core.errors import GridError, StoreError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.nets import build
from zoarium.train import Interrupted, Trained, data_key, fine_tune, plan, train_one_plainly, train_program
from zoarium.train.plan import Program
from zoarium.zoo.cohort import Cohort
from zoarium.zoo.config import ModelConfig, Training


def task(count=40, shape=(6,), name="blobs"):
    draw = generator("blobs")
    y = torch.arange(count + 20) % 3
    x = torch.randn(3, *shape, generator=draw)[y] + 0.5 * torch.randn(count + 20, *shape, generator=draw)
    return Dataset(name, Split(x[:count], y[:count]), Split(x[count:], y[count:]), "classification", 3)


def config(width=4, seed=0, net="mlp", **training):
    settings = {"epochs": 4, "batch_size": 8, **training}
    params = {} if net == "mine" else {"width": width}
    return ModelConfig(net=net, net_params=params, data="blobs", seed=seed, training=Training(**settings))


def train(configs, dataset=None, factory=None, route="chain", **options):
    dataset = dataset or task()
    data = {data_key(c): dataset for c in configs}
    program = Program(tuple(range(len(configs))), "test", route, "", 0.0, 0)
    return train_program(program, configs, data, factory=factory, **options)


def final(result, row):
    part = next(p for p in result.parts if row in p.rows)
    last = part.checkpoints[-1]
    return {name: t[part.rows.index(row)] for name, t in {**last.params, **last.buffers}.items()}


WILD = {"lr": 1e30, "clip_norm": None, "schedule": "constant"}


def test_a_diverged_model_is_marked_frozen_and_does_not_disturb_the_others():
    calm = [config(2, 0), config(4, 1)]
    result = train([calm[0], config(3, 0, **WILD), calm[1]], dtype=torch.float64)
    assert isinstance(result, Trained)
    assert list(result.diverged) == [1]
    assert all(t.isfinite().all() for t in final(result, 1).values())
    for row, one in ((0, calm[0]), (2, calm[1])):
        wanted, _ = train_one_plainly(one, task(), dtype=torch.float64)
        for name, tensor in wanted.items():
            assert torch.allclose(final(result, row)[name], tensor, atol=1e-10)


def test_the_history_of_a_diverged_model_ends_with_nan_where_it_diverged():
    result = train([config(), config(seed=1, **WILD)])
    mine = result.history["row"] == 1
    epochs, losses = result.history["epoch"][mine], result.history["train_loss"][mine]
    assert epochs[-1] == result.diverged[1]
    assert np.isnan(losses[-1])
    assert np.isfinite(losses[:-1]).all()
    assert (result.history["row"] == 0).sum() == 5


def test_divergence_is_found_on_the_autograd_route_too():
    result = train([config(net="mine"), config(net="mine", seed=1, **WILD)], factory=Dropping, route="vmap")
    assert list(result.diverged) == [1]
    assert all(t.isfinite().all() for row in (0, 1) for t in final(result, row).values())


class Dropping(nn.Module):
    """Batch statistics and dropout: everything that makes resuming hard."""

    def __init__(self, in_shape, n_outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_shape[0], 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(5, n_outputs)

    def forward(self, x):
        return self.head(self.body(x)) + 0


CASES = {
    "sgd": ([config(2), config(4, 1, batch_size=16), config(3, **WILD, batch_size=16)], None, "chain"),
    "adam": ([config(2, optimizer="adam"), config(4, 1, optimizer="adam", batch_size=16)], None, "chain"),
    "dropout": ([config(net="mine"), config(net="mine", seed=1)], Dropping, "vmap"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_gives_the_same_bits_as_an_uninterrupted_one(case, stop_after):
    configs, factory, route = CASES[case]
    whole = train(configs, None, factory, route, checkpoints="every")
    saved, calls = {}, []

    def stopping():
        calls.append(None)
        return len(calls) == stop_after

    first = train(configs, None, factory, route, checkpoints="every", stopping=stopping,
                  save_state=lambda state, epoch: saved.update(state))  # fmt: skip
    assert isinstance(first, Interrupted)
    assert first.epoch == stop_after
    resumed = train(configs, None, factory, route, checkpoints="every", state=saved)
    assert resumed.diverged == whole.diverged
    for mine, wanted in zip(resumed.parts, whole.parts, strict=True):
        assert [c.epoch for c in mine.checkpoints] == [c.epoch for c in wanted.checkpoints] == [0, 1, 2, 3, 4]
        for a, b in zip(mine.checkpoints, wanted.checkpoints, strict=True):
            for name, tensor in {**b.params, **b.buffers}.items():
                assert torch.equal({**a.params, **a.buffers}[name], tensor), (a.epoch, name)
    for name in ("row", "epoch", "step", "lr", "train_loss", "test_accuracy"):
        assert np.array_equal(resumed.history[name], whole.history[name], equal_nan=True)


def test_a_state_of_another_program_is_refused_in_one_sentence():
    with pytest.raises(StoreError, match=r"saved state of program test.*delete"):
        train([config()], state={"epoch": torch.tensor(1), "seconds": torch.tensor(0.0)})


def test_dropout_differs_between_models_and_repeats_between_runs():
    configs = [config(net="mine"), config(net="mine")]
    first, second = (train(configs, None, Dropping, "vmap") for _ in range(2))
    assert torch.equal(final(first, 0)["head.weight"], final(second, 0)["head.weight"])
    assert not torch.equal(final(first, 0)["head.weight"], final(first, 1)["head.weight"])


@pytest.mark.parametrize(
    ("wanted", "epochs"), [("last", [4]), ("every", [0, 1, 2, 3, 4]), (3, [0, 3, 4]), ([0, 2, 9], [0, 2, 4])]
)
def test_checkpoints_are_kept_at_the_epochs_asked_for(wanted, epochs):
    (part,) = train([config()], checkpoints=wanted).parts
    assert [c.epoch for c in part.checkpoints] == epochs
    assert part.checkpoints[-1].step.tolist() == [20]


def test_a_sink_receives_checkpoints_and_nothing_is_kept_in_memory():
    got = []
    result = train([config(2), config(3)], checkpoints=2, on_checkpoint=lambda k, c: got.append((k, c.epoch, c.rows)))
    assert got == [(k, e, (k,)) for e in (0, 2, 4) for k in (0, 1)]
    assert all(not part.checkpoints for part in result.parts)


@pytest.mark.parametrize("wrong", ["first", 0])
def test_wrong_checkpoints_or_history_are_refused(wrong):
    for option in ("checkpoints", "history"):
        with pytest.raises(GridError, match=option):
            train([config()], **{option: wrong})


@pytest.mark.parametrize(("history", "epochs"), [("every", [0, 1, 2, 3, 4]), ("last", [4]), (3, [0, 3, 4])])
def test_history_has_a_line_for_each_epoch_asked_for(history, epochs):
    assert train([config()], history=history).history["epoch"].tolist() == epochs


def test_zero_epochs_keeps_the_initial_weights():
    result = train([config(epochs=0)])
    module = build("mlp", {"width": 4}, in_shape=(6,), n_outputs=3, seed=0)
    assert torch.equal(final(result, 0)["fc1.weight"], module.state_dict()["fc1.weight"])
    assert result.history["epoch"].tolist() == [0]


def test_models_with_different_label_noise_share_a_program_and_agree_with_the_plain_loop():
    configs = [config(seed=s).model_copy(update={"label_noise": noise}) for noise in (0.0, 0.4) for s in (0, 1)]
    data = {data_key(c): task().variant(label_noise=c.label_noise) for c in configs}
    (program,) = plan(configs, data)
    result = train_program(program, configs, data, dtype=torch.float64)
    for row, one in enumerate(configs):
        wanted, history = train_one_plainly(one, data[data_key(one)], dtype=torch.float64)
        assert torch.allclose(final(result, row)["fc1.weight"], wanted["fc1.weight"], atol=1e-10)
        mine = result.history["row"] == row
        assert result.history["train_loss"][mine].tolist() == pytest.approx(history["train_loss"], abs=1e-9)


def test_accuracy_breaks_ties_as_argmax_does():
    class Constant(nn.Module):
        def __init__(self, in_shape, n_outputs):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(n_outputs))

        def forward(self, x):
            return x[:, :1] * 0 + self.scale

    result = train([config(net="mine", lr=0.0)], None, Constant, "vmap", history="every")
    data = task()
    assert result.history["test_accuracy"][0] == pytest.approx((data.test.y == 0).double().mean().item())


def test_fine_tuning_goes_on_from_the_given_weights_with_each_models_own_data_order():
    modules = [build("mlp", {"width": 4}, in_shape=(6,), n_outputs=3, seed=s) for s in (3, 4)]
    cohort = Cohort.from_modules(modules, ["a", "b"]).to(torch.float64)
    before = cohort.flat.clone()
    training = config().training
    tuned = fine_tune(cohort, task(), training, seeds=[3, 4])
    assert torch.equal(cohort.flat, before)
    assert tuned.ids == ("a", "b")
    for row, seed in enumerate((3, 4)):  # the plain loop starts from the same weights, for they come from the same seed
        wanted, _ = train_one_plainly(config(seed=seed), task(), dtype=torch.float64)
        assert torch.allclose(tuned.params["fc1.weight"][row], wanted["fc1.weight"], atol=1e-10)


def test_fine_tuning_with_a_wrong_number_of_seeds_is_refused():
    cohort = Cohort.from_modules([build("mlp", {}, in_shape=(6,), n_outputs=3)])
    with pytest.raises(GridError, match="2 seeds for 1 models"):
        fine_tune(cohort, task(), config().training, seeds=[0, 1])


def test_progress_counts_model_epochs():
    seen = []
    train([config(), config(seed=1)], on_epoch=seen.append)
    assert [(r.epoch, r.model_epochs, r.models) for r in seen] == [(e, 2 * e, 2) for e in (1, 2, 3, 4)]
