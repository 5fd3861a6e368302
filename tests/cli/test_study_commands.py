import json
import sys

import polars as pl
import pytest

from zoarium.cli.app import run
from zoarium.studies import STUDIES, Check, Findings, study


@pytest.fixture
def threshold():
    """A study whose one number is the seed; reproduced if every seed reaches the threshold."""
    holder = {"value": 1.0}

    @study(
        "98", title="Seeds are large", claim="Every seed is at least one.", data="none", baseline="none",
        falsifier="a seed of zero", seeds=[1, 2], thresholds=[">= 1"], reference="nobody 2000",
    )  # fmt: skip
    def seeds_are_large(seeds, *, budget, workers, progress):
        """Look at the seeds."""
        check = Check("seed", {seed: float(seed) for seed in seeds}, threshold=holder["value"])
        return Findings({"seeds": pl.DataFrame({"seed": seeds})}, [check])

    yield holder
    del STUDIES._methods["98"]


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["zoarium", "study", *map(str, words)])
        code = 0
        try:
            run()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().out

    return call


def test_a_study_that_ran_exits_with_0_whatever_it_found(cli, threshold):
    code, out = cli("run", "98")
    assert code == 0
    assert "reproduced" in out
    threshold["value"] = 5.0
    code, out = cli("run", "98")
    assert code == 0
    assert "not reproduced" in out.lower()


def test_strict_exits_with_1_unless_every_claim_is_reproduced(cli, threshold):
    assert cli("run", "98", "--strict")[0] == 0
    threshold["value"] = 5.0
    assert cli("run", "98", "--strict")[0] == 1


def test_seeds_are_chosen_and_results_come_as_json(cli, threshold):
    code, out = cli("run", "98", "--seeds", "4,7", "--json")
    assert code == 0
    (result,) = json.loads(out)
    assert result["seeds"] == [4, 7]
    assert result["checks"][0]["value"] == 5.5
    assert cli("run", "98", "--seeds", "4,4")[0] == 2


def test_stored_results_become_a_page(cli, threshold, tmp_path):
    assert cli("run", "98", "--store", tmp_path / "results")[0] == 0
    assert cli("page", "--results", tmp_path / "results", "-o", tmp_path / "docs" / "studies.md")[0] == 0
    page = (tmp_path / "docs" / "studies.md").read_text()
    assert "Seeds are large" in page
    assert "a seed of zero" in page
