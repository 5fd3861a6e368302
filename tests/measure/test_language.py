"""Measures of language models: a sample is a sequence, a prediction a token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.shift import shifted_task
from zoarium.evaluate.effects import EFFECTS
from zoarium.measure.barrier import linear_barrier
from zoarium.measure.cka import cka
from zoarium.measure.connectivity import mode_connectivity
from zoarium.measure.disagreement import disagreement
from zoarium.measure.hessian import hessian_top_eigenvalue, hessian_trace
from zoarium.measure.performance import performance
from zoarium.measure.registry import MEASURES
from zoarium.nets import build
from zoarium.zoo.cohort import Cohort


@pytest.fixture(scope="module")
def text():
    draw = generator("text")
    tokens = torch.randint(0, 5, (26, 7), generator=draw)
    train, test = (Split(part[:, :-1].clone(), part[:, 1:].clone()) for part in (tokens[:12], tokens[12:]))
    return Dataset("text", train, test, "language", 5)


@pytest.fixture(scope="module")
def models():
    params = {"model_dim": 4, "n_layers": 1, "n_heads": 2}
    modules = [build("gpt2", params, in_shape=(6,), n_outputs=5, seed=s) for s in range(3)]
    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                p.mul_(4)  # fresh nets are all alike
    return Cohort.from_modules(modules).to(dtype=torch.float64)


def token_losses(cohort, split):
    out = cohort(split.x)
    return torch.stack([F.cross_entropy(o.flatten(0, 1), split.y.flatten(), reduction="none") for o in out])


def test_loss_and_accuracy_are_means_over_tokens(models, text):
    got = performance(models, text)
    assert got["test_loss"].value == pytest.approx(token_losses(models, text.test).mean(1).numpy())
    hits = (models(text.test.x).argmax(-1) == text.test.y).double()
    assert got["test_accuracy"].value == pytest.approx(hits.mean((1, 2)).numpy())


def test_standard_errors_are_those_over_sequences(models, text):
    got = performance(models, text)
    each = token_losses(models, text.test).view(3, *text.test.y.shape).mean(2)
    assert got["test_loss"].stderr == pytest.approx(each.std(1).numpy() / len(text.test) ** 0.5)


def test_the_trace_is_that_of_the_whole_hessian_of_the_mean_token_loss(models, text):
    one = models.select([0])

    def loss(flat):
        out = one.net(one.layout.views(flat[None]), text.train.x)[0]
        return F.cross_entropy(out.flatten(0, 1), text.train.y.flatten())

    dense = torch.autograd.functional.hessian(loss, one.flat[0])
    got = hessian_trace(one, text, samples=None, method="dense")
    assert got.value[0] == pytest.approx(dense.trace().item(), rel=1e-8)
    top = hessian_top_eigenvalue(one, text, samples=None, tol=1e-6)
    assert top["hessian_top_eigenvalue"].value[0] == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-4)


def test_the_gauss_newton_matrix_is_positive_and_sums_over_tokens(models, text):
    one = models.select([0])
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: one.net(one.layout.views(flat[None]), text.train.x)[0].flatten(0, 1), one.flat[0]
    )  # (tokens, c, p)
    p = one(text.train.x)[0].flatten(0, 1).softmax(-1)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    wanted = torch.einsum("bcp,bcd,bdp->", jacobian, curvature, jacobian) / len(p)
    got = hessian_trace(one, text, samples=None, method="dense", curvature="ggn")
    assert got.value[0] == pytest.approx(wanted.item(), rel=1e-8)


def test_curves_and_lines_have_ends_at_the_models_losses(models, text):
    pairs = torch.tensor([[0, 1]])
    curve = mode_connectivity(models, pairs, text, epochs=2)
    assert np.isfinite(curve["mode_connectivity"].value).all()
    line = linear_barrier(models, pairs, text, points=3)
    assert line["linear_barrier"].value[0] >= 0
    assert "aligned" in next(iter(line)) or line["aligned_barrier"].reason[0]  # no symmetry is known, and it says so


def test_a_model_agrees_with_itself(models, text):
    pairs = torch.tensor([[0, 0], [0, 1]])
    same, other = disagreement([models], pairs, text)["disagreement"].value
    assert same == 0 < other <= 1
    assert cka([models], pairs, text)["cka"].value[0] == pytest.approx(1)


def test_an_ensemble_of_one_function_gains_nothing_and_of_several_never_loses(models, text):
    measure = MEASURES["ensembling"]
    clones = models.select([0, 0, 0])
    clones = Cohort(("a", "b", "c"), clones.params, clones.module, clones.buffers)
    assert measure(clones, [[0, 1, 2]], text)["ensembling_loss_gain"].value[0] == pytest.approx(0, abs=1e-9)
    assert measure(models, [[0, 1, 2]], text)["ensembling_loss_gain"].value[0] > 0


@pytest.mark.parametrize("name", [name for name in EFFECTS if name != "epoch_averaging"])
def test_every_effect_has_a_value_or_says_why_not(models, text, name):
    settings = {"epochs": 1, "batch_size": 4} if name == "fine_tuning" else {}
    for estimates in MEASURES[name](models, [[0, 1, 2]], text, **settings).values():
        assert np.isfinite(estimates.value[0]) or estimates.reason[0]


def test_renamed_tokens_are_a_cipher_of_the_same_text(text):
    moved = shifted_task(text, "auto")
    assert moved.name == "text+rename_tokens"
    code = {int(a): int(b) for a, b in zip(text.train.x.flatten(), moved.train.x.flatten(), strict=True)}
    assert sorted(code) == sorted(code.values())
    assert all(a != b for a, b in code.items())
    assert [code[int(a)] for a in text.test.y.flatten()] == moved.test.y.flatten().tolist()


def test_noise_replaces_target_tokens_and_leaves_the_test_split_clean(text):
    noisy = text.variant(label_noise=0.5)
    share = (noisy.train.y != text.train.y).double().mean().item()
    assert 0.3 < share < 0.7
    assert torch.equal(noisy.test.y, text.test.y)
    assert torch.equal(noisy.train.x, text.train.x)
