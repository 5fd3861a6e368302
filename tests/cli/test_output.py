import json
import math

import polars as pl
import pytest
from rich.console import Console

from zoarium.cli import output


@pytest.fixture
def narrow(monkeypatch):
    console = Console(width=60, record=True, highlight=False)
    monkeypatch.setattr(output, "out", console)
    return console


def test_a_wide_table_shows_the_columns_that_fit_and_names_the_others(narrow):
    frame = pl.DataFrame({"id": ["a"], **{f"quantity_{n:02}": [n / 3] for n in range(12)}})
    output.print_frame(frame, as_json=False)
    text = narrow.export_text()
    assert max(map(len, text.splitlines())) <= 60
    assert "quantity_00" in text.splitlines()[1]
    assert "9 more columns: quantity_03" in text
    assert "--json prints everything." in text


def test_a_long_table_says_how_many_rows_are_left(narrow):
    output.print_frame(pl.DataFrame({"n": list(range(2500))}), as_json=False, rows=3)
    assert "2,497 more rows." in narrow.export_text()


def test_numbers_are_never_broken_and_markup_is_text(narrow):
    frame = pl.DataFrame({"name": ["[red]x[/red] " * 8], "value": [123456.789]})
    output.print_frame(frame, as_json=False)
    text = narrow.export_text()
    assert "1.235e+05" in text
    assert "[red]x[/red]" in text


def test_json_holds_every_row_and_null_for_nan(capsys):
    frame = pl.DataFrame({"n": range(100), "x": [math.nan] * 100})
    output.print_frame(frame, as_json=True, rows=3)
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 100
    assert rows[0] == {"n": 0, "x": None}
