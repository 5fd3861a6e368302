"""Descent is what files declare, and nothing they write can do more than that."""

from __future__ import annotations

import struct

import pytest
import torch
from safetensors.torch import save_file

import zoarium as za
from zoarium.zoo.foreign.declared import Declared, declared


@pytest.fixture
def home(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    return tmp_path


def said(home, name="model.safetensors"):
    found = declared(za.read_model(home / name), home / name)
    return list(found.parents), found.relation


@pytest.mark.parametrize(("card", "wanted"), [
    ("base_model: org/base", (["hf:org/base"], "finetune")),
    ("base_model:\n- org/a\n- org/b", (["hf:org/a", "hf:org/b"], "merge")),
    ("base_model: org/base\nbase_model_relation: adapter", (["hf:org/base"], "adapter")),
    ("base_model: [org/a, org/a]\nbase_model_relation: quantized", (["hf:org/a"], "quantise")),
    ("base_model: https://example.org/org/base/", (["hf:org/base"], "finetune")),
    ("base_model: /home/somebody/models/base", ([], None)),
    ("base_model: {a: 1}", ([], None)), ("base_model: 7", ([], None)), ("license: mit", ([], None)),
    ("base_model: org/base\nbase_model_relation: [1]", (["hf:org/base"], "finetune")),
    ("base_model: !!python/object/apply:os.system [false]", ([], None)), ("a: [", ([], None)), ("- 1", ([], None)),
    ("[" * 5000, ([], None)),
])  # fmt: skip
def test_the_model_card_names_parents_and_relation(home, card, wanted):
    (home / "README.md").write_text(f"---\n{card}\n---\n# Model\n")
    assert said(home) == wanted


def test_a_card_without_front_matter_declares_nothing(home):
    (home / "README.md").write_text("# Model\nbase_model: org/base\n")
    assert said(home) == ([], None)


def test_adapters_and_configurations_name_their_base(home):
    (home / "config.json").write_text('{"base_model": "org/first"}')
    assert said(home) == (["hf:org/first"], "finetune")
    (home / "config.json").write_text('{"base_model": "org/first", "quantization_config": {"bits": 4}}')
    assert said(home) == (["hf:org/first"], "quantise")
    (home / "adapter_config.json").write_text('{"base_model_name_or_path": "org/second"}')
    assert said(home) == (["hf:org/second"], "adapter")
    (home / "README.md").write_text("---\nbase_model: org/third\n---\n")
    assert said(home) == (["hf:org/third"], "adapter")


def test_files_that_cannot_be_read_declare_nothing(home):
    (home / "config.json").write_text("{")
    (home / "adapter_config.json").write_text("[1]")
    assert said(home) == ([], None)


def test_the_header_of_a_gguf_file_names_its_base(tmp_path, write):
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [("general.base_model.count", 4, struct.pack("<I", 1)),
            ("general.base_model.0.name", 8, text("Tiny Base")),
            ("general.base_model.0.organization", 8, text("org"))]  # fmt: skip
    (tmp_path / "q.gguf").write_bytes(write.gguf([("w", (2,), 0, struct.pack("<2f", 1, 2))], keys))
    assert said(tmp_path, "q.gguf") == (["hf:org/Tiny-Base"], "quantise")


def test_descent_reaches_the_tables(home):
    (home / "README.md").write_text("---\nbase_model: org/base\n---\n")
    zoo = za.add(home / "zoo", home / "model.safetensors").zoo
    assert (zoo[0].parents, zoo[0].relation) == (["hf:org/base"], "finetune")
    assert zoo[0].lineage[1] == {"id": "hf:org/base", "relation": None, "parents": []}


def test_nothing_is_declared_by_an_empty_list():
    assert Declared.of([], "merge") == Declared()
