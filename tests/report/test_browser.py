from __future__ import annotations

import polars as pl
import pytest

from zoarium.report import collect, write_report

ROWS = "[...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.textContent))"
SELECTED = "document.documentElement.dataset.selected"
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def click_cell(browser, x: str, y: str, chart: int = 0) -> None:
    """Click the middle of a cell of a map, found by the labels of its axes."""
    place = f"""(() => {{
      const box = document.querySelector('#chart-{chart}');
      box.scrollIntoView({{block: 'center', behavior: 'instant'}});
      const texts = [...box.querySelectorAll('svg text')];
      const centre = (t) => {{ const r = t.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }};
      const svg = box.querySelector('svg').getBoundingClientRect();
      const across = texts.filter(t => t.textContent === '{x}').map(centre).sort((p, q) => q[1] - p[1])[0];
      const down = texts.filter(t => t.textContent === '{y}').map(centre).sort((p, q) => p[0] - q[0])[0];
      return [across[0], down[1]];
    }})()"""
    browser.click(*browser.run(place))


def put(browser, name: str, value: str, event: str = "change") -> None:
    """Fill in a field as a person would."""
    field = f"document.getElementById('{name}')"
    browser.run(f"{{ {field}.value = '{value}'; {field}.dispatchEvent(new Event('{event}')) }}")


def test_the_report_opens_without_an_error_or_a_request(browser, report):
    browser.open(report)
    assert browser.problems == [] and browser.requests == []
    assert browser.run("document.querySelectorAll('.chart svg').length") >= 12


def test_a_click_on_a_cell_selects_exactly_its_models(browser, report, card):
    zoo, _ = card
    browser.open(report)
    click_cell(browser, "32", "64")
    browser.wait(f"{SELECTED} === 'width=32,batch_size=64'")
    (ids,) = zoo.cells().filter((pl.col("width") == 32) & (pl.col("batch_size") == 64))["ids"].to_list()
    assert [row[0] for row in browser.run(ROWS)] == ids
    assert "width 32, batch size 64" in browser.run("document.getElementById('panel').textContent")
    framed = "document.querySelectorAll('.chart.cells svg path[stroke-opacity=\"1\"]').length"
    maps = browser.run("document.querySelectorAll('.chart.cells svg').length") - 1  # all but the scatter plot
    browser.wait(f"{framed} === {2 * maps}")  # two tones of frame in each
    assert browser.problems == []


def test_a_second_click_clears_the_selection(browser, report):
    browser.open(report)
    click_cell(browser, "32", "64")
    browser.wait(f"{SELECTED} === 'width=32,batch_size=64'")
    click_cell(browser, "32", "64")
    browser.wait(f"{SELECTED} === ''")
    assert len(browser.run(ROWS)) == 25


def test_a_selection_shows_the_curves_of_its_seeds(browser, report):
    browser.open(report)
    lines = """document.querySelector('#curves .chart').querySelectorAll('path[stroke-width="2.25"]').length"""
    assert browser.run(lines) == 6  # a mean a phase
    click_cell(browser, "128", "8")
    browser.wait(f"{lines} === 3")


def test_cells_can_be_walked_with_the_keyboard(browser, report):
    browser.open(report)
    browser.run("document.querySelector('.chart.cells').focus()")
    for key, cell in (("ArrowRight", "width=2,batch_size=8"), ("ArrowRight", "width=4,batch_size=8"),
                      ("ArrowDown", "width=4,batch_size=16"), ("Escape", "")):  # fmt: skip
        browser.key(key)
        browser.wait(f"{SELECTED} === '{cell}'")
    assert "No cell selected" in browser.run("document.getElementById('said').textContent")


def test_the_table_sorts_both_ways_with_missing_values_last(browser, report, card_data):
    browser.open(report)
    column = card_data.models.columns.index("hessian_trace") - 1  # the column cell is not shown
    press = f"document.querySelectorAll('#models thead button')[{column}].click()"
    browser.run(press)
    assert float(browser.run(ROWS)[0][column]) == pytest.approx(card_data.models["hessian_trace"].min(), rel=0.01)
    assert browser.run(f"document.querySelectorAll('#models th')[{column}].getAttribute('aria-sort')") == "ascending"
    browser.run(press)
    assert float(browser.run(ROWS)[0][column]) == pytest.approx(card_data.models["hessian_trace"].max(), rel=0.01)


def test_the_filter_finds_models_by_their_settings(browser, report):
    browser.open(report)
    put(browser, "find", "width=2 diverged", "input")
    rows = browser.run(ROWS)
    assert rows and all(row[4] == "diverged" for row in rows)


