from __future__ import annotations

import re
from pathlib import Path

from zoarium.zoo.manifest import FORMAT_VERSION, Manifest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def test_the_documented_way_to_read_a_model_without_zoarium_works(zoo, monkeypatch):
    monkeypatch.chdir(zoo.path.parent)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict = {}
    exec(code, names)
    expected = zoo[names["checkpoint"]["id"]].state_dict(names["checkpoint"]["epoch"])
    assert {k: v.tolist() for k, v in names["state"].items()} == {k: v.tolist() for k, v in expected.items()}


def test_every_field_of_the_manifest_is_documented():
    assert f"format version {FORMAT_VERSION};" in DOCUMENT
    for field in [*Manifest.model_fields, "checksum"]:
        assert f"`{field}`" in DOCUMENT
