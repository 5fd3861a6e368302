from __future__ import annotations

import json
import math

import altair as alt
import polars as pl
import pytest

from zoarium._core.errors import StoreError
from zoarium.studies import Check, StudyResult, studies_page


def result(*checks: Check, budget: str = "full", **more) -> StudyResult:
    return StudyResult(
        number="99", title="A title", claim="A claim.", data="Some data.", baseline="The obvious.",
        falsifier="it fails.", reference="Someone 2020", seeds=[1, 2], budget=budget, seconds=1.5,
        checks=checks, **more,
    )  # fmt: skip


GOOD = Check("rho", {1: 0.7, 2: 0.9}, 0.6, ">=", baseline=0.2, baseline_name="loss alone")
BAD = Check("gap | pp", {1: 3.0, 2: -1.0}, 2.0, ">=", note="seed 2 reverses")
TOLD = Check("aside", {1: 0.1, 2: 0.2})


def test_a_claim_holds_only_if_every_seed_meets_the_threshold():
    assert GOOD.verdict == "reproduced"
    assert BAD.verdict == "not reproduced"
    assert BAD.value == pytest.approx(1.0)
    assert BAD.interval == (-1.0, 3.0)


@pytest.mark.parametrize(
    ("comparison", "verdict"), [(">=", "reproduced"), ("<=", "reproduced"), (">", "not reproduced")]
)
def test_equality_meets_a_threshold_only_where_it_says_so(comparison, verdict):
    assert Check("x", {1: 2.0}, 2.0, comparison).verdict == verdict


def test_a_missing_value_is_not_reproduced():
    check = Check("x", {1: math.nan, 2: 5.0}, 0.0)
    assert check.verdict == "not reproduced"
    assert math.isnan(check.value)


def test_a_number_without_threshold_is_reported_and_not_judged():
    assert TOLD.verdict == "reported only"
    assert result(TOLD).reproduced


def test_one_missed_check_fails_the_study():
    assert result(GOOD, TOLD).reproduced
    assert not result(GOOD, BAD, TOLD).reproduced
    assert "1 of 2" in result(GOOD, BAD, TOLD).verdict


def test_a_small_run_reproduces_nothing():
    assert not result(GOOD, budget="small").reproduced


def test_the_text_holds_claim_data_baseline_values_thresholds_and_verdicts():
    text = result(GOOD, BAD, TOLD).text()
    for part in (
        "A claim.",
        "Some data.",
        "The obvious.",
        "0.8 [0.7, 0.9]",
        ">= 0.6",
        "loss alone 0.2",
        "not reproduced",
    ):
        assert part in text


def test_stored_results_hold_tables_figures_and_json_without_nan(tmp_path):
    table = pl.DataFrame({"x": [1, 2], "y": [3.0, 4.0]})
    chart = alt.Chart(table).mark_point().encode(x="x:Q", y="y:Q")
    home = result(GOOD, Check("x", {1: math.nan}, 0.0), tables={"cells": table}, figures={"map": chart}).save(tmp_path)
    content = json.loads((home / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert content["checks"][1]["value"] is None
    assert pl.read_parquet(home / "cells.parquet").equals(table)
    assert (home / "map.svg").read_text().startswith("<svg")
    assert (home / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_every_check_and_its_verdict_and_escapes_its_tables(tmp_path):
    result(GOOD, BAD, TOLD).save(tmp_path)
    page = studies_page(tmp_path)
    assert "**not reproduced**" in page
    assert "gap \\| pp" in page
    assert "seed 2 reverses" in page
    assert page == studies_page(tmp_path)


def test_figures_are_embedded_or_copied_beside_the_page(tmp_path):
    table = pl.DataFrame({"x": [1], "y": [1]})
    chart = alt.Chart(table).mark_point().encode(x="x:Q", y="y:Q")
    result(GOOD, figures={"map": chart}).save(tmp_path / "results")
    assert "data:image/svg+xml;base64," in studies_page(tmp_path / "results")
    assert "(assets/99-map.svg)" in studies_page(tmp_path / "results", assets=tmp_path / "assets")
    assert (tmp_path / "assets" / "99-map.svg").exists()


def test_no_results_say_how_to_make_some(tmp_path):
    with pytest.raises(StoreError, match="study run"):
        studies_page(tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    home = result(GOOD).save(tmp_path)
    (home / "result.json").write_text("{")
    with pytest.raises(StoreError, match=r"result\.json is not a stored study"):
        studies_page(tmp_path)
