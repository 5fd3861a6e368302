from __future__ import annotations

import json
import pickle

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from zoarium._core.errors import DataError, NetError, StoreError
from zoarium._core.parallel import run_tasks
from zoarium.zoo import Model, Zoo
from zoarium.zoo import open as open_zoo
from zoarium.zoo.manifest import DataInfo


@pytest.fixture(scope="module")
def numbered():
    """Twenty planned models in four cells of width x lr."""
    zoo = Zoo.create(axes=["width", "lr"])
    rows = [
        {
            "id": f"m{i}",
            "status": "planned" if i == 19 else "trained",
            "width": 2 + i % 2,
            "lr": 0.1 * (1 + i // 10),
            "seed": i,
        }
        for i in range(20)
    ]
    with zoo.writing() as tx:
        tx.set_models(pl.DataFrame(rows))
    return zoo


# ---------------------------------------------------------------------- views


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_view_of_a_view_holds_what_python_says(numbered, data):
    view, expected = numbered, numbered.ids
    for _ in range(data.draw(st.integers(1, 3))):
        how = data.draw(st.sampled_from(["slice", "list", "ids", "where", "mask"]))
        if how == "slice":
            part = slice(*data.draw(st.tuples(st.integers(-22, 22), st.integers(-22, 22), st.sampled_from([1, 2, -1]))))
            view, expected = view[part], expected[part]
        elif how == "list" and expected:
            rows = data.draw(st.lists(st.integers(-len(expected), len(expected) - 1), max_size=6))
            view, expected = view[rows], list(dict.fromkeys(expected[i] for i in rows))
        elif how == "ids" and expected:
            chosen = data.draw(st.lists(st.sampled_from(expected), max_size=6))
            view, expected = view[chosen], list(dict.fromkeys(chosen))
        elif how == "mask":
            mask = data.draw(st.lists(st.booleans(), min_size=len(expected), max_size=len(expected)))
            view, expected = view[mask], [i for i, keep in zip(expected, mask, strict=True) if keep]
        else:
            least = data.draw(st.integers(0, 20))
            view, expected = view.where(pl.col("seed") >= least), [i for i in expected if int(i[1:]) >= least]
    assert view.ids == expected == view.table["id"].to_list() == [model.id for model in view]
    assert len(view) == len(expected)
    assert all((i in view) == (i in expected) for i in numbered.ids)


def test_a_view_sees_only_its_own_history_values_and_checkpoints(zoo):
    view = zoo[["mlp-w2-s1", "mlp-w2-s0"]]
    assert set(view.history["id"]) == set(view.checkpoints["id"]) == {"mlp-w2-s0", "mlp-w2-s1"}
    assert view.values("norm")["id"].to_list() == ["mlp-w2-s0", "mlp-w2-s1"]
    assert len(view.values("cka")) == 1
    assert len(zoo[["mlp-w2-s0"]].values("cka")) == 0
    assert len(zoo.where(width=3).values("gain")) == 0


def test_a_view_follows_later_commits_and_never_gains_models(zoo):
    view = zoo.where(width=2)
    with zoo.writing() as tx:
        tx.upsert("models", zoo.table.head(1).with_columns(status=pl.lit("damaged")), key=["id"])
        tx.upsert("models", zoo.table.tail(1).with_columns(id=pl.lit("new"), width=pl.lit(2)), key=["id"])
    assert view.table["status"].to_list() == ["damaged", "trained", "trained"]
    assert len(zoo.where(width=2)) == 4


def test_where_takes_values_lists_and_nothing(zoo):
    with zoo.writing() as tx:
        tx.set_models(zoo.table.with_columns(relation=pl.lit(None, dtype=pl.String)))
    assert zoo.where(width=[2, 3], seed=range(2)).ids == ["mlp-w2-s0", "mlp-w2-s1", "mlp-w3-s0", "mlp-w3-s1"]
    assert len(zoo.where(relation=None)) == 6
    assert len(zoo.where()) == 6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: z.where(widht=2), StoreError, r"unknown column 'widht'. Did you mean 'width'\? Known: .*width"),
        (lambda z: z.where(pl.col("widht") > 2), StoreError, r"unknown column 'widht'. Did you mean 'width'\?"),
        (lambda z: z.where(pl.col("width") + 1), StoreError, "cannot filter the models"),
        (lambda z: z.where(pl.col("width") > "a"), StoreError, "cannot filter the models"),
        (lambda z: z.where(5), StoreError, "cannot filter the models"),
        (lambda z: z["mlp-w2-s9"], StoreError, r"no model 'mlp-w2-s9' among these 6. Did you mean 'mlp-w2-s"),
        (lambda z: z[:2]["mlp-w3-s0"], StoreError, "no model 'mlp-w3-s0' among these 2"),
        (lambda z: z[["mlp-w2-s0", "x"]], StoreError, "no model 'x' among these 6"),
        (lambda z: z[6], IndexError, "rows go from 0 to 5"),
        (lambda z: z[[True]], StoreError, "a mask of 1 values for 6 models"),
        (lambda z: z[1.5], TypeError, "row, id, slice or list"),
        (lambda z: z.values("nrom"), StoreError, "Did you mean 'norm'"),
        (lambda z: z["mlp-w2-s0"].state_dict(7), StoreError, "no weights of epoch 7; it has epochs: 1, 2"),
        (lambda z: z.cohorts(epoch=7), StoreError, r"no checkpoint at epoch 7; it has epochs: 1, 2"),
        (lambda z: z.base_data("mnist"), DataError, "unknown data set of this zoo 'mnist'"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_with_what_is(zoo, call, error, message):
    with pytest.raises(error, match=message):
        call(zoo)


def test_cells_are_models_equal_in_every_axis_but_the_seed(numbered):
    cells = numbered.cells()
    assert cells["cell"].to_list() == ["width=2,lr=0.1", "width=3,lr=0.1", "width=2,lr=0.2", "width=3,lr=0.2"]
    assert cells["n"].to_list() == [5, 5, 5, 4]
    assert cells["ids"][1].to_list() == ["m1", "m3", "m5", "m7", "m9"]
    assert cells.columns == ["cell", "width", "lr", "ids", "n"]
    assert numbered[:0].cells().schema == cells.schema


def test_derived_models_form_cells_of_their_own(zoo):
    with zoo.writing() as tx:
        tx.upsert("models", zoo.table.head(1).with_columns(id=pl.lit("pruned"), relation=pl.lit("prune")), key=["id"])
    assert zoo.cells().select("cell", "n").rows() == [("width=2", 3), ("width=3", 3), ("width=2,relation=prune", 1)]


def test_an_iteration_gives_models_whose_rows_are_the_tables(zoo):
    assert [model.row for model in zoo] == zoo.table.to_dicts()
    assert all(isinstance(model, Model) for model in zoo)


def test_a_view_travels_to_another_process(zoo):
    view = pickle.loads(pickle.dumps(zoo.where(width=3)))
    assert view.ids == zoo.where(width=3).ids
    (ref,) = pickle.loads(pickle.dumps(view.cohorts()))
    assert ref.load().ids == tuple(view.ids)


# ---------------------------------------------------------------------- weights


def test_a_cohort_holds_what_each_model_holds(zoo):
    cohorts = [ref.load() for ref in zoo.cohorts()]
    assert [cohort.ids for cohort in cohorts] == [tuple(zoo.where(width=w).ids) for w in (2, 3)]
    for cohort in cohorts:
        for row, i in enumerate(cohort.ids):
            assert all(torch.equal(v, cohort.state(row)[k]) for k, v in zoo[i].state_dict().items())
            x = torch.randn(5, 4)
            assert torch.allclose(cohort(x)[row], zoo[i].module()(x), atol=1e-6)


def test_a_cohort_comes_in_the_order_of_its_view_from_any_number_of_files(zoo, stacked):
    with zoo.writing() as tx:
        tx.add_weights("later", 3, 30, ["mlp-w2-s2", "mlp-w2-s0"], stacked(2, n=2, seed=8))
    view = zoo[["mlp-w2-s2", "mlp-w2-s1", "mlp-w2-s0"]]
    (ref,) = view.cohorts()
    assert (ref.ids, ref.epochs) == (tuple(view.ids), (3, 2, 3))
    cohort = ref.load()
    for row, i in enumerate(view.ids):
        assert torch.equal(cohort.state(row)["fc1.weight"], zoo[i].state_dict()["fc1.weight"])
    (earlier,) = view.cohorts(epoch=1)
    assert earlier.epochs == (1, 1, 1)


def test_memory_bounds_the_models_of_a_cohort(zoo):
    (first, *_) = zoo.cohorts()
    one = first.nbytes // 3
    assert one == sum(v.nbytes for v in zoo[0].state_dict().values())
    assert [len(ref) for ref in zoo.cohorts(memory=2 * one)] == [2, 1, 1, 1, 1]
    assert [len(ref) for ref in zoo.cohorts(memory=1)] == [1] * 6
    assert first.n_params == sum(v.numel() for v in zoo[0].state_dict().values())


def test_only_models_that_can_be_used_are_in_cohorts(zoo):
    status = ["planned", "diverged", "damaged", "trained", "foreign", "trained"]
    with zoo.writing() as tx:
        tx.set_models(zoo.table.with_columns(status=pl.Series(status)))
    assert [list(ref.ids) for ref in zoo.cohorts()] == [zoo.ids[3:]]
    assert [list(ref.ids) for ref in zoo.cohorts(include_diverged=True)] == [zoo.ids[1:2], zoo.ids[3:]]


def test_a_net_that_is_not_registered_is_asked_for_and_can_be_given(zoo):
    def mine(in_shape: tuple[int, ...], n_outputs: int, width: int) -> nn.Module:
        layers = {"fc1": nn.Linear(*in_shape, width), "act": nn.ReLU(), "out": nn.Linear(width, n_outputs)}
        return nn.Sequential(*layers.values()) if width < 0 else _named(layers)

    with zoo.writing() as tx:
        tx.set_models(zoo.table.with_columns(net=pl.lit("mine")))
    with pytest.raises(
        NetError, match=r"net 'mine', which is not registered here; pass net=.*attach_net.*@zoarium\.net"
    ):
        zoo[0].module()
    x = torch.randn(2, 4)
    given = zoo[0].module(net=mine)(x)
    zoo.attach_net("mine", mine)
    assert torch.equal(zoo[0].module()(x), given)
    with pytest.raises(StoreError, match=r"do not fit its net .*pass net="):
        zoo[0].module(net=lambda in_shape, n_outputs, width: nn.Linear(4, 3))
    zoo.attach_net("mine", lambda in_shape, n_outputs, width: mine(in_shape, n_outputs, width + 1))
    with pytest.raises(StoreError, match=r"tensor 'fc1\.weight' is stored as \(2, 4\), its net has \(3, 4\)"):
        zoo.cohorts()[0].load()


def _named(layers: dict[str, nn.Module]) -> nn.Module:
    out = nn.Sequential()
    for name, layer in layers.items():
        out.add_module(name, layer)
    return out


# ---------------------------------------------------------------------- data


def test_data_come_with_the_variant_the_model_was_trained_on(zoo, tiny):
    with zoo.writing() as tx:
        variant = {"data_fraction": 0.5, "label_noise": 0.4, "data_seed": 3}
        columns = {k: pl.when(pl.col("seed") == 1).then(pl.lit(v)) for k, v in variant.items()}
        tx.set_models(zoo.table.with_columns(**columns))
    whole, part = zoo.data_of("mlp-w2-s0"), zoo.data_of("mlp-w2-s1")
    assert whole.fingerprint == tiny().fingerprint
    assert part.fingerprint == tiny().variant(fraction=0.5, label_noise=0.4, seed=3).fingerprint
    assert zoo.data_of(["mlp-w2-s1", "mlp-w3-s1"]) is part
    assert zoo.data_key("mlp-w2-s1") == zoo.data_key("mlp-w3-s1") != zoo.data_key("mlp-w2-s0")
    with pytest.raises(DataError, match="2 models were trained on 2 different data sets"):
        zoo.data_of(["mlp-w2-s0", "mlp-w2-s1"])


def test_data_held_elsewhere_are_asked_for_and_compared(zoo, tiny):
    with zoo.writing() as tx:
        tx.describe_data("tiny", DataInfo.of(tiny(), "external"))
    found = open_zoo(zoo.path)
    with pytest.raises(DataError, match=r"zoo\.attach_data\('tiny', dataset\)"):
        found.data_of("mlp-w2-s0")
    with pytest.raises(DataError, match=r"not what the models of .* were trained on"):
        found.attach_data("tiny", tiny(seed=1))
    found.attach_data("tiny", tiny())
    assert found.data_of("mlp-w2-s0").fingerprint == tiny().fingerprint


def test_a_description_of_data_that_makes_no_sense_is_refused():
    with pytest.raises(StoreError, match="description of data 'tiny' cannot be used: fingerprint"):
        Zoo.create(data={"tiny": {"fingerprint": "../x"}})


# ---------------------------------------------------------------------- values, lineage, export


def test_measured_joins_the_latest_value_of_every_quantity(zoo):
    with zoo.writing() as tx:
        rows = {"id": ["mlp-w2-s0"] * 2, "epoch": [1, 2], "quantity": ["norm", "width"], "value": [9.0, 5.0]}
        tx.upsert("measures/norm", pl.DataFrame(rows), key=["id", "epoch", "quantity"])
    assert zoo.measured["norm"].to_list() == [1.5] * 6
    assert zoo.measured["width (measured)"].to_list() == [5.0] + [None] * 5
    assert zoo.measured.drop("norm", "width (measured)").equals(zoo.table)
    assert zoo["mlp-w2-s0"].measures == {"norm": 1.5, "width (measured)": 5.0}
    assert zoo.measures == ["cka", "gain", "norm"]
    assert len(zoo.stored("cka")) == 1
    assert zoo.stored("nothing") is None


def test_lineage_goes_to_the_ancestors_once_even_in_a_circle(zoo):
    parents = [["mlp-w2-s1"], ["mlp-w2-s2", "elsewhere"], ["mlp-w2-s0"], [], [], []]
    relation = pl.Series(["prune", "merge", "finetune", None, None, None])
    with zoo.writing() as tx:
        tx.set_models(zoo.table.with_columns(parents=pl.Series(parents, dtype=pl.List(pl.String)), relation=relation))
    lineage = zoo["mlp-w2-s0"].lineage
    assert [(one["id"], one["relation"]) for one in lineage] == [
        ("mlp-w2-s0", "prune"), ("mlp-w2-s1", "merge"), ("mlp-w2-s2", "finetune"), ("elsewhere", None),
    ]  # fmt: skip
    assert zoo["mlp-w3-s0"].parents == []


def test_an_exported_model_needs_no_zoarium(zoo, tmp_path):
    model = zoo["mlp-w3-s1"]
    folder = model.export(tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == {"net": "mlp", "net_params": {"width": 3}, "in_shape": [4], "n_outputs": 3}
    assert (config["id"], config["epoch"], config["config"]["seed"]) == ("mlp-w3-s1", 2, 1)
    assert config["lineage"] == [{"id": "mlp-w3-s1", "relation": None, "parents": []}]
    with pytest.raises(StoreError, match=r"holds a model\.safetensors already"):
        model.export(folder)
    earlier = load_file(model.export(tmp_path / "earlier", epoch=1) / "model.safetensors")
    assert all(torch.equal(v, earlier[k]) for k, v in model.state_dict(1).items())


def test_a_saved_zoo_says_the_same(zoo, content, tmp_path):
    with zoo.writing() as tx:
        tx.update_header(measure_settings={"abc": {"measure": "norm"}})
    saved = zoo.save(tmp_path / "copy")
    told, original = content(open_zoo(saved.path)), content(zoo)
    for one in (told, original):
        one["header"].pop("created")
    assert told == original
    assert set(saved.check()["state"]) == {"ok"}


def test_a_saved_view_holds_its_own_models_only(zoo, tmp_path):
    view = zoo[["mlp-w2-s2", "mlp-w3-s0"]]
    saved = open_zoo(view.save(tmp_path / "part").path)
    assert saved.ids == view.ids
    assert set(saved.check()["state"]) == {"ok"}
    for i in view.ids:
        for epoch in (1, 2):
            expected = zoo[i].state_dict(epoch)
            assert all(torch.equal(v, expected[k]) for k, v in saved[i].state_dict(epoch).items())
    assert set(saved.history["id"]) == set(view.ids)
    assert saved.data_of(view.ids).fingerprint == zoo.data_of(view.ids).fingerprint


def test_a_copy_that_fails_leaves_no_zoo_behind(zoo, tmp_path):
    path = zoo.path / "weights/w2@2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is not what was written"):
        zoo.save(tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())


# ---------------------------------------------------------------------- shown


def test_the_text_counts_models_axes_and_seeds(zoo):
    with zoo.writing() as tx:
        tx.upsert("models", zoo.table.head(1).with_columns(status=pl.lit("diverged")), key=["id"])
    assert repr(zoo).endswith("6 models over width: 2 x 3 seeds, 1 diverged)")
    assert repr(zoo[0]) == "Model('mlp-w2-s0', diverged, width=2, seed=0)"
    assert json.loads(json.dumps(zoo.summary()))["status"] == {"diverged": 1, "trained": 5}


def test_html_escapes_what_comes_from_files(zoo):
    with zoo.writing() as tx:
        bad = pl.lit("<script>alert(1)</script>")
        tx.set_models(zoo.table.with_columns(id=bad + pl.col("id"), note=bad))
        tx.replace("cells/phases", pl.DataFrame({"cell": ["width=2"], "phase": ["<b>IV</b>"]}))
    for shown in (zoo._repr_html_(), zoo[0]._repr_html_()):
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;IV&lt;/b&gt;: 1 cells" in zoo._repr_html_()


def test_an_empty_zoo_answers_every_question():
    zoo = Zoo.create(axes=["width"])
    assert (len(zoo), zoo.ids, zoo.cohorts(), zoo.measures, list(zoo)) == (0, [], [], [], [])
    assert len(zoo.cells()) == len(zoo.history) == len(zoo.checkpoints) == len(zoo.measured) == 0
    assert "0 models" in repr(zoo) + zoo._repr_html_()
    assert zoo.summary()["models"] == 0
    assert set(zoo.check()["state"]) == {"ok"}


def test_weights_can_be_read_in_forked_workers(zoo):
    def read(ref, worker) -> tuple[float, float]:
        one = zoo[ref.ids[0]]
        return float(ref.load().flat.double().sum()), float(one.state_dict(one.epochs[0])["out.bias"].sum())

    refs = zoo.cohorts()
    here = {n: read(ref, None) for n, ref in enumerate(refs)}
    assert dict(run_tasks(read, refs, workers=2)) == here
