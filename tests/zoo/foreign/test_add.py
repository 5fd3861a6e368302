"""Models that exist already become rows of a zoo, by reference or as copies."""

from __future__ import annotations

import collections
import gc
import json
import os
import pickle
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoarium as za
from zoarium._core.errors import DamagedError, MeasureError, NetError, StoreError
from zoarium.zoo.foreign.facts import content_digest
from zoarium.zoo.foreign.find import find_models
from zoarium.zoo.foreign.intake import names_of
from zoarium.zoo.weights import row_digests


def mlp(seed: int, width: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"fc1.weight": (width, 64), "fc1.bias": (width,), "out.weight": (10, width), "out.bias": (10,)}
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Three digit perceptrons of two widths in folders of their own."""
    home = tmp_path / "project" / "checkpoints"
    for name, width in (("a", 3), ("b", 3), ("c", 5)):
        (home / name).mkdir(parents=True)
        torch.save({"state_dict": mlp(ord(name), width), "epoch": 1}, home / name / "model.pt")
    return home


@pytest.fixture
def zoo(checkpoints):
    return za.add(checkpoints.parent / "zoo", checkpoints).zoo


# ------------------------------------------------------------------------------------------------------ what is found


def test_a_folder_gives_one_model_a_file_named_after_what_tells_them_apart(zoo, checkpoints):
    assert zoo.ids == ["a", "b", "c"] and set(zoo.table["status"]) == {"foreign"}
    row = zoo["c"].row
    assert row["source"] == str(checkpoints / "c" / "model.pt") and row["format"] == "torch"
    assert row["n_params"] == 64 * 5 + 5 + 50 + 10 and len(row["sha256"]) == 64
    assert zoo["a"].row["arch"] == zoo["b"].row["arch"] != row["arch"]


def test_every_format_is_found_by_its_content_or_name(small_files, tmp_path):
    added = za.add(tmp_path / "zoo", tmp_path)
    assert added.counts["added"] == len(small_files) and added.counts["skipped"] == 0
    assert set(added.table["format"]) == {"safetensors", "torch", "torch-legacy", "torchscript", "onnx", "gguf"}
    assert {"small.safetensors", "small.onnx"} <= set(added.ids)


def test_shards_and_hugging_face_folders_are_one_model_each(folder, tmp_path, tensors):
    save_file(tensors, folder / "pytorch_model.bin")  # the same weights as an older format
    torch.save({"step": torch.tensor(1)}, folder / "optimizer.pt")
    torch.save({"args": torch.tensor(1)}, folder / "training_args.bin")
    added = za.add(tmp_path / "zoo", folder)
    assert added.ids == ["org-model"] and added.counts == {"added": 1, "known": 0, "skipped": 0, "ignored": 2}
    state = added.zoo[0].state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())


def test_shards_without_their_index_are_named(tmp_path):
    for n in (1, 2):
        save_file({f"w{n}": torch.ones(2)}, tmp_path / f"big-0000{n}-of-00002.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "small.safetensors")
    added = za.add(tmp_path / "zoo", tmp_path)
    assert added.ids == ["small"]
    (detail,) = added.table.filter(state="skipped")["detail"]
    assert detail == "2 shards of big.safetensors without their index; add its .index.json"


def test_hidden_folders_zoos_and_loops_are_not_entered(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "one.safetensors")
    (tmp_path / ".cache").mkdir()
    save_file({"w": torch.zeros(2)}, tmp_path / ".cache" / "two.safetensors")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    za.grow("mlp", width=[2], epochs=0, out=tmp_path / "grown")
    found = {item.path.name: item.kind for item in find_models(tmp_path)}
    assert found == {"one.safetensors": "model", "grown": "ignored"}


def test_models_of_one_name_take_their_folder_into_their_id_in_any_order(tmp_path):
    for n, part in enumerate(("vanilla", "soluble")):
        (tmp_path / part).mkdir()
        save_file({"w": torch.full((2,), float(n))}, tmp_path / part / "v_48.safetensors")
    first = za.add(tmp_path / "zoo1", tmp_path / "vanilla", tmp_path / "soluble").ids
    assert first == ["vanilla.v_48", "soluble.v_48"]
    assert set(za.add(tmp_path / "zoo2", tmp_path / "soluble", tmp_path / "vanilla").ids) == set(first)
    za.add(tmp_path / "zoo3", tmp_path / "vanilla")
    assert za.add(tmp_path / "zoo3", tmp_path / "soluble").zoo.ids == ["v_48", "soluble.v_48"]


@pytest.mark.parametrize(("path", "wanted"), [
    ("runs/bert/pytorch_model.bin", "bert"), ("runs/bert/model.safetensors.index.json", "bert"),
    ("x/net.pth.tar", "net"), ("x/weird name (1).pt", "weird name (1)"), ("best.ckpt", "best"),
])  # fmt: skip
def test_ids_come_from_the_name_that_says_something(path, wanted):
    assert names_of(Path(path))[0] == wanted


def test_what_cannot_be_read_is_named_with_its_reason_and_the_rest_is_added(checkpoints, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (checkpoints / "evil.pt").write_bytes(pickle.dumps(Trap()))
    torn = (checkpoints / "a" / "model.pt").read_bytes()
    (checkpoints / "torn.pt").write_bytes(torn[: len(torn) // 2])
    save_file(mlp(9), checkpoints / "flipped.safetensors")
    torch.save(mlp(8), checkpoints / "late.pt")
    content = bytearray((checkpoints / "late.pt").read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of a tensor: only reading it to the end finds that
    (checkpoints / "late.pt").write_bytes(content)
    added = za.add(checkpoints.parent / "zoo", checkpoints, tmp_path / "nowhere")
    assert added.counts == {"added": 4, "known": 0, "skipped": 4, "ignored": 0}
    said = {Path(s).name: d for s, d in added.table.filter(state="skipped").select("source", "detail").iter_rows()}
    assert set(said) == {"evil.pt", "torn.pt", "late.pt", "nowhere"}
    assert "evil.pt" in said["evil.pt"] and "there is no file or folder" in said["nowhere"]
    assert not (tmp_path / "sprung").exists()
    assert {Path(row["source"]).name for row in added.zoo.info["skipped"]} == set(said)
    assert str(added) == "4 added, 4 skipped"


def test_names_of_files_may_be_any_bytes(tmp_path):
    home = tmp_path / "odd"
    home.mkdir()
    for name in (b"bad\xff.safetensors", b"line\nbreak.safetensors", "größe.safetensors".encode()):
        save_file({"w": torch.full((2,), float(len(name)))}, tmp_path / "plain")
        os.rename(tmp_path / "plain", os.path.join(os.fsencode(home), name))
    added = za.add(tmp_path / "zoo", home)
    assert added.ids == ["größe", "line-break"] and added.counts["skipped"] == 1
    assert "bad\\udcff.safetensors is not UTF-8" in added.table.filter(state="skipped")["detail"][0]
    assert za.add(tmp_path / "copies", home, copy=True).zoo["größe"].tensor("w").shape == (2,)
    assert za.open(tmp_path / "zoo")["line-break"].tensor("w").tolist() == [22.0, 22.0]


def test_the_reasons_kept_are_those_of_the_last_addition(checkpoints):
    (checkpoints / "bad.pt").write_bytes(b"PK")
    zoo = za.add(checkpoints.parent / "zoo", checkpoints).zoo
    assert len(zoo.info["skipped"]) == 1
    (checkpoints / "bad.pt").unlink()
    assert zoo.add(checkpoints).zoo.info["skipped"] == []


def test_nothing_readable_makes_no_zoo(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(StoreError, match=r"no zoo was made in .*none of the sources .*bad\.pt"):
        za.add(tmp_path / "zoo", tmp_path / "bad.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"it holds no file of weights"):
        za.add(tmp_path / "zoo", tmp_path / "empty")
    with pytest.raises(StoreError, match=r"nothing to add was given"):
        za.add(tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


# -------------------------------------------------------------------------------------------------------- by reference


def test_a_reference_keeps_the_weights_where_they_are(zoo, checkpoints):
    assert not (zoo.path / "weights").exists() and zoo.info["version"] == 2
    state = za.open(zoo.path)["a"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in mlp(ord("a")).items())
    assert zoo["a"].tensors["fc1.weight"].shape == (3, 64)
    assert torch.equal(zoo["b"].tensor("out.bias"), mlp(ord("b"))["out.bias"])
    assert [list(model.tensors) for model in zoo] == [list(mlp(0))] * 3
    with pytest.raises(StoreError, match=r"unknown tensor 'out\.wieght'. Did you mean 'out\.weight'"):
        zoo["a"].tensor("out.wieght")


def test_the_digest_of_a_reference_is_that_of_stored_weights(zoo):
    wanted = row_digests({name: value[None] for name, value in mlp(ord("a")).items()})
    assert zoo.checkpoints.filter(id="a")["digest"].to_list() == wanted


def test_a_file_that_changed_is_an_error_that_names_both_digests(zoo, checkpoints):
    was = zoo["a"].row["sha256"]
    torch.save({"state_dict": mlp(77)}, checkpoints / "a" / "model.pt")
    with pytest.raises(
        DamagedError, match=rf"'a'.*has changed since it was added \(its SHA-256 is [0-9a-f]{{64}}, it was {was}"
    ):
        za.open(zoo.path)["a"].state_dict()
    with pytest.raises(DamagedError, match="has changed since it was added"):
        za.open(zoo.path)["a"].tensor("fc1.bias")
    assert torch.equal(za.open(zoo.path)["b"].tensor("fc1.bias"), mlp(ord("b"))["fc1.bias"])


def test_a_file_that_changes_while_a_zoo_is_open_is_not_read(zoo, checkpoints):
    zoo["a"].tensor("fc1.bias")
    torch.save({"state_dict": mlp(77)}, checkpoints / "a" / "model.pt")
    with pytest.raises(StoreError, match="changed since"):
        zoo["a"].tensor("fc1.bias")


def test_a_missing_file_says_how_to_give_its_new_place(zoo, checkpoints):
    (checkpoints / "a" / "model.pt").rename(checkpoints / "moved.pt")
    with pytest.raises(
        StoreError, match=r"model 'a': its file .*model\.pt is missing; put it back, or .*zoarium add .* PATH"
    ):
        za.open(zoo.path)["a"].state_dict()
    added = za.add(zoo.path, checkpoints / "moved.pt")
    assert added.counts["known"] == 1 and "now read from there" in added.table["detail"][0]
    assert added.zoo.ids == ["a", "b", "c"] and added.zoo["a"].row["source"] == str(checkpoints / "moved.pt")
    assert torch.equal(added.zoo["a"].tensor("fc1.bias"), mlp(ord("a"))["fc1.bias"])


def test_a_zoo_and_its_checkpoints_can_move_together(zoo, checkpoints, tmp_path):
    project = checkpoints.parent
    project.rename(tmp_path / "elsewhere")
    moved = za.open(tmp_path / "elsewhere" / "zoo")
    assert torch.equal(moved["c"].tensor("fc1.bias"), mlp(ord("c"), 5)["fc1.bias"])


def test_adding_a_file_twice_changes_nothing(zoo, checkpoints):
    before = (zoo.table, zoo.checkpoints)
    again = za.add(zoo, checkpoints)
    assert again.counts == {"added": 0, "known": 3, "skipped": 0, "ignored": 0} and again.ids == zoo.ids
    assert again.zoo.table.equals(before[0]) and again.zoo.checkpoints.equals(before[1])


def test_the_same_bytes_elsewhere_are_the_same_model(zoo, checkpoints):
    (checkpoints / "copy.pt").write_bytes((checkpoints / "b" / "model.pt").read_bytes())
    added = za.add(zoo, checkpoints / "copy.pt")
    assert added.table.select("state", "id").row(0) == ("known", "b")
    assert added.table["detail"][0] == f"the same bytes as {checkpoints / 'b' / 'model.pt'}"


def test_the_same_tensors_in_another_file_are_told(zoo, checkpoints):
    save_file(mlp(ord("b")), checkpoints / "converted.safetensors")
    added = zoo.add(checkpoints / "converted.safetensors")
    assert added.table.select("state", "id", "detail").row(0) == (
        "added", "converted", "the same tensors as model 'b' in another file",
    )  # fmt: skip


def test_a_zoo_that_lies_of_its_references_is_an_error(zoo, checkpoints, tmp_path):
    table = zoo.checkpoints
    wrong = table["files"].to_list()
    wrong[1] = []
    path = pl.when(pl.col("id") != "a").then(pl.col("path"))
    with zoo.writing() as transaction:
        transaction.replace(
            "checkpoints", table.with_columns(path, pl.Series("files", wrong, dtype=table.schema["files"]))
        )
    with pytest.raises(DamagedError, match="'a': its checkpoint at epoch 0 says it is a foreign file but not which"):
        zoo["a"].state_dict()
    with pytest.raises(DamagedError, match=r"'b': .* no longer stands for the files that were added"):
        zoo["b"].state_dict()
    found = zoo.check().filter(pl.col("id").is_not_null())
    assert dict(found.select("id", "state").iter_rows()) == {"a": "damaged", "b": "damaged", "c": "ok"}


def test_names_of_parallel_training_are_taken_off(tmp_path):
    torch.save({f"module._orig_mod.{k}": v for k, v in mlp(0).items()}, tmp_path / "wrapped.pt")
    torch.save(mlp(0), tmp_path / "plain.pt")
    zoo = za.add(tmp_path / "zoo", tmp_path).zoo
    assert list(zoo["wrapped"].tensors) == list(mlp(0)) and zoo.table["arch"].n_unique() == 1
    assert zoo.checkpoints["digest"].n_unique() == 1


# -------------------------------------------------------------------------------------------------------------- copies


def test_a_copy_needs_its_source_no_more_and_keeps_every_type(small_files, tmp_path, tensors):
    zoo = za.add(tmp_path / "zoo", small_files["torch"], copy=True).zoo
    small_files["torch"].unlink()
    zoo = za.open(zoo.path)
    assert zoo.info["version"] == 1 and set(zoo.check()["state"]) == {"ok"}
    state = zoo[0].state_dict()
    for name, value in tensors.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value)
        assert torch.equal(zoo[0].tensor(name), value) and zoo[0].tensors[name].shape == tuple(value.shape)
    file = zoo.checkpoints["file"][0]
    assert set(load_file(zoo.path / file)) == set(tensors)


@pytest.mark.parametrize("kind", ["safetensors", "legacy", "torchscript", "onnx", "gguf"])
def test_copies_of_every_format_are_verified_by_their_digest(small_files, tmp_path, kind):
    wanted = za.read_model(small_files[kind])
    zoo = za.add(tmp_path / "zoo", small_files[kind], copy=True).zoo
    assert zoo.checkpoints["digest"].to_list() == [content_digest(wanted)]
    state = zoo[0].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted)


def test_adding_again_with_copy_takes_the_weights_in(zoo, checkpoints):
    za.add(zoo, checkpoints, copy=True)
    for part in "abc":
        (checkpoints / part / "model.pt").unlink()
    taken = za.open(zoo.path)
    assert taken.ids == ["a", "b", "c"] and set(taken.check()["state"]) == {"ok"}
    assert torch.equal(taken["c"].tensor("out.bias"), mlp(ord("c"), 5)["out.bias"])


def test_a_zoo_takes_in_what_it_points_at(zoo, checkpoints):
    zoo[["a"]].copy_weights()
    (checkpoints / "a" / "model.pt").unlink()
    assert torch.equal(za.open(zoo.path)["a"].tensor("fc1.bias"), mlp(ord("a"))["fc1.bias"])
    assert zoo.checkpoints["path"].null_count() == 1 and set(zoo.check()["state"]) == {"ok"}
    (checkpoints / "b" / "model.pt").write_bytes(b"other")
    before = zoo.checkpoints
    with pytest.raises(DamagedError, match=r"'b'.*has changed since it was added"):
        zoo.copy_weights()
    assert zoo.checkpoints.equals(before) and len(list((zoo.path / "weights").iterdir())) == 1


def test_a_flipped_bit_in_a_copy_is_found_by_a_single_tensor(zoo, checkpoints):
    copied = za.add(zoo, checkpoints, copy=True).zoo
    path = copied.path / copied["a"].place().file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"the weights of model 'a' at epoch 0 are not what was written"):
        za.open(zoo.path)["a"].tensor("fc1.bias")


def test_a_type_that_safetensors_lacks_is_kept_by_reference_only(tmp_path):
    torch.save({"w": torch.zeros(2).to(torch.float8_e4m3fnuz), "v": torch.ones(2)}, tmp_path / "half.pt")
    with pytest.raises(
        StoreError, match=r"tensor 'w' is float8_e4m3fnuz, which safetensors cannot hold; add the model without"
    ):
        za.add(tmp_path / "zoo", tmp_path / "half.pt", copy=True)
    assert not (tmp_path / "zoo").exists()
    assert za.add(tmp_path / "zoo", tmp_path / "half.pt").zoo["half"].tensor("w").dtype == torch.float8_e4m3fnuz


def test_copying_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    from zoarium.zoo.foreign.model import ForeignModel

    save_file({f"w{n}": torch.full((1000,), float(n)) for n in range(50)}, tmp_path / "many.safetensors")
    alive: list[int] = []
    read = ForeignModel.tensor

    def counted(self, name):
        alive.append(sum(type(o) is torch.Tensor and o.numel() == 1000 for o in gc.get_objects()))
        return read(self, name)

    monkeypatch.setattr(ForeignModel, "tensor", counted)
    za.add(tmp_path / "zoo", tmp_path / "many.safetensors", copy=True)
    assert len(alive) == 100 and max(alive) <= 2


# ------------------------------------------------------------------------------------------------------- nets and data


def test_models_with_a_net_and_data_are_measured_like_grown_ones(checkpoints):
    zoo = za.add(checkpoints.parent / "zoo", checkpoints / "a", checkpoints / "b", net="mlp", net_params={"width": 3},
                 data="digits").zoo  # fmt: skip
    assert [len(ref) for ref in zoo.cohorts()] == [2] and zoo.table["width"].to_list() == [3, 3]
    zoo.measure("performance")
    zoo.measure("weight_distance", pairs="all")
    model, data = za.open(zoo.path)["a"].module(), za.data.load("digits")
    with torch.no_grad():
        accuracy = (model(data.test.x).argmax(1) == data.test.y).float().mean().item()
    assert zoo["a"].measures["test_accuracy"] == pytest.approx(accuracy)
    distance = sum((mlp(97)[k] - mlp(98)[k]).square().sum() for k in mlp(97)).sqrt().item()
    assert zoo.values("l2_distance")["value"][0] == pytest.approx(distance, rel=1e-5)


def test_half_precision_is_measured_in_the_types_of_the_net(tmp_path):
    torch.save({k: v.half() for k, v in mlp(0).items()}, tmp_path / "half.pt")
    zoo = za.add(tmp_path / "zoo", tmp_path / "half.pt", net="mlp", net_params={"width": 3}, data="digits").zoo
    assert zoo["half"].tensor("fc1.bias").dtype == torch.float16
    assert zoo.cohorts()[0].load().params["fc1.bias"].dtype == torch.float32


def test_a_net_that_does_not_fit_names_the_first_tensor_that_differs(checkpoints, zoo):
    added = za.add(checkpoints.parent / "other", checkpoints, net="mlp", net_params={"width": 3}, data="digits")
    assert added.ids == ["a", "b"]
    (detail,) = added.table.filter(state="skipped")["detail"]
    assert "tensor 'fc1.weight' has shape (5, 64), the net's has (3, 64)" in detail
    with pytest.raises(
        NetError, match=r"model 'c' does not fit net mlp\(width=3\): tensor 'fc1\.weight' has shape \(5, 64\)"
    ):
        zoo.set_net("mlp", net_params={"width": 3}, data="digits")
    assert zoo.table["net"].null_count() == 3  # nothing was changed
    with pytest.raises(NetError, match=r"it lacks the net's tensor 'fc2\.weight' \(it has fc1\.bias, fc1\.weight"):
        zoo[["a"]].set_net("mlp", net_params={"width": 3, "depth": 2}, data="digits")
    with pytest.raises(NetError, match=r"it has a tensor 'fc1\.bias' of shape \(3,\) that the net lacks"):
        zoo[["a"]].set_net(lambda: torch.nn.ModuleDict({"out": torch.nn.Linear(3, 10)}))


def test_set_net_on_a_view_gives_each_width_its_own(zoo):
    zoo[["a", "b"]].set_net("mlp", net_params={"width": 3}, data="digits")
    assert [ref.ids for ref in zoo.cohorts()] == [("a", "b")]
    zoo[["c"]].set_net("mlp", net_params={"width": 5}, data="digits")
    assert [ref.ids for ref in zoo.cohorts()] == [("a", "b"), ("c",)]
    zoo.measure("performance")
    assert len(zoo.values("test_accuracy")) == 3


def test_a_factory_of_the_users_own_has_to_be_attached_again(checkpoints):
    def perceptron():
        return torch.nn.Sequential(
            collections.OrderedDict(
                flat=torch.nn.Flatten(), fc1=torch.nn.Linear(64, 3), act=torch.nn.ReLU(), out=torch.nn.Linear(3, 10)
            )
        )

    zoo = za.add(checkpoints.parent / "zoo", checkpoints / "a", net=perceptron, data="digits").zoo
    assert zoo["a"].module()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    opened = za.open(zoo.path)
    with pytest.raises(NetError, match=r"zoo\.attach_net\('perceptron', your_factory\)"):
        opened["a"].module()
    opened.attach_net("perceptron", perceptron)
    assert len(opened.cohorts()[0].load()) == 1


def test_names_under_one_root_fit_a_net_without_it(tmp_path):
    torch.save({f"backbone.net.{k}": v for k, v in mlp(3).items()}, tmp_path / "deep.pt")
    zoo = za.add(tmp_path / "zoo", tmp_path / "deep.pt").zoo
    assert next(iter(zoo[0].tensors)) == "backbone.net.fc1.weight"
    zoo.set_net("mlp", net_params={"width": 3}, data="digits")
    assert list(zoo[0].tensors) == list(mlp(3)) and len(zoo.cohorts()[0].load()) == 1
    other = za.add(
        tmp_path / "other", tmp_path / "deep.pt", net="mlp", net_params={"width": 3}, data="digits", copy=True
    )
    assert set(other.zoo[0].tensors) == set(mlp(3))
    assert other.zoo[0].row["arch"] == za.open(zoo.path)[0].row["arch"]
    copied = za.add(tmp_path / "third", tmp_path / "deep.pt", copy=True).zoo
    with pytest.raises(
        NetError, match=r"has 'backbone\.net\.' before every name .*add it again with net= and copy=True"
    ):
        copied.set_net("mlp", net_params={"width": 3}, data="digits")


def test_counters_that_old_checkpoints_lack_are_filled_in(tmp_path):
    def normed():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))

    state = {k: v for k, v in normed().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    zoo = za.add(tmp_path / "zoo", tmp_path / "old.pt", net=normed, data="digits").zoo
    assert zoo.cohorts()[0].load().buffers["1.num_batches_tracked"].tolist() == [0]
    assert zoo["old"].module()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert zoo["old"].row["n_params"] == 128 + 650


def test_a_net_without_data_takes_its_shapes_from_the_parameters(tmp_path):
    torch.save(mlp(0), tmp_path / "a.pt")
    with pytest.raises(NetError, match=r"net 'mlp' needs in_shape and n_outputs; name the data"):
        za.add(tmp_path / "zoo", tmp_path / "a.pt", net="mlp", net_params={"width": 3})
    params = {"width": 3, "in_shape": [64], "n_outputs": 10}
    zoo = za.add(tmp_path / "zoo", tmp_path / "a.pt", net="mlp", net_params=params).zoo
    zoo.measure("weight_norm")
    norm = sum(v.square().sum() for v in mlp(0).values()).sqrt().item()
    assert zoo["a"].measures["weight_norm"] == pytest.approx(norm, rel=1e-4)
    with pytest.raises(za.ZoariumError, match=r"'a' comes from elsewhere and names no data; .*zoo\.set_net"):
        zoo.measure("performance")


def test_data_that_a_zoo_knows_as_others_are_refused(checkpoints):
    grown = za.grow("mlp", width=[2], epochs=0, out=checkpoints.parent / "zoo", data="digits")
    other = za.data.from_arrays(torch.zeros(20, 64), torch.arange(20) % 10, name="digits")
    with pytest.raises(StoreError, match=r"data 'digits' are not what .* knows by that name"):
        grown.add(checkpoints, net="mlp", net_params={"width": 3}, data=other)


def test_options_without_a_net_are_refused(checkpoints):
    with pytest.raises(StoreError, match="net_params are of a net; name it too"):
        za.add(checkpoints.parent / "zoo", checkpoints, net_params={"width": 3})
    with pytest.raises(StoreError, match="data are what a net reads; name the net too"):
        za.add(checkpoints.parent / "zoo", checkpoints, data="digits")


# ------------------------------------------------------------------------------------------------ the rest of a zoo


def test_models_without_a_net_are_left_out_of_cohorts_and_said_where_none_is_left(zoo, checkpoints):
    assert zoo.cohorts() == []
    with pytest.raises(
        MeasureError, match=r"performance runs nets, and 'a', like all models here, comes from elsewhere"
    ):
        zoo.measure("performance")
    with pytest.raises(
        NetError, match=r"model 'a' comes from elsewhere and has no net here; give it with zoo\.set_net"
    ):
        zoo["a"].module()
    with pytest.raises(za.ZoariumError, match=r"no model here has weights of a net that is known; .*zoo\.set_net"):
        zoo.as_dataset(targets=["n_params"])
    with pytest.raises(StoreError, match="none of these 1 models is foreign"):
        za.grow("mlp", width=[2], epochs=0).set_net("mlp")


def test_grown_and_foreign_models_live_in_one_zoo(checkpoints):
    zoo = za.grow("mlp", width=[2, 4], seed=range(2), epochs=1, out=checkpoints.parent / "zoo")
    added = zoo.add(checkpoints)
    assert added.zoo is zoo and len(zoo) == 7 and zoo.axes == ["width"]
    zoo.measure("performance")
    assert len(zoo.values("test_accuracy")) == 4
    assert zoo.cells()["cell"].to_list()[:2] == ["width=2", "width=4"]
    assert [n for cell, n in zoo.cells().select("cell", "n").iter_rows() if cell.startswith("arch=")] == [2, 1]
    again = za.grow("mlp", width=[2, 4, 8], seed=range(2), epochs=1, out=zoo.path)
    assert len(again) == 9 and len(again.where(status="foreign")) == 3


def test_check_names_references_that_are_missing_or_changed_and_repair_sets_them_aside(zoo, checkpoints):
    (checkpoints / "a" / "model.pt").unlink()
    (checkpoints / "b" / "model.pt").write_bytes(b"other")
    found = zoo.check().filter(pl.col("id").is_not_null())
    assert dict(found.select("id", "state").iter_rows()) == {"a": "missing", "b": "damaged", "c": "ok"}
    zoo.check(repair=True)
    assert dict(zoo.table.select("id", "status").iter_rows()) == {"a": "damaged", "b": "damaged", "c": "foreign"}
    torch.save({"state_dict": mlp(ord("a")), "epoch": 1}, checkpoints / "a" / "model.pt")
    assert zoo.add(checkpoints / "a").counts["known"] == 1
    assert zoo["a"].status == "foreign" and set(zoo.where(status="foreign").ids) == {"a", "c"}
    assert torch.equal(zoo["a"].tensor("fc1.bias"), mlp(ord("a"))["fc1.bias"])


def test_saved_zoos_find_their_references_from_their_new_place(zoo, tmp_path):
    saved = zoo[["a", "c"]].save(tmp_path / "far" / "away" / "zoo")
    assert saved.ids == ["a", "c"] and za.open(saved.path).info["version"] == 2
    assert torch.equal(za.open(saved.path)["c"].tensor("fc1.bias"), mlp(ord("c"), 5)["fc1.bias"])


def test_export_show_and_report_take_foreign_models(zoo, tmp_path):
    folder = zoo["a"].export(tmp_path / "out")
    assert torch.equal(load_file(folder / "model.safetensors")["fc1.bias"], mlp(ord("a"))["fc1.bias"])
    assert json.loads((folder / "config.json").read_text())["config"]["source"] == zoo["a"].row["source"]
    assert "3 foreign" in repr(zoo) and "foreign" in zoo._repr_html_() and "foreign" in repr(zoo["a"])
    assert "3 models" in zoo.report(tmp_path / "report.html").read_text()


def test_older_readers_are_told_of_the_newer_format_only_where_it_is_used(zoo, checkpoints, tmp_path):
    assert json.loads((zoo.path / "zoo.json").read_text())["version"] == 2
    plain = za.add(tmp_path / "copies", checkpoints, copy=True).zoo
    assert json.loads((plain.path / "zoo.json").read_text())["version"] == 1


def test_a_view_of_a_zoo_is_read_in_another_process(zoo):
    view = pickle.loads(pickle.dumps(zoo[["c"]]))
    assert view.ids == ["c"] and torch.equal(view[0].tensor("fc1.bias"), mlp(ord("c"), 5)["fc1.bias"])
