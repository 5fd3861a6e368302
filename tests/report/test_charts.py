from __future__ import annotations

import json

import altair
import polars as pl
import pytest

from zoarium._core.errors import ZoariumError
from zoarium.report import chart, collect, save_charts
from zoarium.report.charts import chart as spec_of
from zoarium.report.charts import chart_names, standalone
from zoarium.report.maps import cell_rows, colour_scale
from zoarium.report.style import INK, PHASES, phase_style


def without_rows(spec):
    """A specification whose data sets keep one row each: the schema says nothing of rows, but takes long to say it."""
    if isinstance(spec, dict):
        return {k: v[:1] if k == "values" and isinstance(v, list) else without_rows(v) for k, v in spec.items()}
    return [without_rows(v) for v in spec] if isinstance(spec, list) else spec


def test_every_chart_is_valid_vega_lite(card_data):
    kinds = ("phases", "mode_connectivity", "hessian_trace", "curve_train_loss", "effect_ensembling_gain", "tracking")
    for name in kinds:
        altair.Chart.from_dict(without_rows(standalone(card_data, name)))  # validates against the schema


def test_a_chart_of_one_axis_is_valid_vega_lite(make_zoo, tmp_path):
    zoo, phases = make_zoo(tmp_path / "zoo", {"width": (2, 4, 8)}, lambda p: "I")
    data = collect(zoo, phases=phases)
    assert data.y is None
    for name in ("phases", "hessian_trace"):
        altair.Chart.from_dict(without_rows(standalone(data, name)))


def test_a_report_has_a_map_for_every_quantity_and_an_effect_for_every_use(card_data):
    names = chart_names(card_data)
    assert names[0] == "phases"
    assert {"hessian_trace", "mode_connectivity", "cka", "test_accuracy", "tracking"} <= set(names)
    assert "effect_aligned_averaging_delta" in names and "curve_train_loss" in names


def test_hot_is_on_top_and_high_load_on_the_left(card_data):
    encoding = spec_of(card_data, "phases")["encoding"]
    assert encoding["y"]["scale"]["domain"][0] == "8" and "hot →" in encoding["y"]["title"]
    assert encoding["x"]["scale"]["domain"][0] == "2" and encoding["x"]["title"].startswith("← high load")


def test_a_diverging_scale_is_symmetric_about_zero(card_data):
    scale = colour_scale(card_data, card_data.quantity("mode_connectivity"))
    low, high = scale["domain"]
    assert low == -high and scale["domainMid"] == 0


def test_a_collapsed_cell_does_not_stretch_the_colours(card_data):
    trace = {r["cell"]: r for r in cell_rows(card_data, "hessian_trace", "")}
    collapsed = [r["value"] for r in trace.values() if r["phase"] == "collapsed"]
    low, high = colour_scale(card_data, card_data.quantity("hessian_trace"))["domain"]
    assert low < high < max(collapsed)


def test_an_undefined_value_is_no_value_in_the_rows(card_data):
    rows = cell_rows(card_data, "cka", "")
    undefined = [r for r in rows if r["phase"] == "collapsed"]
    assert undefined and all(r["value"] is None and r["shown"] == "–" for r in undefined)


def test_an_unknown_chart_lists_the_known_ones(card_data):
    with pytest.raises(ZoariumError, match=r"unknown chart 'hesian_trace'\. Did you mean 'hessian_trace'\?"):
        chart(card_data, "hesian_trace")


def test_charts_are_saved_as_svg_and_png(card_data, tmp_path):
    svg, png, spec = save_charts(card_data, tmp_path, ("svg", "png", "json"), names=["phases"])
    assert svg.read_text().startswith("<svg") and "IV-B" in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert json.loads(spec.read_text())["title"]["text"] == "Phases"


def test_an_unknown_format_is_refused_before_anything_is_written(card_data, tmp_path):
    with pytest.raises(ZoariumError, match="unknown format of charts 'gif'"):
        save_charts(card_data, tmp_path / "charts", ["gif"])
    assert not (tmp_path / "charts").exists()


def test_letters_are_legible_on_every_phase_colour_and_on_its_palest_tint():
    def light(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for style in PHASES.values():
        assert (light(style.colour) + 0.05) / (light(INK) + 0.05) > 4.5, style.key  # WCAG AA; tints are lighter still


def test_phases_can_be_told_apart_without_colour():
    assert len({style.mark for style in PHASES.values()}) == len(PHASES)


def test_a_label_of_another_rule_is_shown_as_it_is():
    assert phase_style("glassy").name == "glassy"


def test_labels_of_ones_own_replace_the_rule(card):
    zoo, _ = card
    mine = zoo.cells().select("cell").with_columns(phase=pl.lit("glassy"))
    data = collect(zoo, phases=mine)
    rows = cell_rows(data, None, "")
    assert {r["mark"] for r in rows} == {"glassy"} and not data.thresholds
