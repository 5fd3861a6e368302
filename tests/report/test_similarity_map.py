"""The map of similar models: its order, its marks, its files."""

from __future__ import annotations

import json

import altair
import numpy as np
import pytest
import torch

from zoarium.measure.similarity import weight_similarity, weight_similarity_result
from zoarium.report import similarity_map, write_similarity_map
from zoarium.report.errors import ReportError
from zoarium.report.similarity_map import cluster_order


def family(seed: int, names: str) -> dict[str, dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(30, 20, generator=rng)
    return {name: {"w": base + 0.3 * torch.randn(30, 20, generator=rng)} for name in names}


@pytest.fixture(scope="module")
def found():
    one, other = family(0, "ace"), family(1, "bdf")
    mixed = {name: (one | other)[name] for name in "abcdef"} | {"</script><b>": {"v": torch.ones(2, 2)}}
    return weight_similarity_result(mixed)


def test_like_models_stand_side_by_side(found):
    order = cells(found)["order"]
    together = "".join(order).replace("</script><b>", "")
    assert {frozenset(together[:3]), frozenset(together[3:])} == {frozenset("ace"), frozenset("bdf")}


def cells(found):
    spec = similarity_map(found.pairs).to_dict()
    (rows,) = spec["datasets"].values()
    return {"order": spec["encoding"]["x"]["scale"]["domain"], "rows": {(r["x"], r["y"]): r for r in rows}}


def test_the_map_holds_every_pair_both_ways_and_marks_those_that_cannot_be_independent(found):
    rows = cells(found)["rows"]
    assert len(rows) == 49
    assert rows["a", "c"]["value"] == rows["c", "a"]["value"] == pytest.approx(found.pairs["cosine_distance"][1])
    assert rows["a", "c"]["dot"] == "●" and rows["a", "b"]["dot"] == "" and rows["a", "</script><b>"]["value"] is None


def test_pairs_without_a_distance_are_the_farthest():
    distances = np.array([[0, np.nan, 1], [np.nan, 0, np.nan], [1, np.nan, 0]], dtype=float)
    order = cluster_order(distances)
    assert abs(order.index(0) - order.index(2)) == 1
    assert sorted(cluster_order(np.full((4, 4), np.nan))) == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["html", "svg", "png", "json"])
def test_the_map_is_written_in_every_format(found, tmp_path, suffix):
    path = write_similarity_map(found.pairs, tmp_path / "new" / f"map.{suffix}", models=found.models)
    content = path.read_bytes()
    assert content.startswith({"html": b"<!doctype", "svg": b"<svg", "png": b"\x89PNG", "json": b"{"}[suffix])
    if suffix == "json":
        altair.Chart.from_dict(json.loads(content))


def test_names_of_models_cannot_become_markup_and_the_page_loads_nothing(found, tmp_path):
    page = write_similarity_map(found.pairs, tmp_path / "map.html", models=found.models).read_text()
    assert "</script><b>" not in page and "&lt;/script&gt;&lt;b&gt;" in page
    assert "default-src 'none'" in page and "http-equiv" in page


def test_the_page_draws_itself_without_an_error_or_a_request(found, tmp_path, browser):
    browser.open(write_similarity_map(found.pairs, tmp_path / "map.html"))
    browser.wait("document.querySelectorAll('#map svg path').length > 40")
    assert browser.problems == [] and browser.requests == []


def test_a_map_by_spectra_is_drawn_where_no_names_match(tmp_path):
    pairs = weight_similarity([{"u": torch.eye(4) + 0.1}, {"v": torch.ones(3, 3).tril() * 0.5 + 0.1}], spectra=True)
    spec = similarity_map(pairs).to_dict()
    assert spec["title"]["text"] == "Distance of singular values"


def test_unknown_quantities_suffixes_and_crowds_are_refused(found, tmp_path):
    with pytest.raises(
        ReportError, match=r"unknown quantity of a similarity map 'l3_distance'\. Did you mean 'l2_distance'"
    ):
        similarity_map(found.pairs, "l3_distance")
    with pytest.raises(ReportError, match=r"'map.gif'; name it .html, .svg, .png, .json"):
        write_similarity_map(found.pairs, tmp_path / "map.gif")
    pairs = weight_similarity([{"w": torch.full((2, 2), float(n))} for n in range(401)])
    with pytest.raises(ReportError, match="shows 2 to 400 models, found 401"):
        similarity_map(pairs)
