from __future__ import annotations

import weakref

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from zoarium.measure.spectra import eigenvalues, fit_power_law, singular_values
from zoarium.measure.weight_matrices import weight_matrices, why_left_out
from zoarium.measure.weight_norms import weight_norm, weight_report
from zoarium.testing import check_measure, small_cohort
from zoarium.zoo.cohort import Cohort


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sinusoids(length: int, width: int, halves: bool) -> torch.Tensor:
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    parts = [angle.sin(), angle.cos()]
    return torch.cat(parts, 1) if halves else torch.stack(parts, -1).flatten(1)


def fourier_basis(size: int) -> torch.Tensor:
    angle = 2 * torch.pi * torch.arange(size // 2 + 1)[:, None] * torch.arange(size) / size
    return torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(size)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


LEFT_OUT = [
    ("bn.running_mean", gaussian(5), "batch-norm statistic"),
    ("bn.num_batches_tracked", torch.tensor(3), "batch-norm statistic"),
    ("ids", torch.arange(12).reshape(3, 4), "int64 numbers"),
    ("mask", torch.ones(4, 4, dtype=torch.bool).tril(), "bool numbers"),
    ("wave", torch.ones(4, 4, dtype=torch.complex64), "complex64 numbers"),
    ("none", torch.zeros(0, 4), "empty"),
    ("stft.forward_basis_buffer", gaussian(6, 1, 8), "computed table"),
    ("rotary.inv_freq", gaussian(4), "computed table"),
    ("w", torch.full((3, 3), float("nan")), "not finite"),
    ("w", torch.tensor([[1.0, 2.0], [3.0, float("inf")]]), "not finite"),
    ("logit_scale", torch.tensor(2.6), "single number"),
    ("norm.weight", torch.ones(8), "all ones"),
    ("norm.weight", gaussian(8), "one axis"),
    ("w", torch.zeros(4, 4), "constant: all 0"),
    ("w", torch.full((4, 4), 0.5), "constant: all 0.5"),
    ("scaler.mean", gaussian(1, 8), "single row"),
    ("position", gaussian(1, 4, 8), "single row"),
    ("gain", gaussian(8, 1, 1), "single row"),
    ("eye", torch.eye(6), "only 0 and 1"),
    ("eye", -2 * torch.eye(6), "only 0 and -2"),
    ("code", nn.functional.one_hot(torch.tensor([0, 2, 2, 1])).float(), "only 0 and 1"),
    ("causal", torch.ones(1, 1, 5, 5).squeeze(0).squeeze(0).tril(), "only 0 and 1"),
    ("scaler", torch.diag(torch.tensor([1.0, 2.0, 3.0])), "diagonal"),
    ("rows", gaussian(1, 8).expand(70, 8).clone(), "every row"),
    ("columns", gaussian(8, 1).expand(8, 70).clone(), "every column"),
    ("table", sinusoids(100, 16, halves=False), "sines"),
    ("table", sinusoids(100, 16, halves=True), "sines"),
    ("table", sinusoids(100, 16, halves=True).bfloat16(), "sines"),
    ("stft_conv.weight", fourier_basis(32)[:, None], "sines"),
    ("eight", (torch.eye(6) + torch.eye(6).roll(1, 0)).to(torch.float8_e4m3fn), "only 0 and 1"),
]
KEPT = [
    ("linear", gaussian(6, 5)),
    ("conv", gaussian(6, 3, 2, 2)),
    ("half", gaussian(6, 5).half()),
    ("brain", gaussian(6, 5).bfloat16()),
    ("eight", gaussian(6, 5).to(torch.float8_e4m3fn)),
    ("signs", gaussian(6, 6).sign()),  # a net of binary weights
    ("sparse", gaussian(20, 20) * (gaussian(20, 20, seed=1) > 1)),
    ("near an identity", torch.eye(6) + 1e-3 * gaussian(6, 6)),
    ("ones but for a number", torch.ones(100, 4).index_fill(0, torch.tensor(99), 2.0) + gaussian(100, 4) * 1e-3),
    ("a late difference", torch.cat([gaussian(1, 4).expand(80, 4), gaussian(20, 4)])),
]


@pytest.mark.parametrize(("name", "tensor", "reason"), LEFT_OUT, ids=[f"{n}-{r}" for n, _, r in LEFT_OUT])
def test_what_is_no_learnt_matrix_is_left_out_with_its_reason(name, tensor, reason):
    before = tensor.clone()
    assert reason in why_left_out(name, tensor)
    assert torch.equal(as_bytes(tensor), as_bytes(before))


@pytest.mark.parametrize(("name", "tensor"), KEPT, ids=[n for n, _ in KEPT])
def test_learnt_matrices_are_kept(name, tensor):
    assert why_left_out(name, tensor) == ""


@pytest.mark.parametrize(("name", "tensor", "reason"), LEFT_OUT, ids=[f"{n}-{r}" for n, _, r in LEFT_OUT])
def test_blocks_of_any_size_give_the_same_reasons(monkeypatch, name, tensor, reason):
    monkeypatch.setattr("zoarium.measure.weight_matrices.ROWS", 2)
    monkeypatch.setattr("zoarium.measure.weight_matrices.COLUMNS", 3)
    if "sines" not in reason:  # these look at the first rows of a table that fit into a block
        monkeypatch.setattr("zoarium.measure.weight_matrices.BLOCK", 7)
    assert reason in why_left_out(name, tensor)


@pytest.mark.parametrize(("name", "tensor"), KEPT, ids=[n for n, _ in KEPT])
def test_blocks_of_any_size_keep_learnt_matrices(monkeypatch, name, tensor):
    monkeypatch.setattr("zoarium.measure.weight_matrices.ROWS", 2)
    monkeypatch.setattr("zoarium.measure.weight_matrices.COLUMNS", 3)
    monkeypatch.setattr("zoarium.measure.weight_matrices.BLOCK", 7)
    assert why_left_out(name, tensor) == ""


def test_kept_matrices_are_reshaped_views_and_the_rest_is_accounted_for():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    state = net.state_dict()
    found = weight_matrices(state.items())
    assert {k: tuple(v.shape) for k, v in found.kept.items()} == {"0.weight": (8, 27), "3.weight": (4, 8)}
    assert found.kept["0.weight"].data_ptr() == state["0.weight"].data_ptr()
    assert set(found.kept) | set(found.left_out) == set(state) and not set(found.kept) & set(found.left_out)
    assert str(found).startswith("2 matrices kept, 7 tensors left out")


def test_the_report_has_a_row_a_tensor_with_the_numbers_of_each():
    conv, square = gaussian(24, 4, 3, 3), gaussian(30, 30, seed=1).bfloat16()
    report = weight_report([("conv", conv), ("bias", gaussian(24)), ("square", square), ("few", gaussian(4, 9))])
    assert report["name"].to_list() == ["conv", "bias", "square", "few"]
    assert report["shape"].to_list() == [[24, 4, 3, 3], [24], [30, 30], [4, 9]]
    assert report["dtype"].to_list() == ["float32", "float32", "bfloat16", "float32"]
    assert report["kept"].to_list() == [True, False, True, True]
    row = report.row(0, named=True)
    matrix = conv.flatten(1).double().numpy()
    sigma = np.linalg.svd(matrix, compute_uv=False)
    assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(matrix))
    assert row["spectral_norm"] == pytest.approx(np.linalg.norm(matrix, 2))
    assert row["stable_rank"] == pytest.approx((np.linalg.norm(matrix) / np.linalg.norm(matrix, 2)) ** 2)
    p = sigma / sigma.sum()
    assert row["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    fit = fit_power_law(eigenvalues(singular_values(conv), (24, 36)))
    assert (row["alpha"], row["alpha_stderr"], row["n_tail"]) == pytest.approx((fit.alpha, fit.stderr, fit.n_tail))
    assert row["alpha_low"] < row["alpha"] < row["alpha_high"]
    assert report.row(1, named=True)["frobenius_norm"] is None
    few = report.row(3, named=True)
    assert few["alpha"] is None and few["alpha_reason"] == "4 eigenvalues in the tail, fewer than 10"
    assert few["stable_rank"] > 1


def test_the_report_of_nothing_has_the_same_columns():
    assert weight_report([]).schema == weight_report([("w", gaussian(3, 4))]).schema
    assert weight_report([]).schema["alpha"] == pl.Float64


def test_the_rounding_of_low_rank_16_bit_weights_is_not_taken_for_eigenvalues():
    ones = torch.ones(64, 1, dtype=torch.bfloat16)
    left = torch.cat([ones, torch.cat([ones[:32], -ones[32:]])], 1)  # rank two, exact in 16 bits
    right = torch.randint(-3, 4, (2, 48), generator=torch.Generator().manual_seed(0)).bfloat16()
    row = weight_report([("w", left @ right)]).row(0, named=True)
    assert row["kept"] and row["alpha_reason"] == "2 eigenvalues in the tail, fewer than 10"


def test_the_report_holds_one_tensor_at_a_time():
    alive: list[weakref.ref] = []
    most = 0

    def tensors():
        nonlocal most
        for i in range(5):
            tensor = gaussian(12, 12, seed=i)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"w{i}", tensor
            del tensor

    assert len(weight_report(tensors())) == 5
    assert most == 1


def test_norms_of_a_cohort_are_those_of_each_model_alone():
    modules = [nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 3)) for _ in range(3)]
    for i, module in enumerate(modules):
        for p in module.parameters():
            p.data = gaussian(*p.shape, seed=i)
    found = weight_norm(Cohort.from_modules(modules))
    for row, module in enumerate(modules):
        matrices = [module[0].weight.detach().flatten(1).double().numpy(), module[3].weight.detach().double().numpy()]
        flat = torch.cat([p.detach().double().flatten() for p in module.parameters()])
        two = [np.linalg.norm(m, 2) for m in matrices]
        ranks = [(np.linalg.norm(m) / s) ** 2 for m, s in zip(matrices, two, strict=True)]
        assert found["weight_norm"].value[row] == pytest.approx(float(flat.norm()))
        assert found["spectral_norm"].value[row] == pytest.approx(max(two))
        assert found["stable_rank"].value[row] == pytest.approx(np.mean(ranks))
    assert not any(e.stderr.any() for e in found.values())


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_norms_follow_the_scale_of_the_weights_and_the_stable_rank_does_not(scale):
    cohort = small_cohort(n=2)
    one = weight_norm(cohort)
    other = weight_norm(cohort.with_params({k: v * scale for k, v in cohort.params.items()}))
    assert other["weight_norm"].value == pytest.approx(one["weight_norm"].value * scale)
    assert other["spectral_norm"].value == pytest.approx(one["spectral_norm"].value * scale)
    assert other["stable_rank"].value == pytest.approx(one["stable_rank"].value)


