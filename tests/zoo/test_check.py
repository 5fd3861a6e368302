from __future__ import annotations

import random
import shutil

import polars as pl
import pytest
import torch

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo import open as open_zoo
from zoarium.zoo.backup import copies_of
from zoarium.zoo.check import check_zoo

FILES = [
    "zoo.json", "models.parquet", "checkpoints.parquet", "history.parquet", "measures/norm.parquet",
    "pairs/cka.parquet", "cells/gain.parquet", "weights/w2@2.safetensors", "data/",
]  # fmt: skip


def flip(path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def find(zoo, name: str):
    return next(zoo.path.glob("data/*")) if name == "data/" else zoo.path / name


def answer(path, content) -> object:
    """What a zoo says, or the error it gives."""
    try:
        return content(open_zoo(path))
    except StoreError as error:
        return str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_detected_and_named_or_changes_nothing(zoo, content, name):
    before = content(zoo)
    path = find(zoo, name)
    size = path.stat().st_size
    draw = random.Random(name)
    detected = 0
    for offset in [*range(min(size, 12)), *(draw.randrange(size) for _ in range(18)), size - 1]:
        bit = draw.randrange(8)
        flip(path, offset, bit)
        said = answer(zoo.path, content)
        flip(path, offset, bit)
        if isinstance(said, str):
            detected += 1
            assert path.name in said
            assert "\n" not in said
        else:
            assert said == before
            assert name == "zoo.json" or name.endswith(".safetensors")
    assert detected > 15
    assert content(open_zoo(zoo.path)) == before


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_missing_is_named(zoo, content, name):
    path = find(zoo, name)
    whole = path.read_bytes()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(StoreError, match=path.name):
            content(open_zoo(zoo.path))
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        content(open_zoo(zoo.path))


def test_damaged_weights_name_the_model_and_the_way_out_and_spare_the_others(zoo):
    path = zoo.path / "weights/w2@2.safetensors"
    weight = zoo["mlp-w2-s1"].state_dict()["fc1.weight"].numpy().tobytes()
    flip(path, path.read_bytes().index(weight) + 5)
    damaged = open_zoo(zoo.path)
    with pytest.raises(DamagedError, match=r"w2@2\.safetensors: .*'mlp-w2-s1' at epoch 2 .*zoarium check .* --repair"):
        damaged["mlp-w2-s1"].state_dict()
    for other in ("mlp-w2-s0", "mlp-w2-s2", "mlp-w3-s1"):
        assert damaged[other].state_dict().keys() == zoo[other].state_dict().keys()
    with pytest.raises(DamagedError, match="'mlp-w2-s1'"):
        damaged.cohorts()[0].load()


def test_a_sound_zoo_is_found_sound_file_by_file_and_model_by_model(zoo):
    report = check_zoo(zoo.path)
    assert set(report["state"]) == {"ok"}
    assert len(report.filter(pl.col("id").is_not_null())) == 12
    assert set(report.filter(pl.col("id").is_null())["file"]) == {
        "zoo.json", *zoo.store.manifest.files, *copies_of(zoo.store.manifest)
    }  # fmt: skip


def test_repair_sets_the_damaged_model_aside_and_leaves_a_sound_zoo(zoo):
    path = zoo.path / "weights/w2@2.safetensors"
    weight = zoo["mlp-w2-s1"].state_dict()["fc1.weight"].numpy().tobytes()
    expected = zoo["mlp-w2-s2"].state_dict()
    flip(path, path.read_bytes().index(weight) + 5)
    report = check_zoo(zoo.path, repair=True)
    bad = report.filter(pl.col("state") != "ok")
    assert bad.select("file", "id", "epoch").rows() == [
        ("weights/w2@2.safetensors", None, None), ("weights/w2@2.safetensors", "mlp-w2-s1", 2),
    ]  # fmt: skip
    found = open_zoo(zoo.path)
    assert found["mlp-w2-s1"].status == "damaged"
    assert found["mlp-w2-s1"].epochs == [1]
    assert set(found.check()["state"]) == {"ok"}
    assert [len(ref.load()) for ref in found.cohorts()] == [2, 3]
    assert found.cells()["n"].to_list() == [2, 3]
    assert all(torch.equal(v, expected[k]) for k, v in found["mlp-w2-s2"].state_dict().items())


def test_an_earlier_checkpoint_that_is_damaged_goes_without_its_model(zoo):
    (zoo.path / "weights/w3@1.safetensors").write_bytes(b"")
    check_zoo(zoo.path, repair=True)
    found = open_zoo(zoo.path)
    assert set(found.table["status"]) == {"trained"}
    assert found["mlp-w3-s0"].epochs == [2]
    assert set(found.check()["state"]) == {"ok"}
    assert not (zoo.path / "weights/w3@1.safetensors").exists()


def test_a_lost_weights_file_marks_every_model_that_ended_in_it(zoo):
    (zoo.path / "weights/w3@2.safetensors").unlink()
    report = check_zoo(zoo.path, repair=True)
    assert report.filter(pl.col("state") == "missing")["file"].to_list() == ["weights/w3@2.safetensors"]
    found = open_zoo(zoo.path)
    assert found.where(status="damaged").ids == ["mlp-w3-s0", "mlp-w3-s1", "mlp-w3-s2"]
    assert set(found.check()["state"]) == {"ok"}


def test_damaged_measures_are_forgotten_and_damaged_data_asked_for(zoo, tiny):
    flip(zoo.path / "measures/norm.parquet", 20)
    flip(find(zoo, "data/"), -1)
    check_zoo(zoo.path, repair=True)
    found = open_zoo(zoo.path)
    assert found.measures == ["cka", "gain"]
    with pytest.raises(Exception, match=r"attach_data\('tiny'"):
        found.data_of("mlp-w2-s0")
    found.attach_data("tiny", tiny())
    assert found.data_of("mlp-w2-s0").fingerprint == tiny().fingerprint
    assert set(found.check()["state"]) == {"ok"}


@pytest.mark.parametrize("name", ["models", "checkpoints"])
def test_tables_that_nothing_can_rebuild_are_not_thrown_away(zoo, name):
    path = zoo.path / f"{name}.parquet"
    flip(path, 20)
    flip(next(zoo.path.glob(f"backup/{name}-*")), 20)
    content = path.read_bytes()
    assert "damaged" in set(check_zoo(zoo.path)["state"])
    with pytest.raises(DamagedError, match="its copy in backup/ is damaged too, so it cannot be rebuilt: restore it"):
        check_zoo(zoo.path, repair=True)
    assert path.read_bytes() == content


def test_checking_changes_nothing(zoo):
    flip(zoo.path / "weights/w2@2.safetensors", -1)
    copy = zoo.path.parent / "copy"
    shutil.copytree(zoo.path, copy)
    check_zoo(zoo.path)
    for path in copy.rglob("*"):
        if path.is_file():
            assert (zoo.path / path.relative_to(copy)).read_bytes() == path.read_bytes()
