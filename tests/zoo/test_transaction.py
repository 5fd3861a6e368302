from __future__ import annotations

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoarium._core.errors import StoreError
from zoarium.zoo import Zoo, write_weights
from zoarium.zoo import open as open_zoo
from zoarium.zoo.weights import read_rows, row_digests

KEYS = st.integers(0, 6)
ROWS = st.lists(st.tuples(KEYS, KEYS, st.floats(allow_nan=False)), max_size=12, unique_by=lambda row: row[:2])


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_upsert_is_what_a_dictionary_does(batches):
    zoo = Zoo.create()
    expected: dict[tuple[str, int], float] = {}
    for batch in batches:
        frame = pl.DataFrame(
            [(f"m{a}", b, value) for a, b, value in batch], orient="row",
            schema={"id": pl.String, "epoch": pl.Int64, "value": pl.Float64},
        )  # fmt: skip
        with zoo.writing() as tx:
            tx.upsert("history", frame, key=["id", "epoch"])
        expected.update({(f"m{a}", b): value for a, b, value in batch})
    found = open_zoo(zoo.path).history
    assert [((row["id"], row["epoch"]), row["value"]) for row in found.to_dicts()] == list(expected.items())


def test_new_columns_are_empty_in_older_rows_and_missing_ones_in_newer(zoo):
    with zoo.writing() as tx:
        tx.upsert("models", pl.DataFrame({"id": ["b"], "status": ["planned"], "note": ["x"]}), key=["id"])
    table = zoo.table
    assert table["note"].to_list() == [None] * 6 + ["x"]
    assert table["width"].to_list()[-1] is None


def test_whole_numbers_widen_and_empty_columns_take_any_type(zoo):
    with zoo.writing() as tx:
        tx.upsert(
            "models", pl.DataFrame({"id": ["b"], "status": ["planned"], "width": [0.5], "relation": [None]}), key=["id"]
        )
        tx.upsert("models", pl.DataFrame({"id": ["c"], "status": ["planned"], "relation": ["merge"]}), key=["id"])
    assert zoo.table.schema["width"] == pl.Float64
    assert zoo.table["relation"].to_list()[-2:] == [None, "merge"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tx: tx.upsert("models", pl.DataFrame({"id": ["b"], "status": ["x"], "width": ["wide"]}), key=["id"]),
         r"column 'width' of 'models' holds Int64 and cannot take String"),
        (lambda tx: tx.upsert("models", pl.DataFrame({"id": ["b", "b"], "status": ["x", "x"]}), key=["id"]),
         r"hold the key \{'id': 'b'\} more than once"),
        (lambda tx: tx.upsert("models", pl.DataFrame({"status": ["x"]}), key=["id"]), "lack their key 'id'"),
        (lambda tx: tx.set_models(pl.DataFrame({"id": ["b", "b"], "status": ["x", "x"]})), "'b' occurs more than once"),
        (lambda tx: tx.set_models(pl.DataFrame({"id": ["b"]})), "needs a column 'status'; it has: id"),
        (lambda tx: tx.set_models(pl.DataFrame({"id": [None], "status": ["x"]}, schema_overrides={"id": pl.String})),
         "'id' of 'models' has empty values"),
        (lambda tx: tx.set_models(pl.DataFrame({"id": ["b"], "status": ["x"], "f": pl.Series([object()])})),
         "'f' of 'models' holds Python objects"),
        (lambda tx: tx.replace("../models", pl.DataFrame()), r"no table '\.\./models'"),
        (lambda tx: tx.replace("measures/a/b", pl.DataFrame()), "no table 'measures/a/b'"),
        (lambda tx: tx.update_header(version=3), "'version' in zoo.json is kept by the store"),
        (lambda tx: tx.update_header(axes=3), "cannot hold axes = 3"),
        (lambda tx: tx.add_weights("../x", 1, 1, ["a"], {"w": torch.zeros(1)}), "cannot name a weights file"),
        (lambda tx: tx.add_weights("x", 1, 1, ["a", "b"], {"w": torch.zeros(1, 3)}), r"'w' is \(1, 3\) for 2 models"),
        (lambda tx: tx.add_weights("x", 1, 1, [], {}), "no weights to write"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_and_changes_nothing(zoo, content, call, message):
    before = content(zoo)
    with pytest.raises(StoreError, match=message), zoo.writing() as tx:
        call(tx)
    assert content(open_zoo(zoo.path)) == before


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=6),
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES)),
        min_size=1, max_size=4,
    ),
    st.data(),
)  # fmt: skip
def test_a_slice_read_is_the_row_that_was_written(n, tensors, data):
    zoo = Zoo.create()
    ids = [f"m{i}" for i in range(n)]
    written = {name: (torch.rand(n, *shape) * 9).to(dtype) for name, (shape, dtype) in tensors.items()}
    with zoo.writing() as tx:
        tx.set_models(pl.DataFrame({"id": ids, "status": ["trained"] * n}))
        tx.add_weights("w", 0, 0, ids, written)
    found = open_zoo(zoo.path)
    row = data.draw(st.integers(0, n - 1))
    state = found[ids[row]].state_dict()
    assert state.keys() == written.keys()
    for name, tensor in written.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor[row])
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    several = read_rows(zoo.path / "weights/w@0.safetensors", rows)
    assert all(torch.equal(several[name], tensor[rows]) for name, tensor in written.items())
    assert row_digests(several) == [row_digests(written)[i] for i in rows]


