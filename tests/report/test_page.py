from __future__ import annotations

import base64
import hashlib
import html
import json
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoarium._core.errors import ZoariumError
from zoarium.report import bundle as bundle_module
from zoarium.report import collect, write_report
from zoarium.report.escape import embedded, text

EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


@given(
    st.recursive(
        st.text() | st.integers() | st.none() | st.booleans(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_embedded_json_holds_any_value_and_cannot_end_its_element(value):
    written = embedded(value)
    assert not set(written) & set("<>&") and written.isascii()
    assert json.loads(written) == value


@given(st.text())
def test_escaped_text_reads_back_and_holds_no_markup(value):
    written = text(value)
    assert not set(written) & set("<>\"'")
    assert html.unescape(written) == html.unescape(html.escape(value.encode("utf-8", "replace").decode()))


def test_numbers_that_json_lacks_become_null():
    assert embedded([float("nan"), float("inf"), 1.5]) == "[null,null,1.5]"


def test_half_a_surrogate_pair_in_a_name_does_not_stop_the_report():
    assert text("a\ud800b") == "a?b"


def test_the_page_holds_every_model_and_every_cell(report, card):
    zoo, _ = card
    data = data_of(report.read_text())
    assert len(data["models"]["cell"]) == len(zoo) == 126
    assert len(data["cells"]["cell"]) == 42
    assert data["models"]["rows"]["c0"] == zoo.ids


def test_the_page_may_run_its_own_scripts_only_and_load_nothing(report):
    page = report.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    body = page
    for script in scripts:
        body = body.replace(script, "")
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", body), "something is loaded from elsewhere"


def test_evil_names_are_text_everywhere(make_zoo, tmp_path):
    zoo, phases = make_zoo(
        tmp_path / "zoo", {"width": (2, 4), "batch_size": (8, 16)}, lambda p: "I", rename=lambda i: i + EVIL
    )
    phases = phases.with_columns(phase=pl.lit(EVIL))
    page = write_report(collect(zoo, phases=phases, title=EVIL), tmp_path / "r.html").read_text()
    assert page.count("<script") == 3
    assert "<img" not in page.replace(bundle_module.bundle(), "")
    assert data_of(page)["models"]["rows"]["c0"][0].endswith(EVIL)


def test_a_report_without_phases_says_why(make_zoo, tmp_path):
    zoo, _ = make_zoo(tmp_path / "zoo", {"width": (2, 4), "batch_size": (8, 16)}, lambda p: "I", measured=False)
    page = write_report(zoo, tmp_path / "r.html").read_text()
    assert "Cells have no phase labels" in page and 'id="phases"' not in page


@pytest.mark.parametrize(
    "axes", [{}, {"width": (8,)}, {"width": (2, 4, 8)}, {"width": (2, 4), "lr_": (0.1,), "label_noise": (0.0, 0.1)}]
)
def test_any_shape_of_grid_makes_a_report(make_zoo, tmp_path, axes):
    zoo, phases = make_zoo(tmp_path / "zoo", axes, lambda p: "IV-B", seeds=2)
    page = write_report(collect(zoo, phases=phases), tmp_path / "r.html").read_text()
    assert len(data_of(page)["cells"]["cell"]) == len(zoo.cells())


def test_twelve_thousand_models_fit_in_five_megabytes(make_zoo, tmp_path):
    zoo, phases = make_zoo(
        tmp_path / "zoo", {"width": tuple(range(2, 72)), "batch_size": tuple(range(8, 68))}, lambda p: "III", epochs=4
    )
    path = write_report(collect(zoo, phases=phases), tmp_path / "r.html")
    assert len(zoo) == 12_600 and path.stat().st_size < 5e6


def test_a_report_that_cannot_be_written_says_where(card_data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZoariumError, match=r"cannot write .*file"):
        write_report(card_data, tmp_path / "file" / "report.html")


def test_a_damaged_bundle_in_the_cache_is_made_again(tmp_path, monkeypatch):
    made = []
    monkeypatch.setenv("ZOARIUM_CACHE", str(tmp_path))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: made.append(1) or "let x;\r\n")
    fresh = bundle_module.bundle.__wrapped__
    assert fresh() == "let x;\n" and fresh() == "let x;\n" and len(made) == 1
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes().replace(b"x", b"y"))
    assert fresh() == "let x;\n" and len(made) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOARIUM_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: "let x;")
    assert bundle_module.bundle.__wrapped__() == "let x;"
