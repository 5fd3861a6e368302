from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from zoarium._core.errors import DataError
from zoarium.nets import build
from zoarium.zoo import Cohort
from zoarium.zoo.weight_dataset import WeightDataset, groups_of, tokens_of

WIDTHS, SEEDS = (2, 3, 5), (0, 1)


@dataclass
class Ref:
    """A cohort not loaded yet."""

    cohort: Cohort
    ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = self.cohort.ids

    def load(self) -> Cohort:
        return self.cohort


@dataclass
class FakeZoo:
    """What the data set asks of a zoo."""

    table: pl.DataFrame
    refs: list[Ref]
    measured: pl.DataFrame
    history: pl.DataFrame

    def cohorts(self, epoch: int | None = None) -> list[Ref]:
        return self.refs

    def cells(self) -> pl.DataFrame:
        cells = self.table.group_by("width", maintain_order=True).agg(pl.col("id").alias("ids"))
        return cells.with_columns(cell=pl.format("width={}", "width"))

    def phases(self) -> pl.DataFrame:
        return pl.DataFrame({"cell": ["width=2", "width=3", "width=5"], "phase": ["I", "IV-B", "I"]})


def fake(parents: dict[str, list[str]] | None = None) -> FakeZoo:
    refs, rows = [], []
    for width in WIDTHS:
        nets = [build("mlp", {"width": width}, in_shape=(3,), n_outputs=2, seed=10 * width + s) for s in SEEDS]
        ids = [f"w{width}s{seed}" for seed in SEEDS]
        refs.append(Ref(Cohort.from_modules(nets, ids)))
        rows += [
            {"id": id, "width": width, "seed": s, "parents": (parents or {}).get(id, [])}
            for id, s in zip(ids, SEEDS, strict=True)
        ]
    table = pl.DataFrame(rows, schema_overrides={"parents": pl.List(pl.String)})
    measured = table.with_columns(norm=pl.Series([float(n) for n in range(len(rows))]))
    history = table.select("id").join(pl.DataFrame({"epoch": [1, 2], "test_accuracy": [0.1, 0.9]}), how="cross")
    return FakeZoo(table, refs, measured, history)


def test_a_flat_sample_holds_the_models_parameters_padded_with_zeros():
    zoo = fake()
    dataset = WeightDataset(zoo, ["norm"])
    for ref in zoo.refs:
        for row, id in enumerate(ref.ids):
            sample = dataset[dataset.ids.index(id)]
            flat = ref.cohort.flat[row]
            assert sample["weights"].shape == sample["mask"].shape == (5 * 3 + 5 + 2 * 5 + 2,)
            assert torch.equal(sample["weights"][sample["mask"]], flat)
            assert sample["mask"].sum() == len(flat)
            assert not sample["weights"][~sample["mask"]].any()


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_every_parameter_stands_in_exactly_one_token_beside_its_unit(size):
    net = build("cnn", {"width": 2, "batch_norm": True, "depth": 2}, in_shape=(1, 5, 5), n_outputs=3)
    # every number is its own name: layer, then unit
    params = {}
    for layer, prefix in enumerate(["conv1", "norm1", "conv2", "norm2", "out"]):
        for name, p in net.named_parameters():
            if name.startswith(prefix):
                units = torch.arange(1, len(p) + 1.0).view(-1, *[1] * (p.dim() - 1))
                params[name] = (100.0 * layer + units).expand_as(p)[None].contiguous()
    tokens, mask, positions = tokens_of(params, size)
    assert mask.sum() == sum(p.numel() for p in params.values())
    assert not tokens[0][~mask].any()
    for token, real, (place, layer, _) in zip(tokens[0], mask, positions.tolist(), strict=True):
        values = token[real].unique()
        assert len(values) == 1  # one unit a token
        assert values.item() // 100 == layer
        assert torch.equal(tokens[0][place], token)
    for layer in range(5):
        inside = positions[positions[:, 1] == layer][:, 2]
        assert torch.equal(inside, torch.arange(len(inside)))