def test_a_digest_tells_names_shapes_types_and_values_apart():
    base = {"a": torch.zeros(1, 4), "b": torch.ones(1, 2)}
    others = [
        {"a": torch.zeros(1, 4), "c": torch.ones(1, 2)},
        {"a": torch.zeros(1, 2, 2), "b": torch.ones(1, 2)},
        {"a": torch.zeros(1, 4, dtype=torch.int32), "b": torch.ones(1, 2)},
        {"a": torch.zeros(1, 4), "b": torch.tensor([[1.0, 2.0]])},
        {"a": -torch.zeros(1, 4), "b": torch.ones(1, 2)},
        {"a": torch.zeros(1, 4)},
    ]
    digests = [row_digests(tensors)[0] for tensors in [base, *others]]
    assert len(set(digests)) == len(digests)
    assert row_digests(dict(reversed(base.items()))) == row_digests(base)


def test_views_of_one_flat_row_and_tied_tensors_can_be_stored(zoo):
    flat = torch.arange(6.0).reshape(1, 6)
    tied = torch.ones(1, 2)
    with zoo.writing() as tx:
        tx.add_weights("v", 7, 70, ["mlp-w2-s0"], {"a": flat[:, :2], "b": flat[:, 2:], "c": tied, "d": tied})
    state = zoo["mlp-w2-s0"].state_dict(7)
    assert [state[k].tolist() for k in "abcd"] == [[0, 1], [2, 3, 4, 5], [1, 1], [1, 1]]


def test_a_file_a_worker_wrote_is_taken_in_by_its_description(zoo, stacked):
    written = write_weights(zoo.path, "w2", 5, [50, 51], ["mlp-w2-s0", "mlp-w2-s1"], stacked(2, n=2))
    assert 5 not in open_zoo(zoo.path)["mlp-w2-s0"].epochs
    with zoo.writing() as tx:
        tx.add_weights_file(type(written).from_dict(written.to_dict()))
    steps = zoo.checkpoints.filter(pl.col("epoch") == 5)["step"].to_list()
    assert steps == [50, 51]
    assert torch.equal(zoo["mlp-w2-s1"].state_dict(5)["fc1.bias"], stacked(2, n=2)["fc1.bias"][1])


def test_no_weights_file_is_ever_overwritten(zoo, stacked):
    before = (zoo.path / "weights/w2@2.safetensors").read_bytes()
    with zoo.writing() as tx:
        written = tx.add_weights("w2", 2, 20, ["mlp-w2-s0"], stacked(2, n=1, seed=9))
    assert written.name == "weights/w2~2@2.safetensors"
    assert (zoo.path / "weights/w2@2.safetensors").read_bytes() == before
    same = write_weights(zoo.path, "w2", 2, 20, ["mlp-w2-s0"], stacked(2, n=1, seed=9))
    assert same.name == written.name


def test_a_file_no_checkpoint_points_to_is_deleted_with_the_commit(zoo, stacked):
    ids = zoo.where(width=2).ids
    with zoo.writing() as tx:
        tx.add_weights("again", 2, 20, ids, stacked(2, seed=9))
    assert not (zoo.path / "weights/w2@2.safetensors").exists()
    assert torch.equal(zoo[ids[1]].state_dict()["out.bias"], stacked(2, seed=9)["out.bias"][1])
    assert set(zoo.check()["state"]) == {"ok"}
