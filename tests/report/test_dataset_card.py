"""The card of a zoo on the hub: true, readable, and nothing in it but what it should be."""

from __future__ import annotations

import re

import polars as pl
import pytest
import torch
import yaml

import zoarium as za
from zoarium.report import dataset_card
from zoarium.report.dataset_card import GENERATED
from zoarium.report.markdown import block, code, text
from zoarium.zoo import Zoo


def front(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def blocks(card: str, language: str) -> list[str]:
    return [body for _, body in re.findall(rf"^(`{{3,}}){language}\n(.*?)^\1$", card, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    grid = za.Grid(width=[2, 16], batch_size=[25, 250], seed=range(2), epochs=3)
    zoo = za.grow(grid, tmp_path_factory.mktemp("card") / "zoo", workers=1)
    return zoo.measure("performance", "hessian_trace", "mode_connectivity", "cka", epochs=2, workers=1)


@pytest.fixture(scope="module")
def files(measured):
    return dataset_card(measured, "me/phases", license="apache-2.0")


@pytest.fixture(scope="module")
def card(files):
    return files["README.md"].decode()


def test_the_viewer_is_pointed_at_every_table(card, measured, files):
    facts = front(card)
    assert (facts["license"], facts["size_categories"]) == ("apache-2.0", ["n<1K"])
    told = {one["data_files"] for one in facts["configs"]}
    assert told == {f"{name}.parquet" for name in measured.store.table_names} | {"reports/phases.parquet"}
    assert [one["config_name"] for one in facts["configs"] if one.get("default")] == ["models"]
    names = [one["config_name"] for one in facts["configs"]]
    assert len(set(names)) == len(names)
    assert not any(set(name) & set("<>:/\\|?*") for name in names)
    assert GENERATED in card


@pytest.mark.parametrize(
    ("count", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (50_360, "10K<n<100K"), (10**9, "n>10M")]
)
def test_size_categories_are_the_hubs(count, size):
    from zoarium.report.dataset_card import _size

    assert _size(count) == size


def test_the_snippet_without_zoarium_loads_the_model_it_names(card, measured):
    (snippet,) = [b for b in blocks(card, "python") if "safe_open" in b]
    assert "zoarium" not in snippet
    scope = {"folder": str(measured.path)}
    exec(snippet, scope)
    assert len(scope["models"]) == 8
    expected = measured[scope["last"]["id"]].state_dict()
    assert set(scope["state"]) == set(expected)
    assert all(torch.equal(torch.from_numpy(scope["state"][k]), v) for k, v in expected.items())


def test_phases_are_told_as_text_picture_and_table(card, files, measured):
    assert files["reports/phases.png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert "![Phase of every cell over its axes](reports/phases.png)" in card
    assert str(measured.phase_map()).splitlines()[0] in blocks(card, "text")[0]
    labels = pl.read_parquet(files["reports/phases.parquet"])
    assert labels.select("cell", "phase").equals(measured.phases().select("cell", "phase"))
    for phase, n in labels["phase"].value_counts().iter_rows():
        assert re.search(rf"Cells: .*\b{n} {phase}\b", card)
    assert "were trained for equal epochs" in card


def test_grid_data_and_measures_are_told_with_their_numbers(card, measured):
    assert "| `trained` | 8 |  |" in card
    assert re.search(r"\| `width` \| load .* \| `2`, `16` \|", card)
    info = measured.info["data"]["digits"]
    assert f"`{info['fingerprint']}`" in card
    assert "1,000 + 797" in card
    mean = measured.values("hessian_trace")["value"].mean()
    assert re.search(rf"\| `hessian_trace` \| `hessian_trace` \| model \| 8 \| {mean:.3g}", card)
    assert "`rel_stderr=0.02`" in card
    assert "epochs=2" in card
    assert "torch 2" in card


def test_a_zoo_without_measures_or_weights_or_models_has_a_card(tmp_path):
    zoo = Zoo.create(tmp_path / "empty")
    files = dataset_card(zoo, "me/empty")
    assert list(files) == ["README.md"]
    assert front(files["README.md"].decode())["configs"] == []
    with zoo.writing() as transaction:
        transaction.set_models(pl.DataFrame({"id": ["a"], "status": ["planned"]}))
    card = dataset_card(zoo, "me/empty")["README.md"].decode()
    assert "| `planned` | 1 | not trained yet |" in card
    assert "safe_open(f" not in card


NASTY = [
    "a`b`", "<script>alert(1)</script>", "x\n---\nlicense: mit\n---\n# Title", "|cell|", "[click](javascript:alert(1))",
    "![pic](http://x)", "```\n# out", "'''); import os; os.abort()  # ", "\u202eevil", "*bold* _it_ ~~no~~ $x$",
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_names_from_files_stay_text(name, tmp_path):
    zoo = Zoo.create(tmp_path / "zoo", axes=["width", name], data={name: {
        "fingerprint": "abc", "task": "classification", "n_outputs": 2, "in_shape": [1], "n_train": 1, "n_test": 1,
    }})  # fmt: skip
    with zoo.writing() as transaction:
        models = {"id": [name], "status": ["trained"], "net": [name], "data": [name], "width": [1], name: [name]}
        transaction.set_models(pl.DataFrame(models | {"seed": [0], "relation": [name], "fixed": [name]}))
        transaction.add_weights("w", 1, 1, [name], {"weight": torch.ones(1, 2)})
        values = {"id": [name], "epoch": [1], "quantity": [name], "value": [1.0]}
        transaction.upsert("measures/m", pl.DataFrame(values), key=["id"])
        transaction.update_header(measure_settings={"abc": {"measure": name, name: name}})
    card = dataset_card(zoo, "me/nasty")["README.md"].decode()
    facts = front(card)
    assert facts["license"] == "cc-by-4.0"
    prose = re.sub(r"^(`{3,}).*?^\1$", "", card.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    assert headings == ["nasty", "Load it", "Models", "Data", "Measures", "Files", "Caveats", "Licence and citation"]
    assert "<script" not in prose
    prose = re.sub(r"(?<!\\)`[^`\n]+`", "code", prose)
    assert not re.search(r"(?<!\\)\]\((javascript|http://x)", prose)
    assert "\u202e" not in prose
    widths = {line.count("|") - line.count("\\|") for line in prose.splitlines() if line.startswith("| ")}
    assert widths <= {4, 8, 10}  # cells of our tables, no more
    scope = {"folder": str(zoo.path)}
    exec(next(b for b in blocks(card, "python") if "safe_open" in b), scope)
    assert scope["state"]["weight"].tolist() == [1.0, 1.0]


def test_text_code_and_blocks_cannot_be_left():
    assert text("a_b*c") == r"a\_b\*c"
    assert code("lr=0.1") == "`lr=0.1`"
    assert code("a`b") == r"a\`b"
    assert block("```\nx") == "````\n```\nx\n````"