def test_tokens_of_different_architectures_are_padded_to_one_length_and_collate():
    dataset = WeightDataset(fake(), ["norm"], form="tokens", token_size=3)
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    assert batch["weights"].shape == batch["mask"].shape == (6, len(dataset[0]["mask"]), 3)
    assert batch["positions"].shape == (6, len(dataset[0]["mask"]), 3)
    assert batch["mask"].sum((1, 2)).tolist() == [3 * w + w + 2 * w + 2 for w in WIDTHS for _ in SEEDS]


def test_targets_are_measured_columns_phases_or_the_end_of_the_history():
    dataset = WeightDataset(fake(), ["norm", "phase", "test_accuracy"])
    assert dataset.classes == {"phase": ("I", "IV-B")}
    expected = [[0, 0, 0.9], [1, 0, 0.9], [2, 1, 0.9], [3, 1, 0.9], [4, 0, 0.9], [5, 0, 0.9]]
    torch.testing.assert_close(dataset.targets, torch.tensor(expected))
    assert torch.equal(dataset[3]["targets"], dataset.targets[3])


def test_models_without_a_value_are_left_out_and_named():
    zoo = fake()
    zoo.measured = zoo.measured.with_columns(norm=pl.Series([0.0, None, 2.0, float("nan"), 4.0, 5.0]))
    dataset = WeightDataset(zoo, ["norm"])
    assert dataset.ids == ("w2s0", "w3s0", "w5s0", "w5s1")
    assert dataset.left_out == ("w2s1", "w3s1")
    zoo.measured = zoo.measured.with_columns(norm=pl.lit(None, dtype=pl.Float64))
    with pytest.raises(DataError, match=r"none of 6 models.*\(norm\); measure"):
        WeightDataset(zoo, ["norm"])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 200), parts=st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5), (0.01, 0.99), (1.0,)]))
def test_seeds_of_one_cell_never_straddle_a_split_and_no_model_is_lost(seed, parts):
    dataset = WeightDataset(fake(), ["norm"])
    split = dataset.split(parts, seed=seed)
    assert sorted(id for part in split for id in part.ids) == sorted(dataset.ids)
    cells = [{id[:2] for id in part.ids} for part in split]
    assert all(cells)
    assert sum(map(len, cells)) == len(set().union(*cells)) == 3
    assert [part.ids for part in dataset.split(parts, seed=seed)] == [part.ids for part in split]


def test_a_part_gives_the_same_samples_as_the_whole():
    dataset = WeightDataset(fake(), ["norm"])
    part = dataset.split((0.5, 0.5))[1]
    for row, id in enumerate(part.ids):
        whole = dataset[dataset.ids.index(id)]
        assert all(torch.equal(part[row][key], whole[key]) for key in whole)


def test_a_derived_model_goes_with_its_parents_cell():
    zoo = fake(parents={"w5s0": ["w2s1"]})
    groups = dict(zip(zoo.table["id"], groups_of(zoo, zoo.table["id"].to_list()), strict=True))
    assert groups["w5s1"] == groups["w2s0"] != groups["w3s0"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ["nrm"]}, r"unknown target 'nrm'. Did you mean 'norm'.*phase"),
        ({"targets": []}, "at least one target"),
        ({"targets": ["parents"]}, "neither numbers nor text"),
        ({"form": "graph"}, "'flat' or 'tokens', found 'graph'"),
        ({"token_size": 0}, "token_size must be a whole number"),
    ],
)
def test_what_cannot_be_made_into_samples_says_why(options, says):
    with pytest.raises(DataError, match=says):
        WeightDataset(fake(), **{"targets": ["norm"], **options})


def test_shares_that_make_no_split_say_why():
    dataset = WeightDataset(fake(), ["norm"])
    with pytest.raises(DataError, match="add up to 1"):
        dataset.split((0.5, 0.4))
    with pytest.raises(DataError, match=r"3 cell\(s\) cannot be split into 4"):
        dataset.split((0.25,) * 4)
