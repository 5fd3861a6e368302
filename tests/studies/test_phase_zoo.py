from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from zoarium.studies import STUDIES, StudyError, run_study
from zoarium.studies.s01_phase_zoo import (
    ARMS,
    BATCHES,
    LABELS,
    QUANTITIES,
    WIDTHS,
    checks,
    statistics,
)

MAP = """col I I III III IV-B IV-B | I I III III III IV-B IV-B | II I I III IV-B IV-B IV-B
       | col I I III IV-B IV-B IV-B | col col II I I I IV-B | col col II II II II II"""
CKA = {"I": 0.5, "II": 0.6, "III": 0.8, "IV-B": 0.95, "collapsed": math.nan}
DELTA = {"I": -15.0, "II": -11.0, "III": -6.0, "IV-B": -1.0, "collapsed": math.nan}
GAIN = {"I": 11.0, "II": 12.0, "III": 1.0, "IV-B": 0.2, "collapsed": math.nan}


def cells(seed: int = 0) -> pl.DataFrame:
    """A zoo in which every claim holds: the map of the source's prototype and numbers that follow the phase."""
    draw = np.random.default_rng(seed)
    rows = []
    for batch, line in zip(BATCHES, MAP.split("|"), strict=True):
        for width, label in zip(WIDTHS, line.split(), strict=True):
            phase = "collapsed" if label == "col" else label
            noise = 0.01 * draw.normal(size=len(QUANTITIES))
            row = dict(zip(QUANTITIES, 1.0 + noise, strict=True))
            row |= {"cka": CKA[phase] + noise[0], "aligned_averaging_delta": DELTA[phase] + noise[1],
                    "plain_averaging_delta": DELTA[phase] - 10, "ensembling_gain": GAIN[phase] + noise[2]}  # fmt: skip
            rows.append(
                {
                    "cell": f"{width},{batch}",
                    "width": width,
                    "batch_size": batch,
                    "phase": phase,
                    "confidence": 1.0,
                    **row,
                }
            )
    table = pl.DataFrame(rows)
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def verdicts(clean: pl.DataFrame, noisy: pl.DataFrame | None = None) -> dict[str, str]:
    found = {"clean": {1: statistics(clean, 1)}, "noisy": {1: statistics(clean if noisy is None else noisy, 1)}}
    return {check.name: check.verdict for check in checks(found)}


def test_a_shuffled_map_fails_contiguity_and_the_prototypes_passes():
    name = "E clean: neighbours that agree, above the 99th percentile of permutations"
    order = np.random.default_rng(0).permutation(len(cells()))
    shuffled = cells().with_columns(phase=cells()["phase"].gather(order))
    assert verdicts(cells())[name] == "reproduced"
    assert verdicts(shuffled)[name] == "not reproduced"


def test_where_every_claim_holds_every_check_is_reproduced():
    got = verdicts(cells())
    assert {v for k, v in got.items() if k[0] in "ABCDE" and "A noisy" not in k} == {"reproduced"}
    assert got["A noisy: rho(CKA, aligned averaging delta)"] == "reported only"


def test_claim_a_fails_on_clean_labels_only():
    backwards = cells().with_columns(cka=1 - pl.col("cka"))
    assert verdicts(backwards)["A clean: rho(CKA, aligned averaging delta)"] == "not reproduced"
    assert "not reproduced" not in {v for k, v in verdicts(cells(), backwards).items() if k.startswith("A")}


def test_claim_b_is_judged_in_both_arms():
    flat = cells().with_columns(ensembling_gain=pl.col("train_loss"))
    for arm, got in (("clean", verdicts(flat, cells())), ("noisy", verdicts(cells(), flat))):
        assert got[f"B {arm}: rho(CKA, ensembling gain)"] == "not reproduced"


def test_a_missing_phase_fails_coverage_and_the_gap_to_it():
    gone = cells().with_columns(phase=pl.col("phase").replace({"III": "IV-B"}))
    got = verdicts(gone)
    assert got["E clean: phases with 3 cells or more"] == "not reproduced"
    assert got["D clean: aligned delta of IV-B minus III, points"] == "not reproduced"


@pytest.mark.parametrize("column", ["aligned_averaging_delta", "ensembling_gain"])
def test_collapsed_cells_take_no_part_in_correlations(column):
    table = cells()
    spoiled = table.with_columns(
        pl.when(pl.col("phase") == "collapsed").then(99.0).otherwise(pl.col(column)).alias(column)
    )
    assert statistics(spoiled, 0) == pytest.approx(statistics(table, 0))


def test_the_registered_facts_name_all_that_is_judged():
    facts = STUDIES["01"].facts
    assert facts["seeds"] == [1, 2, 3]
    assert [t[0] for t in facts["thresholds"]] == list("ABCDE")
    assert set(ARMS) == {"clean", "noisy"}
    assert set(LABELS) >= {"I", "II", "III", "IV-A", "IV-B"}


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_that_make_no_sense_are_refused(seeds):
    with pytest.raises(StudyError, match="distinct seeds"):
        run_study("01", seeds=seeds)


def test_an_unknown_study_or_budget_lists_the_known_ones():
    with pytest.raises(StudyError, match=r"Known: 01"):
        run_study("00")
    with pytest.raises(StudyError, match="full, small"):
        run_study("01", budget="huge")  # type: ignore[arg-type]


def test_a_small_run_gives_every_table_figure_and_check(tmp_path):
    seen = []
    result = run_study(
        "01", seeds=[0], budget="small", workers=1, on_progress=lambda *args: seen.append(args[0] / args[1])
    )
    assert not result.reproduced
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(result.tables["cells"]) == 24
    assert {check.name[0] for check in result.checks} >= set("ABCDE")
    home = result.save(tmp_path)
    for name in ("phase_maps", "cka_and_averaging", "effects_by_phase"):
        assert (home / f"{name}.svg").stat().st_size > 1000
