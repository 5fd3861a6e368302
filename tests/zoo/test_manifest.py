from __future__ import annotations

import json
import shutil

import pytest

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo import Zoo
from zoarium.zoo import open as open_zoo


def test_a_folder_that_is_no_zoo_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"is not a zoo: it has no zoo\.json"):
        open_zoo(tmp_path)
    with pytest.raises(StoreError, match="is not a zoo: there is no such folder"):
        open_zoo(tmp_path / "nowhere")
    (tmp_path / "zoo.json").write_text('{"format": "something else"}')
    with pytest.raises(StoreError, match="does not describe a zoo"):
        open_zoo(tmp_path)


def test_a_new_zoo_is_not_made_where_something_lies_already(tmp_path, zoo):
    with pytest.raises(StoreError, match=r"already holds a zoo; open it with za\.open"):
        Zoo.create(zoo.path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="is not empty"):
        Zoo.create(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").read_text() == "mine"
    with pytest.raises(StoreError, match="is not empty"):
        Zoo.create(tmp_path / "other" / "thesis.tex")


def resigned(zoo: Zoo, **changes: object) -> None:
    """Change the manifest and give it a checksum that fits, as somebody who means harm would."""
    from zoarium.zoo.manifest import _checksum

    raw = json.loads((zoo.path / "zoo.json").read_text())
    raw.pop("checksum")
    for key, value in changes.items():
        raw[key] = value(raw[key]) if callable(value) else value
    raw["checksum"] = _checksum(raw)
    (zoo.path / "zoo.json").write_text(json.dumps(raw))


def test_a_newer_format_names_both_versions_and_the_upgrade(zoo):
    resigned(zoo, version=99, something_new={"a": 1})
    with pytest.raises(StoreError, match=r"format version 99, .* up to 2; run: pip install -U zoarium"):
        open_zoo(zoo.path)


@pytest.mark.parametrize("length", [0, 1, 100, -1, -40])
def test_a_truncated_manifest_is_one_sentence(zoo, length):
    path = zoo.path / "zoo.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match=r"zoo\.json is cut short or damaged"):
        open_zoo(zoo.path)


def test_deeply_nested_json_is_refused(zoo):
    (zoo.path / "zoo.json").write_text("[" * 200_000)
    with pytest.raises(DamagedError, match="cut short or damaged"):
        open_zoo(zoo.path)


@pytest.mark.parametrize(
    "name",
    [
        "../models.parquet", "/etc/passwd", "weights/../../x.safetensors", "weights/a/b.safetensors", "run.py",
        "weights/.hidden.safetensors", "weights\\x.safetensors", "measures/x.pkl", "weights/x\n.safetensors",
    ],
)  # fmt: skip
def test_a_manifest_cannot_name_a_file_outside_the_zoo(zoo, name):
    resigned(zoo, files=lambda files: {**files, name: next(iter(files.values()))})
    with pytest.raises(DamagedError, match="is not one a zoo can hold"):
        open_zoo(zoo.path)


@pytest.mark.parametrize("change", [{"size": -1}, {"size": "12"}, {"sha256": "zz"}, {"rows": 1e30}, {"extra": 1}])
def test_a_manifest_with_impossible_facts_is_refused(zoo, change):
    resigned(zoo, files=lambda files: {name: {**info, **change} for name, info in files.items()})
    with pytest.raises(DamagedError, match=r"zoo\.json cannot be used: files\."):
        open_zoo(zoo.path)


@pytest.mark.parametrize("name", ["history.parquet", "weights/w2@2.safetensors"])
def test_a_link_that_leads_out_of_the_zoo_is_refused(tmp_path, zoo, name):
    outside = tmp_path / "outside"
    shutil.move(zoo.path / name, outside)
    (zoo.path / name).symlink_to(outside)
    found = open_zoo(zoo.path)
    with pytest.raises(StoreError, match="is a link that leads out of the zoo"):
        _ = found.history if "history" in name else found["mlp-w2-s0"].state_dict()


def test_a_table_that_claims_more_rows_than_it_was_written_with_is_refused(zoo):
    resigned(zoo, files=lambda files: {name: {**info, "rows": 10**12} for name, info in files.items()})
    with pytest.raises(DamagedError, match="claims 6 rows"):
        open_zoo(zoo.path)


def test_a_temporary_zoo_goes_with_its_object_and_a_saved_one_stays(tmp_path, filled):
    zoo = filled(Zoo.create())
    path = zoo.path
    kept = zoo.save(tmp_path / "kept")
    view = zoo[:2]
    del zoo
    assert path.exists()
    assert len(view) == 2
    del view
    assert not path.exists()
    assert len(open_zoo(kept.path)) == 6
