import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from zoarium._core.errors import MeasureError, StoreError
from zoarium.measure.phases import (
    PHASES,
    Thresholds,
    describe_axis,
    label_contiguity,
    phase_labels,
    phase_map_text,
    zoo_phase_result,
    zoo_phases,
)  # fmt: skip

# train loss, Hessian trace, mode connectivity (pp), CKA, test error of a typical cell of each phase
TYPICAL = {
    "I": (1.0, 20.0, -9.0, 0.4, 0.3),
    "II": (0.8, 25.0, 9.0, 0.5, 0.25),
    "III": (0.03, 6.0, -4.0, 0.8, 0.05),
    "IV-A": (0.01, 5.0, 0.1, 0.5, 0.10),
    "IV-B": (0.02, 4.0, -0.3, 0.97, 0.03),
    "collapsed": (2.2, 1.0, 0.0, math.nan, 0.9),
}
QUANTITIES = ("train_loss", "hessian_trace", "mode_connectivity", "cka", "test_error")


def table(phases, seeds=3, spread=0.02, random=None):
    """Cells around the typical values, with a relative spread over seeds."""
    random = random or np.random.default_rng(0)
    rows = []
    for n, phase in enumerate(phases):
        row = {"cell": f"c{n}"}
        for quantity, value in zip(QUANTITIES, TYPICAL[phase], strict=True):
            size = seeds * (seeds - 1) // 2 if quantity in ("mode_connectivity", "cka") else seeds
            row[quantity] = (value * (1 + spread * random.normal(size=size))).tolist()
        rows.append(row)
    return pl.DataFrame(rows, schema={"cell": pl.String, **dict.fromkeys(QUANTITIES, pl.List(pl.Float64))})


ALL = [phase for phase in TYPICAL for _ in range(3)]


def test_cells_typical_of_a_phase_get_its_label_with_certainty():
    result = phase_labels(table(ALL))
    assert result.table["phase"].to_list() == ALL
    assert result.table["point_phase"].to_list() == ALL
    assert (result.table["confidence"] == 1).all()
    assert result.table["hessian_agrees"].drop_nulls().all()
    assert result.table["n_seeds"].to_list() == [3] * len(ALL)


def test_every_label_is_a_known_phase():
    assert set(phase_labels(table(ALL)).table["phase"]) <= set(PHASES)


def test_cuts_found_lie_between_the_phases_they_part():
    found = phase_labels(table(ALL)).thresholds
    assert 0.03 < found.loss < 0.8
    assert 6 < found.hessian < 20
    assert 0.5 < found.cka < 0.97
    assert found.mc_band >= 1.0
    assert (found.collapsed_error, found.min_confidence) == (0.6, 0.6)


def test_high_loss_without_a_barrier_is_phase_two_even_when_connectivity_is_near_zero():
    cells = table(["I", "II", "II", "IV-B", "IV-B"])
    cells = cells.with_columns(
        pl.when(pl.col("cell") == "c2")
        .then(pl.lit([0.2, -0.3, 0.1]))
        .otherwise("mode_connectivity")
        .alias("mode_connectivity")
    )
    assert phase_labels(cells).table["phase"][2] == "II"


def test_phase_four_is_not_split_when_its_cells_are_alike():
    result = phase_labels(table(["I", "I", "II", "III", *["IV-B"] * 6]))
    assert "IV-A" not in result.table["phase"].to_list()
    assert any("less than 0.1 in CKA" in note for note in result.notes)


def test_the_band_is_that_of_a_typical_cell_not_of_the_wildest():
    cells = table(["I", "III", "III", "IV-B", "IV-B", "IV-B"]).with_columns(
        pl.when(pl.col("cell") == "c0")
        .then(pl.lit([-40.0, 5.0, -10.0]))
        .otherwise("mode_connectivity")
        .alias("mode_connectivity")
    )
    result = phase_labels(cells)
    assert result.thresholds.mc_band == 1.0
    assert result.table["phase"].to_list()[1:3] == ["III", "III"]