def test_a_model_of_zeros_has_norm_zero_and_says_that_it_has_no_matrix():
    cohort = small_cohort(n=2)
    params = {k: v.clone() for k, v in cohort.params.items()}
    for v in params.values():
        v[0] = 0
    found = weight_norm(cohort.with_params(params))
    assert found["weight_norm"].value[0] == 0 and found["weight_norm"].reason[0] == ""
    assert np.isnan(found["stable_rank"].value[0]) and found["stable_rank"].reason[0] == "no weight matrix"
    assert found["stable_rank"].reason[1] == "" and found["stable_rank"].value[1] > 1


def test_chunks_of_a_cohort_give_the_same_norms(monkeypatch):
    cohort = small_cohort(n=4)
    whole = weight_norm(cohort)
    monkeypatch.setattr("zoarium.measure.spectra.CHUNK", 1)
    for quantity, estimates in weight_norm(cohort).items():
        assert np.array_equal(estimates.value, whole[quantity].value)


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_the_laws_hold(net):
    if net == "mlp":
        check_measure("weight_norm", cohort=small_cohort(width=12))
    else:
        modules = [nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 3)) for _ in "abcd"]
        for i, module in enumerate(modules):
            for p in module.parameters():
                p.data = gaussian(*p.shape, seed=i).double()
        check_measure("weight_norm", cohort=Cohort.from_modules(modules))
