"""Similarity of models by weights: closed forms, the test of independence, and what is read how often."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import kstest
from torch import nn

import zoarium as za
from zoarium._core.errors import MeasureError, StoreError
from zoarium.measure.similarity import weight_similarity, weight_similarity_result
from zoarium.measure.similarity.independence import UnitSample
from zoarium.measure.similarity.names import match_names
from zoarium.measure.similarity.spectra import spectral_quantiles


def gaussian(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(seed: int, width: int = 24) -> dict[str, torch.Tensor]:
    return {
        "conv.weight": gaussian(width, 3, 2, 2, seed=seed),
        "conv.bias": gaussian(width, seed=seed + 1),
        "fc.weight": gaussian(10, width, seed=seed + 2, scale=0.1),
        "norm.weight": torch.ones(width),
        "steps": torch.tensor(7),
    }


def slow(a: dict, b: dict) -> dict[str, float]:
    """The pair's quantities from the flat matrices, as the module's first lines define them."""
    names = ["conv.weight", "fc.weight"]
    x, y = (np.concatenate([s[k].flatten().double().numpy() for k in names]) for s in (a, b))
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    spread = sum(float(a[k].double().norm() * b[k].double().norm()) ** 2 / a[k].numel() for k in names)
    return {
        "l2_distance": np.linalg.norm(x - y) / math.sqrt((x @ x + y @ y) / 2),
        "cosine_distance": 1 - x @ y / norm,
        "cosine_stderr": math.sqrt(spread) / norm,
        "sign_agreement": np.mean(np.sign(x) == np.sign(y)),
        "parameters": len(x),
    }


def test_the_quantities_are_those_of_the_flat_matrices():
    models = {"a": state(0), "b": state(10), "c": state(20)}
    table = weight_similarity(models)
    assert table.select("a", "b").rows() == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in table.iter_rows(named=True):
        for name, value in slow(models[row["a"]], models[row["b"]]).items():
            assert row[name] == pytest.approx(value, rel=1e-12), name
        whole = sum(v.numel() for v in models["a"].values())
        assert row["share_a"] == row["share_b"] == pytest.approx((24 * 12 + 240) / whole)
        assert row["matched"] == 2 and row["identical"] == 0 and row["reason"] == ""


def test_blocks_of_columns_give_the_same_table(monkeypatch):
    models = [state(seed) for seed in (0, 10, 20)]
    whole = weight_similarity(models)
    monkeypatch.setattr("zoarium.measure.similarity.gram.BUFFER", 64)
    monkeypatch.setattr("zoarium.measure.similarity.gram.COLUMNS", 5)
    monkeypatch.setattr("zoarium.measure.similarity.independence.CHUNK", 1)
    parts = weight_similarity(models)
    for name in whole.columns:
        if whole[name].dtype == pl.Float64:
            rel = 1e-4 if name in ("z", "p") else 1e-12  # the samples of the test are float32
            assert parts[name].to_numpy() == pytest.approx(whole[name].to_numpy(), rel=rel), name
        else:
            assert parts[name].to_list() == whole[name].to_list()


def test_a_row_of_each_tensor_adds_up_to_the_pair():
    models = {"a": state(0), "b": state(10)}
    found = weight_similarity_result(models, per_tensor=True)
    rows = {row["tensor"]: row for row in found.tensors.iter_rows(named=True)}
    assert set(rows) == {"conv.weight", "fc.weight"} and rows["conv.weight"]["shape"] == [24, 3, 2, 2]
    x, y = (models[k]["fc.weight"].flatten().double().numpy() for k in "ab")
    assert rows["fc.weight"]["cosine_distance"] == pytest.approx(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    zs = [row["z"] for row in rows.values()]
    assert found.pairs["z"][0] == pytest.approx(sum(zs) / math.sqrt(2))
    assert weight_similarity_result(models).tensors.is_empty()


def test_copies_are_identical_and_at_distance_zero_whatever_type_writes_them():
    one = {"w": gaussian(30, 20).bfloat16()}
    table = weight_similarity({"a": one, "b": {"w": one["w"].double()}, "c": {"w": -one["w"].float()}})
    same, opposite, _ = table.iter_rows(named=True)
    assert (same["identical"], same["l2_distance"], same["cosine_distance"], same["sign_agreement"]) == (1, 0, 0, 1)
    assert same["related"] and same["p"] < 1e-6
    assert opposite["cosine_distance"] == pytest.approx(2) and opposite["l2_distance"] == pytest.approx(2)
    assert opposite["identical"] == 0 and not opposite["related"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_every_type_of_weights_is_compared(dtype):
    one = gaussian(20, 12)
    row = weight_similarity([{"w": one}, {"w": one.to(dtype)}], spectra=True).row(0, named=True)
    assert row["l2_distance"] == pytest.approx(float((one - one.to(dtype).float()).norm() / one.norm()), rel=1e-2)
    assert row["related"] and row["spectral_distance"] < 0.05 and row["identical"] == (dtype == torch.float64)


def test_empty_vast_and_constant_tensors_do_not_disturb_the_rest():
    one = {
        "none": torch.zeros(0, 4),
        "flat": torch.ones(8, 8),
        "nan": torch.full((8, 8), math.nan),
        "w": gaussian(9, 9),
    }
    two = {**one, "w": gaussian(9, 9, seed=1), "vast": 1e300 * gaussian(8, 8).double()}
    assert weight_similarity([one, two])["matched"].to_list() == [1]
    found = weight_similarity_result([{"w": two["vast"]}, {"w": two["vast"] * 2}])
    assert found.pairs["matched"].to_list() == [0]
    assert set(found.left_out["reason"]) == {"its squares are beyond float64"}


@pytest.mark.parametrize("step", [1e-3, 1e-6])
def test_a_small_step_is_seen_through_the_rounding_of_large_norms(step):
    base = gaussian(64, 64, scale=100).double()
    moved = base + step * 100 * gaussian(64, 64, seed=1).double()
    row = weight_similarity([{"w": base}, {"w": moved}]).row(0, named=True)
    assert row["l2_distance"] == pytest.approx(step, rel=0.05)
    assert row["related"]


# --- the test of independence


def permuted(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    order = torch.randperm(len(matrix), generator=torch.Generator().manual_seed(seed))
    return matrix[order]


def test_z_is_standard_normal_over_orders_of_the_units_even_where_weights_share_means_and_scales():
    base = gaussian(40, 30).abs() + torch.linspace(0, 3, 30)  # columns of their own means, all positive
    draws = torch.stack([permuted(base + 0.3 * gaussian(40, 30, seed=1), seed) for seed in range(300)])
    sample = UnitSample("w", (40, 30), 301)
    for n, tensor in enumerate([base, *draws]):
        sample.take(n, tensor)
    from zoarium.measure.similarity.independence import _z

    z = _z(sample.taken.flatten(2))[0, 1:]
    assert abs(z.mean()) < 0.2 and 0.85 < z.std() < 1.15
    assert kstest(z, "norm").pvalue > 0.01
    cosines = [float(nn.functional.cosine_similarity(base.flatten(), d.flatten(), 0)) for d in draws]
    assert min(cosines) > 0.5  # a cosine alone would call all of them copies


@pytest.mark.parametrize("shape", [(12, 30, 9), (3, 9, 40)])
def test_both_ways_to_the_norms_of_products_agree(monkeypatch, shape):
    from zoarium.measure.similarity import independence

    x = gaussian(*shape)
    wanted = torch.tensor([[float((a @ b.T).square().sum()) for b in x] for a in x])
    for way in (independence._squares_by_grams, independence._squares_by_pairs):
        torch.testing.assert_close(way(x), wanted, rtol=1e-5, atol=1e-4)
        with monkeypatch.context() as patch:
            patch.setattr(independence, "CHUNK", 7)
            torch.testing.assert_close(way(x), wanted, rtol=1e-5, atol=1e-4)


def train(seed: int, x: torch.Tensor, y: torch.Tensor, start: dict | None = None, steps: int = 150) -> dict:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    if start:
        net.load_state_dict(start)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=order)
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {k: v.detach() for k, v in net.state_dict().items()}


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def test_nets_trained_on_the_same_data_from_other_starts_are_independent_and_children_of_one_are_related(digits):
    runs = {f"run {seed}": train(seed, *digits) for seed in range(12)}
    table = weight_similarity(runs)
    assert not table["related"].any()
    z = table["z"].to_numpy()
    assert abs(z).max() < 4 and z.std() < 1.3
    child = train(99, *digits, start=runs["run 0"], steps=40)
    found = weight_similarity({"parent": runs["run 0"], "child": child, "stranger": runs["run 1"]})
    assert found["related"].to_list() == [True, False, False]
    assert found["z"][0] > 8


def test_nets_of_one_start_and_other_orders_of_data_are_related(digits):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    start = {k: v.detach().clone() for k, v in net.state_dict().items()}
    table = weight_similarity([train(seed, *digits, start=start) for seed in (1, 2)])
    assert table["related"].to_list() == [True]


def test_a_matrix_without_units_enough_has_no_verdict():
    row = weight_similarity([{"w": gaussian(4, 5)}, {"w": gaussian(4, 5, seed=1)}]).row(0, named=True)
    assert row["z"] is None and row["p"] is None and row["related"] is None and row["cosine_distance"] is not None


def test_the_level_holds_over_all_pairs():
    models = [{"w": gaussian(20, 20, seed=s)} for s in range(3)]
    loose = weight_similarity(models, level=0.9999)
    assert loose["related"].to_list() == [p < 0.9999 / 3 for p in loose["p"]]


# --- names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "module."),
        ("module.", ""),
        ("model.", "module."),
        ("bert.", ""),
        ("model.layers.", "transformer.h."),
        ("_model.", "If_0_then_branch__Inline_0__"),
    ],
)
def test_models_whose_names_differ_by_a_prefix_are_compared_in_full(one, other):
    names = [f"{n}.{kind}.weight" for n in range(4) for kind in ("q", "k")]
    a = {one + name: gaussian(12, 12, seed=n) for n, name in enumerate(names)}
    b = {other + name: a[one + name] + 0.01 for name in names} | {"head.weight": gaussian(3, 12)}
    row = weight_similarity([a, b]).row(0, named=True)
    assert row["matched"] == 8 and row["l2_distance"] < 0.05


def test_each_part_of_a_model_finds_its_own_prefix():
    a = {f"small.{k}.weight": (8, 4 + k) for k in range(3)} | {f"large.{k}.weight": (16, 4 + k) for k in range(3)}
    b = {name.replace("small.", "then__").replace("large.", "else__"): shape for name, shape in a.items()}
    shared, renamed = match_names([a, b])
    assert list(shared[1].values()) == list(a)
    assert set(renamed[1].split(", ")) == {"then__ -> small.", "else__ -> large."}


@pytest.mark.parametrize(
    "b",
    [
        {"conv2.weight": (8, 4)},  # no more in common than a last word
        {"b.1.fc.weight": (8, 4)},  # another layer
        {"encoder.fc.bias": (8,)},  # no matrix
    ],
)
def test_names_that_agree_by_chance_are_not_matched(b):
    shared, renamed = match_names([{"a.0.fc.weight": (8, 4), "fc.bias": (8,)}, b])
    assert shared[1] == {name: name for name in b} and renamed[1] == ""


def test_equal_names_of_other_shapes_are_not_compared_and_say_so():
    row = weight_similarity([{"w": gaussian(8, 4)}, {"w": gaussian(8, 5)}]).row(0, named=True)
    assert row["matched"] == 0 and row["cosine_distance"] is None and row["related"] is None
    assert row["reason"] == "no learnt matrix of one name and shape in both"


# --- what is left out


def test_what_is_left_out_is_told_with_its_reason_and_the_share_of_the_rest():
    a, b = state(0), state(10)
    b["fc.weight"] = torch.zeros(10, 24)
    b["extra.weight"] = gaussian(5, 5)
    found = weight_similarity_result({"a": a, "b": b})
    told = {(m, t): r for m, t, _, r in found.left_out.rows()}
    assert told["b", "fc.weight"] == "constant: all 0"
    assert told["b", "extra.weight"] == "no other model has a tensor of this name and shape"
    assert told["a", "norm.weight"] == "normalisation gain, all ones"
    assert ("a", "fc.weight") not in told and ("a", "conv.weight") not in told
    models = {row["model"]: row for row in found.models.iter_rows(named=True)}
    assert models["a"]["kept_parameters"] == 24 * 12
    assert models["a"]["share"] == pytest.approx(24 * 12 / sum(v.numel() for v in a.values()))
    assert str(found).startswith("2 models, 1 pairs: 1 have matrices in common")


# --- spectra


def test_the_spectral_distance_of_a_permuted_rotated_rescaled_copy_is_zero_under_other_names():
    a = {"one": gaussian(24, 16), "two": gaussian(16, 10, seed=1)}
    rotation = torch.linalg.qr(gaussian(24, 24, seed=2).double())[0]
    b = {"x": permuted(a["two"], 3) * 7, "y": rotation @ a["one"].double(), "bias": gaussian(9)}
    row = weight_similarity([a, b], spectra=True).row(0, named=True)
    assert row["spectral_distance"] == pytest.approx(0, abs=1e-6) and row["spectral_matched"] == 2
    assert row["matched"] == 0


def test_the_spectral_distance_is_the_wasserstein_distance_of_the_best_pairing():
    flat, steep = torch.diag_embed(torch.ones(8)), torch.diag_embed(2.0 ** -torch.arange(8.0))
    mix = torch.linalg.qr(gaussian(8, 8))[0]
    a, b = {"p": flat @ mix, "q": steep @ mix}, {"r": steep @ mix}
    row = weight_similarity([a, b, {"s": flat @ mix}], spectra=True)
    expected = math.sqrt(np.square(spectral_quantiles(flat) - spectral_quantiles(steep)).mean())
    assert row["spectral_distance"].to_list() == pytest.approx([0, 0, expected], abs=1e-6)


def test_models_of_other_widths_have_a_spectral_distance():
    found = weight_similarity([state(0, 24), state(1, 40)], spectra=True)
    assert found["spectral_distance"][0] > 0.01 and found["matched"][0] == 0


# --- sources


def write(folder, seeds=(0, 10)):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        save_file(state(seed), folder / f"m{seed}.safetensors")
    return folder


def test_a_folder_stands_for_the_models_below_it_named_by_what_tells_them_apart(tmp_path):
    write(tmp_path / "x")
    write(tmp_path / "y", (0,))
    hub = write(tmp_path / "z", ())
    save_file(state(3), hub / "model.safetensors")
    save_file(state(3), hub / "extra.safetensors")
    found = weight_similarity_result(tmp_path)
    assert found.models["model"].to_list() == [
        "x/m0.safetensors",
        "x/m10.safetensors",
        "y/m0.safetensors",
        f"{tmp_path.name}/z",
    ]
    assert found.pairs.filter(a="x/m0.safetensors", b="y/m0.safetensors")["identical"].to_list() == [1.0]


def test_links_to_folders_are_not_followed_and_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    write(tmp_path / "x")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    assert len(weight_similarity(tmp_path)) == 1

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(StoreError, match=r"cannot list .*Permission denied; give folders you may read"):
        weight_similarity(tmp_path)


def test_paths_models_modules_and_state_dicts_are_compared_with_one_another(tmp_path):
    path = write(tmp_path / "x", (0,)) / "m0.safetensors"
    module = nn.Module()
    module.fc = nn.Linear(24, 10)
    models = [str(path), za.read_model(path), module, state(0)]
    found = weight_similarity_result(models)
    assert found.models["model"].to_list() == ["x/m0.safetensors", "m0.safetensors", "model 3", "model 4"]
    assert found.pairs["identical"].to_list()[0] == 1.0 and found.pairs["matched"].to_list()[1] == 1


def test_models_of_one_name_get_numbers():
    class Named(Counted):
        name = "net"

    found = weight_similarity_result([Named({"w": gaussian(9, 9, seed=s)}) for s in range(3)])
    assert found.models["model"].to_list() == ["net", "net (2)", "net (3)"]


def test_a_zoo_is_compared_model_by_model(small_zoo):
    table = weight_similarity(small_zoo)
    n = len(small_zoo)
    assert len(table) == n * (n - 1) // 2 and set(table["a"]) | set(table["b"]) == set(small_zoo.ids)


@pytest.mark.parametrize(
    ("models", "match"),
    [
        ([{"w": torch.ones(3, 3)}], "takes two models to compare, found 1"),
        ({"w": torch.ones(3, 3)}, "one state dict is one model"),
        (3, "found int"),
        ([1, 2], "model 1 is int, which holds no named tensors"),
        ([{}, {}], "model 1 is dict, which holds no named tensors"),
    ],
)
def test_what_cannot_be_compared_is_said(models, match):
    with pytest.raises(MeasureError, match=match):
        weight_similarity(models)


def test_settings_out_of_range_and_missing_files_are_named(tmp_path):
    models = [state(0), state(1)]
    with pytest.raises(MeasureError, match="level must lie between 0 and 1, found 2"):
        weight_similarity(models, level=2)
    with pytest.raises(MeasureError, match="units must be at least 8, found 3"):
        weight_similarity(models, units=3)
    with pytest.raises(MeasureError, match="holds no files of weights"):
        weight_similarity(tmp_path)
    with pytest.raises(StoreError, match="there is no file or folder"):
        weight_similarity([tmp_path / "a.pt", tmp_path / "b.pt"])


# --- one pass


class Counted:
    """A model that counts what is asked of it."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors, self.reads, self.numbers = tensors, Counter(), Counter()

    def tensor(self, name: str) -> torch.Tensor:
        self.reads[name] += 1
        return self.tensors[name]

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.numbers[name] += stop - start
        return self.tensors[name].flatten()[start:stop]


def test_a_tensor_is_read_once_from_each_model_or_twice_where_not_all_fit(monkeypatch):
    def models():
        return [Counted({"big": gaussian(40, 30, seed=s), "small": gaussian(9, 9, seed=s), f"own{s}": gaussian(9, 8)})
                for s in range(7)]  # fmt: skip

    all_fit = models()
    weight_similarity(all_fit)
    assert all(m.reads == {"big": 1, "small": 1} and not m.numbers for m in all_fit)
    monkeypatch.setattr("zoarium.measure.similarity.gram.BUFFER", 1)  # as large as the largest tensor
    some_fit = models()
    weight_similarity(some_fit)
    assert all(m.reads == {"big": 1, "small": 1} and m.numbers == {"big": 1200} for m in some_fit)