def test_each_threshold_can_be_set_alone():
    cells = table(ALL)
    free = phase_labels(cells)
    strict = phase_labels(cells, thresholds=Thresholds(loss=2.0))
    assert strict.thresholds.loss == 2.0
    assert strict.thresholds.hessian == free.thresholds.hessian
    assert not {"I", "II"} & set(strict.table["phase"])
    wide = phase_labels(cells, thresholds=Thresholds(mc_band=50.0)).table["phase"]
    assert not {"I", "III"} & set(wide)
    split = phase_labels(cells, thresholds=Thresholds(cka=0.99)).table["phase"]
    assert "IV-B" not in set(split) and "IV-A" in set(split)
    assert "collapsed" not in set(phase_labels(cells, thresholds=Thresholds(collapsed_error=0.95)).table["phase"])


def test_collapsed_cells_do_not_move_the_cuts():
    most = [phase for phase in ALL if phase != "collapsed"]
    without, with_them = phase_labels(table(most)), phase_labels(table([*most, *["collapsed"] * 30]))
    assert with_them.thresholds.loss == pytest.approx(without.thresholds.loss)
    assert with_them.thresholds.cka == pytest.approx(without.thresholds.cka)


def test_cells_whose_seeds_all_diverged_are_collapsed():
    cells = table(["I", "IV-B", "IV-B"])
    nan = [math.nan] * 3
    broken = pl.DataFrame([{"cell": "dead", **dict.fromkeys(QUANTITIES, nan)}], schema=cells.schema)
    result = phase_labels(pl.concat([cells, broken])).table
    assert result["phase"].to_list()[-1] == "collapsed"
    assert "not finite" in result["reason"][-1]


def test_one_diverged_seed_leaves_the_cell_to_the_others():
    cells = table(["I", "IV-B", "IV-B"]).with_columns(
        train_loss=pl.Series([[1.0, math.nan, 1.1], [0.02] * 3, [0.02] * 3])
    )
    assert phase_labels(cells).table["phase"][0] == "I"


def test_regression_has_no_test_error_and_collapses_on_outputs_that_do_not_vary():
    cells = table(["I", "III", "IV-B", "IV-B", "collapsed"]).with_columns(test_error=pl.lit([math.nan] * 3))
    assert phase_labels(cells).table["phase"].to_list() == ["I", "III", "IV-B", "IV-B", "collapsed"]


def test_what_is_not_measured_is_ambiguous_and_says_so():
    cells = table(["I", "IV-B", "IV-B"], seeds=1)  # one seed has no pairs
    result = phase_labels(cells).table
    assert set(result["phase"]) == {"ambiguous"} and result["point_phase"].is_null().all()
    assert result["reason"][0] == "no mode_connectivity or cka"
    assert (result["confidence"] == 0).all()


def test_a_test_error_never_measured_is_not_a_collapse():
    cells = table(["I", "III", "IV-B", "IV-B"]).with_columns(
        pl.when(pl.col("cell") == "c0")
        .then(pl.lit([], dtype=pl.List(pl.Float64)))
        .otherwise("test_error")
        .alias("test_error")
    )
    assert phase_labels(cells).table["phase"].to_list() == ["I", "III", "IV-B", "IV-B"]


def test_cells_that_do_not_differ_need_a_threshold_and_say_so():
    same = table(["IV-B"] * 3, spread=0)
    assert "give a threshold" in phase_labels(same).table["reason"][0]
    given = phase_labels(same, thresholds=Thresholds(loss=0.1, cka=0.9)).table
    assert given["phase"].to_list() == ["IV-B"] * 3


def test_confidence_falls_as_a_cell_nears_the_cut():
    confidences = []
    for distance in (4.0, 1.0, 0.25, 0.0):
        cells = table([*["I"] * 4, *["IV-B"] * 6])
        cells = cells.with_columns(
            pl.when(pl.col("cell") == "c9").then(pl.lit([-1 + distance - 0.8, -1.0 + distance, -1 + distance + 0.8]))
            .otherwise("mode_connectivity").alias("mode_connectivity")
        )  # fmt: skip
        confidences.append(phase_labels(cells, thresholds=Thresholds(mc_band=1.0)).table["confidence"][9])
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == 1 and confidences[-1] < 0.8