def test_pages_of_the_table_hold_every_model_once(browser, report):
    browser.open(report)
    seen = [row[0] for row in browser.run(ROWS)]
    while not browser.run("document.getElementById('after').disabled"):
        browser.run("document.getElementById('after').click()")
        seen += [row[0] for row in browser.run(ROWS)]
    assert len(seen) == len(set(seen)) == 126


def test_a_phone_shows_the_page_without_sideways_scrolling(browser, report):
    browser.open(report, width=380, height=800)
    assert browser.run("document.documentElement.scrollWidth") <= 380
    widths = browser.run("[...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().right)")
    assert widths and max(widths) <= 381
    click_cell(browser, "32", "64")
    browser.wait(f"{SELECTED} === 'width=32,batch_size=64'")
    assert browser.run("document.documentElement.scrollWidth") <= 380
    assert browser.problems == []


def test_nothing_moves_while_the_charts_are_drawn(browser, report):
    browser.open(report)
    late = browser.run(
        "[...document.querySelectorAll('.chart')].filter(c => c.offsetParent)"
        ".map(c => c.getBoundingClientRect().height - parseFloat(c.style.minHeight))"
    )
    assert max(late) <= 12  # the height reserved before drawing was enough, but for a line of a label


def test_dark_mode_themes_the_page_and_its_charts(browser, report):
    browser.open(report, dark=True)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    fills = set(browser.run("[...document.querySelectorAll('.chart svg text')].map(t => t.getAttribute('fill'))"))
    assert "#a3abb5" in fills and "#5b6470" not in fills
    assert browser.problems == []


def test_headings_landmarks_and_names_are_there_for_screen_readers(browser, report):
    browser.open(report)
    assert browser.run("document.querySelectorAll('h1').length") == 1
    assert browser.run("['header', 'main', 'nav', 'aside', 'footer'].every(t => document.querySelector(t))")
    assert browser.run("[...document.querySelectorAll('.chart')].every(c => c.getAttribute('aria-label'))")
    assert browser.run("[...document.querySelectorAll('input, select')].every(c => c.labels.length)")
    ids = browser.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_any_measure_can_be_plotted_against_any_other(browser, report):
    browser.open(report)
    put(browser, "explore-x", "train_loss")
    browser.wait("[...document.querySelectorAll('#explore svg text')].some(t => t.textContent === 'Train loss')")
    assert "ρ" in browser.run("document.getElementById('explore-rho').textContent")
    assert browser.problems == []


def test_evil_names_do_not_run(browser, make_zoo, tmp_path):
    zoo, phases = make_zoo(
        tmp_path / "zoo", {"width": (2, 4), "batch_size": (8, 16)}, lambda p: "I", rename=lambda i: i + EVIL
    )
    data = collect(zoo, phases=phases.with_columns(phase=pl.lit(EVIL)), title="a title")
    browser.open(write_report(data, tmp_path / "evil.html"))
    click_cell(browser, "2", "8")
    browser.wait(SELECTED)
    assert browser.run("document.title") == "a title"
    assert browser.run("document.images.length") == 0
    assert browser.run(ROWS)[0][0].endswith(EVIL)
    assert browser.problems == [] and browser.requests == []


def test_slices_of_a_third_axis_are_chosen_from_a_list(browser, make_zoo, tmp_path):
    axes = {"width": (2, 4), "batch_size": (8, 16), "label_noise": (0.0, 0.1)}
    zoo, phases = make_zoo(tmp_path / "zoo", axes, lambda p: "I" if p["label_noise"] else "IV-B")
    browser.open(write_report(collect(zoo, phases=phases), tmp_path / "r.html"))
    texts = "[...document.querySelectorAll('#chart-0 svg text')].map(t => t.textContent)"
    letters = texts + ".filter(t => t.startsWith('I')).join()"
    browser.wait(f"{letters} === 'IV-B,IV-B,IV-B,IV-B'")
    put(browser, "slice", "1")
    browser.wait(f"{letters} === 'I,I,I,I'")
    assert browser.problems == []


def test_selecting_a_model_of_another_slice_shows_that_slice(browser, make_zoo, tmp_path):
    axes = {"width": (2, 4), "batch_size": (8, 16), "label_noise": (0.0, 0.1)}
    zoo, phases = make_zoo(tmp_path / "zoo", axes, lambda p: "I" if p["label_noise"] else "IV-B")
    browser.open(write_report(collect(zoo, phases=phases), tmp_path / "r.html"))
    last = zoo.cells()["cell"][-1]
    browser.run(f"document.querySelector('tr[data-cell=\"{zoo.cells()['cell'][1]}\"]').click()")
    browser.wait("document.getElementById('slice').value === '1'")
    assert browser.run(SELECTED) == zoo.cells()["cell"][1] != last
