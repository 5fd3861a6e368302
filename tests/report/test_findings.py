from __future__ import annotations

import polars as pl
import pytest

from zoarium.report import collect, findings
from zoarium.report.findings import Finding
from zoarium.report.tracking import advantage, interval, spearman


def test_the_three_findings_of_the_digits_grid_carry_their_numbers(card_data):
    averaging, tracker, alignment = findings(card_data)
    assert "IV-B (generalising" in averaging.text and "phase I (" in averaging.text
    assert averaging.numbers["IV-B"] > averaging.numbers["I"]
    assert "ρ" in tracker.text and tracker.numbers["low"] < tracker.numbers["rho"] < tracker.numbers["high"]
    assert alignment.numbers["aligned"] > alignment.numbers["plain"] and alignment.numbers["share"] > 0.9


def test_findings_follow_the_numbers_not_the_story(card):
    """With the signs of an effect turned round, the best and the worst phase change places."""
    zoo, phases = card
    data = collect(zoo, phases=phases)
    turned = data.effects.with_columns(
        -pl.col("mean"), low=-pl.col("high"), high=-pl.col("low"), baseline=-pl.col("baseline")
    )
    object.__setattr__(data, "effects", turned)
    first = findings(data)[0]
    assert first.text.index("phase I (") < first.text.index("phase IV-B") and "gains" in first.text


def test_collapsed_and_ambiguous_cells_are_never_quoted_as_a_phase(card_data):
    for finding in findings(card_data, 7)[:5]:
        assert "collapsed" not in finding.text and "ambiguous" not in finding.text


def test_a_zoo_without_measures_still_says_something(card):
    zoo, _ = card
    data = collect(zoo[:0])
    assert [f.title for f in findings(data)] == ["An empty zoo"]


def test_a_finding_prints_as_its_sentence():
    assert str(Finding("t", "It works.")) == "It works."


def test_spearman_of_a_monotone_relation_is_one():
    assert spearman([1.0, 2.0, 10.0], [0.1, 5.0, 6.0]) == pytest.approx(1.0)
    assert spearman([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(-1.0)


def test_the_interval_of_a_correlation_narrows_with_cells_and_holds_it():
    few, many = interval(0.6, 10), interval(0.6, 1000)
    assert few[0] < many[0] < 0.6 < many[1] < few[1]


def test_the_advantage_of_a_measure_is_the_gap_of_its_correlation_with_an_interval(card_data):
    best, *others = card_data.tracking
    for rival in others[:2]:
        gap, low, high = advantage(card_data, best, rival)
        assert gap == pytest.approx(abs(best.rho) - abs(rival.rho), abs=0.02)
        assert low <= gap <= high
    assert advantage(card_data, best, best) == (0, 0, 0)