def test_a_cell_its_seeds_disagree_on_is_ambiguous_unless_less_confidence_will_do():
    cells = table([*["I"] * 4, *["IV-B"] * 6])
    cells = cells.with_columns(
        pl.when(pl.col("cell") == "c9")
        .then(pl.lit([-6.0, 2.0, 1.1]))
        .otherwise("mode_connectivity")
        .alias("mode_connectivity")
    )
    row = phase_labels(cells, thresholds=Thresholds(mc_band=1.0, min_confidence=0.9)).table.row(9, named=True)
    assert row["phase"] == "ambiguous" and row["point_phase"] in ("III", "IV-B") and "resamples" in row["reason"]
    bold = phase_labels(cells, thresholds=Thresholds(mc_band=1.0, min_confidence=0.0)).table.row(9, named=True)
    assert bold["phase"] == bold["point_phase"] == row["point_phase"]


def test_without_resamples_there_is_no_confidence_and_nothing_is_ambiguous():
    result = phase_labels(table(ALL), bootstrap=0).table
    assert result["confidence"].is_null().all() and result["phase"].to_list() == ALL


def test_the_order_of_cells_changes_nothing_but_the_order():
    cells = table(ALL, spread=0.5)
    shuffled = cells.sample(fraction=1.0, shuffle=True, seed=1)
    one, other = phase_labels(cells), phase_labels(shuffled)
    assert one.thresholds == other.thresholds
    assert one.table.sort("cell").equals(other.table.sort("cell"))


def test_the_same_seed_gives_the_same_confidence():
    cells = table(ALL, spread=0.6)
    assert phase_labels(cells, seed=1).table.equals(phase_labels(cells, seed=1).table)
    assert not phase_labels(cells, seed=1).table.equals(phase_labels(cells, seed=2).table)


LISTS = st.lists(st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.none()), max_size=4)


@given(rows=st.lists(st.tuples(*[LISTS] * 5), max_size=6))
@settings(max_examples=80, deadline=None)
def test_any_table_of_numbers_is_labelled(rows):
    cells = pl.DataFrame(
        {
            "cell": [f"c{n}" for n in range(len(rows))],
            **{q: [row[k] for row in rows] for k, q in enumerate(QUANTITIES)},
        },
        schema={"cell": pl.String, **dict.fromkeys(QUANTITIES, pl.List(pl.Float64))},
    )
    result = phase_labels(cells, bootstrap=20)
    assert set(result.table["phase"]) <= set(PHASES)
    assert result.table["confidence"].is_between(0, 1).all()
    assert Thresholds.from_json(result.thresholds.to_json()) == result.thresholds
    for row in result.table.iter_rows(named=True):
        assert row["reason"] or row["phase"] == row["point_phase"]


def test_thresholds_survive_json_and_refuse_what_cannot_be():
    assert Thresholds.from_json(Thresholds(loss=0.1, cka=0.85).to_json()) == Thresholds(loss=0.1, cka=0.85)
    with pytest.raises(MeasureError, match=r"threshold cka must be a number from -1 to 1, found 85"):
        Thresholds(cka=85)
    with pytest.raises(MeasureError, match=r"threshold loss .* found 'low'"):
        Thresholds(loss="low")
    with pytest.raises(MeasureError, match=r"unknown threshold 'los'.*loss"):
        Thresholds.from_json('{"los": 1}')


def test_a_missing_column_and_a_column_of_text_are_named():
    with pytest.raises(MeasureError, match=r"need the column 'cka'"):
        phase_labels(table(ALL).drop("cka"))
    with pytest.raises(MeasureError, match=r"'cka' must hold lists of numbers"):
        phase_labels(table(ALL).with_columns(cka=pl.lit("much")))


# ---------------------------------------------------------------------------------------------------------- of a zoo

CARD = """
col I   III III IVb IVb IVb
I   I   III III IVb IVb IVb
II  I   I   III IVb IVb IVb
col I   I   III IVb IVb IVb
col col II  I   I   I   IVb
col col II  II  II  II  II
"""
WIDTHS, BATCHES = (2, 4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128, 256)
GRID = [
    [{"col": "collapsed", "IVb": "IV-B"}.get(word, word) for word in line.split()] for line in CARD.strip().splitlines()
]


class FakeZoo:
    """The few things asked of a zoo, on the grid of the reference run."""

    load, temperature = "width", "batch_size"

    def __init__(self, axes=("width", "batch_size"), lacking=(), steps=None, diverged=()):
        self.axes, self.lacking = list(axes), lacking
        phases = [phase for line in GRID for phase in line]
        lists = table(phases)
        points = [(w, b) for b in BATCHES for w in WIDTHS]
        self._ids = {f"cell{n}": [f"m{n}-{s}" for s in range(3)] for n in range(len(phases))}
        self._cells = pl.DataFrame(
            {"cell": list(self._ids), "width": [w for w, _ in points], "batch_size": [b for _, b in points],
             "ids": list(self._ids.values())}
        ).select("cell", *axes, "ids")  # fmt: skip
        ids = [i for group in self._ids.values() for i in group]
        self.table = pl.DataFrame(
            {"id": ids, "data": "digits", "batch_size": [b for _, b in points for _ in range(3)],
             "epochs": [30] * len(ids), "steps": pl.Series([steps] * len(ids), dtype=pl.Int64),
             "status": ["diverged" if i in diverged else "trained" for i in ids]}
        )  # fmt: skip
        self._long = {}
        for quantity in QUANTITIES:
            rows = []
            for group, values in zip(self._ids.values(), lists[quantity].to_list(), strict=True):
                paired = quantity in ("mode_connectivity", "cka")
                keys = list(itertools.combinations(group, 2)) if paired else [(i,) for i in group]
                for key, value in zip(keys, values, strict=True):
                    if not set(key) & set(diverged):
                        rows.append((*reversed(key), value))  # pairs may be stored the other way round
            names = ["a", "b"] if len(rows[0]) == 3 else ["id"]
            self._long[quantity] = pl.DataFrame(rows, schema=[*names, "value"], orient="row")

    def cells(self):
        return self._cells

    def values(self, quantity):
        if quantity in self.lacking:
            raise StoreError("not measured")
        return self._long[quantity]

    classes = 10

    @property
    def info(self):
        return {"data": {"digits": {"task": "classification", "n_outputs": self.classes}}}


def test_the_cells_of_a_zoo_get_their_phases_with_axes_and_caveat():
    phases = zoo_phases(FakeZoo())
    assert phases["phase"].to_list() == [phase for line in GRID for phase in line]
    assert phases.columns[:4] == ["cell", "width", "batch_size", "phase"]
    assert phases["load_axis"].unique().to_list() == ["width"]
    assert phases["temperature_axis"].unique().to_list() == ["batch_size"]
    assert "equal epochs" in phases["caveat"][0] and "32 times fewer steps" in phases["caveat"][0]


def test_equal_steps_need_no_caveat():
    assert zoo_phases(FakeZoo(steps=1000))["caveat"].is_null().all()


def test_missing_measures_are_named_with_the_call_that_brings_them():
    with pytest.raises(MeasureError, match=r'zoo\.measure\("performance", "cka"\)'):
        zoo_phases(FakeZoo(lacking=("train_loss", "test_error", "cka")))


def test_an_unknown_axis_lists_the_axes_and_roles_may_be_chosen():
    with pytest.raises(MeasureError, match=r"unknown axis for load 'depth'.*batch_size, width"):
        zoo_phases(FakeZoo(), load="depth")
    swapped = zoo_phases(FakeZoo(), load="batch_size", temperature="width")
    assert swapped["load_axis"][0] == "batch_size" and swapped["phase"].equals(zoo_phases(FakeZoo())["phase"])


def test_axes_nobody_knows_a_part_for_are_listed():
    zoo = FakeZoo()
    zoo.axes, zoo.load, zoo.temperature = ["activation"], None, None
    with pytest.raises(MeasureError, match=r"axes that vary: activation.*zoo\.phases\(load"):
        zoo_phases(zoo)


def test_the_zoos_own_choice_gives_way_when_a_view_has_left_one_value():
    zoo = FakeZoo(axes=("width",))
    assert zoo_phases(zoo)["temperature_axis"].is_null().all()


def test_a_cell_of_diverged_models_is_collapsed_and_one_never_measured_is_not():
    gone = [f"m6-{s}" for s in range(3)]
    assert zoo_phases(FakeZoo(diverged=gone)).row(6, named=True)["phase"] == "collapsed"
    zoo = FakeZoo()
    for quantity, frame in zoo._long.items():
        key = "a" if "a" in frame.columns else "id"
        zoo._long[quantity] = frame.filter(~pl.col(key).is_in(gone))
    row = zoo_phases(zoo).row(6, named=True)
    assert row["phase"] == "ambiguous" and row["reason"] == "no train_loss or mode_connectivity or cka"


def test_only_the_last_epoch_measured_counts():
    zoo = FakeZoo()
    old = zoo._long["train_loss"].with_columns(value=pl.lit(99.0), epoch=pl.lit(1))
    zoo._long["train_loss"] = pl.concat([zoo._long["train_loss"].with_columns(epoch=pl.lit(30)), old])
    assert zoo_phases(zoo)["phase"].equals(zoo_phases(FakeZoo())["phase"])


def test_the_collapsed_error_follows_the_number_of_classes():
    zoo = FakeZoo()
    assert zoo_phase_result(zoo).thresholds.collapsed_error == pytest.approx(0.6)
    zoo.classes = 2
    assert zoo_phase_result(zoo).thresholds.collapsed_error == pytest.approx(1 / 3)


def test_merged_models_have_no_place_on_the_grid():
    zoo = FakeZoo()
    merged = [f"m0-{s}" for s in range(3)]
    zoo.table = zoo.table.with_columns(relation=pl.when(pl.col("id").is_in(merged)).then(pl.lit("merge")))
    assert zoo_phases(zoo)["cell"].to_list() == [f"cell{n}" for n in range(1, 42)]


def test_axes_are_described_physically():
    assert "small width is high load" in describe_axis("width")
    assert "a small batch is hot" in describe_axis("batch_size")
    assert "without a known" in describe_axis("activation")


def test_the_map_in_the_terminal_is_the_grid():
    drawn = str(phase_map_text(zoo_phases(FakeZoo())))
    lines = drawn.splitlines()
    assert lines[0].split() == ["batch_size", "\\", "width", *map(str, WIDTHS)]
    assert [line.split()[1:] for line in lines[1:7]] == [line.split() for line in CARD.strip().splitlines()]
    assert "small width is high load" in drawn and "equal epochs" in drawn


def test_the_map_in_colour_holds_the_same_letters():
    shown = phase_map_text(zoo_phases(FakeZoo()))
    console = Console(width=160, record=True, file=open("/dev/null", "w"), color_system="truecolor")  # noqa: SIM115
    console.print(shown)
    text = console.export_text()
    for line in CARD.strip().splitlines():
        assert any(row.split()[1:] == line.split() for row in text.splitlines())


def test_a_third_axis_gives_a_map_for_each_of_its_values():
    phases = zoo_phases(FakeZoo())
    both = pl.concat([phases.with_columns(label_noise=pl.lit(v)) for v in (0.0, 0.1)])
    both = both.select(
        "cell", "width", "batch_size", "label_noise", pl.exclude("cell", "width", "batch_size", "label_noise")
    )
    shown = phase_map_text(both)
    assert [panel[0] for panel in shown.panels] == ["label_noise = 0.0", "label_noise = 0.1"]
    assert label_contiguity(both).neighbours == 2 * label_contiguity(phases).neighbours


def test_an_ambiguous_cell_shows_its_likeliest_phase_with_a_question_mark():
    phases = pl.DataFrame(
        {"cell": ["a", "b"], "width": [2, 4], "phase": ["ambiguous"] * 2, "point_phase": ["III", None]}
    )
    assert str(phase_map_text(phases, load="width")).splitlines()[1].split() == ["III?", "?"]


def test_labels_of_the_reference_run_lie_together_more_than_chance_allows():
    found = label_contiguity(zoo_phases(FakeZoo()), "width", "batch_size")
    assert found.rate == pytest.approx(0.61, abs=0.005)
    assert found.chance_99 == pytest.approx(0.31, abs=0.02)
    assert found.neighbours == 71 and found.p < 0.002


def test_labels_dealt_at_random_do_not_lie_together():
    phases = zoo_phases(FakeZoo())
    dealt = phases.with_columns(phase=pl.Series(np.random.default_rng(0).permutation(phases["phase"].to_list())))
    assert label_contiguity(dealt).p > 0.01


def test_a_single_cell_has_no_neighbours():
    alone = pl.DataFrame({"cell": ["a"], "width": [2], "phase": ["I"]})
    assert math.isnan(label_contiguity(alone, load="width").rate)
