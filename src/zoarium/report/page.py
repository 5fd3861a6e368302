"""The report's page: one HTML file with its data, its script and its style inside.

A content security policy lets the page run exactly the two scripts written here, known by their hashes, and load
nothing: text of a zoo that escaped its escaping would still not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import string
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from zoarium.report.bundle import bundle
from zoarium.report.charts import heading_of
from zoarium.report.escape import embedded, text
from zoarium.report.findings import findings
from zoarium.report.payload import MOST_ROWS, payload
from zoarium.report.quantities import number
from zoarium.report.style import ordered_phases

if TYPE_CHECKING:
    from zoarium.report.tables import ReportData


@functools.cache
def _asset(name: str) -> str:
    return files("zoarium.report").joinpath("page", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def script_hash(script: str) -> str:
    """A script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def page(data: ReportData) -> str:
    """The whole page as text."""
    from zoarium import __version__

    content = payload(data)
    charts = {item["name"]: item for item in content["charts"]}
    sections = {
        "findings": ("Findings", _findings(data)),
        "phases": ("Phases", _phases(data, charts)),
        "measures": ("Measures", _measures(data, charts)),
        "curves": ("Learning curves", _curves(data, charts)),
        "use": ("What a phase is good for", _use(data, charts)),
        "explore": ("Explore", _explore(data, charts)),
        "models": ("Models", _models(data, content["models"])),
        "settings": ("Settings", _settings(data)),
    }
    shown = {key: (title, body) for key, (title, body) in sections.items() if body}
    script = _asset("page.js")
    policy = (
        f"default-src 'none'; script-src {script_hash(bundle())} {script_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return string.Template(_asset("page.html")).substitute(
        policy=policy, version=text(__version__), title=text(data.title), summary=text(data.summary),
        css=_asset("page.css"), linked=" linked" if len(data.cells) else "", facts=_facts(data),
        nav="".join(f'<li><a href="#{key}">{text(title)}</a></li>' for key, (title, _) in shown.items()),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{text(title)}</h2>{body}</section>'
            for key, (title, body) in shown.items()
        ),
        data=embedded(content), bundle=bundle(), script=script,
    )  # fmt: skip


# ------------------------------------------------------------------ parts


def _facts(data: ReportData) -> str:
    zoo = data.settings.get("zoo", {})
    facts: dict[str, Any] = {"Models": f"{len(data.models):,}", "Cells": f"{len(data.cells):,}"}
    for axis in (data.x, data.y):
        if axis is not None and axis.role != "axis":
            facts[axis.role.capitalize()] = axis.label
    if zoo.get("created"):
        facts["Grown"] = str(zoo["created"])[:10]
    return '<dl class="facts">' + "".join(
        f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts.items()
    ) + "</dl>"  # fmt: skip


def _findings(data: ReportData) -> str:
    found = "".join(f"<li><h3>{text(f.title)}</h3><p>{text(f.text)}</p></li>" for f in findings(data))
    caveats = "".join(f"<li>{text(c)}</li>" for c in data.caveats)
    note = f'<ul class="caveats" aria-label="Caveats">{caveats}</ul>' if caveats else ""
    return f'<ol class="findings">{found}</ol>{note}'


def _figure(item: dict[str, Any], title: str, sentence: str, level: int = 3) -> str:
    """A chart with its caption; its height is reserved, so that nothing jumps when it is drawn."""
    spec = item["spec"]
    height, label = spec["height"], text(spec["description"])
    extra = {"cells": 82 if item.get("quantity") else 42, "curve": 68, "explore": 72}.get(item["kind"], 42)
    cells = item["kind"] in ("cells", "explore")
    access = (
        f'class="chart cells" tabindex="0" role="group" aria-describedby="keys" aria-label="{label}"'
        if cells
        else f'class="chart" role="img" aria-label="{label}"'
    )
    caption = f"<figcaption><h{level}>{text(title)}</h{level}><p>{text(sentence)}</p></figcaption>" if title else ""
    return (
        f'<figure>{caption}<div id="chart-{item["id"]}" {access} style="min-height:{height + extra}px"></div></figure>'
    )


def _slice_choice(data: ReportData) -> str:
    if len(data.slices) < 2:
        return ""
    options = "".join(f'<option value="{n}">{text(s)}</option>' for n, s in enumerate(data.slices))
    return f'<div class="controls"><label for="slice">Maps at <select id="slice">{options}</select></label></div>'


def _phases(data: ReportData, charts: Mapping[str, Any]) -> str:
    if "phases" not in charts:
        return ""
    axes = " ".join(axis.sentence for axis in (data.x, data.y) if axis is not None)
    counts = dict(data.cells["phase"].value_counts().iter_rows())
    rows = "".join(
        f'<li><span class="chip" style="background:{s.colour}" aria-hidden="true">{text(s.mark or "–")}</span>'
        f"<div><strong>{text(s.key if s.mark != '×' and s.mark != '?' else s.name)}</strong>"
        f"{'' if s.name == s.key else ' ' + text(s.name)} · {counts.get(s.key, counts.get(None, 0)):,}"
        f"<p>{text(s.meaning)}</p></div></li>"
        for s in ordered_phases(data.cells["phase"].to_list())
    )
    thresholds = "; ".join(words.format(number(value)) for words, value in data.thresholds.items())
    rule = f'<p class="note spaced">The rule: {text(thresholds)}.</p>' if thresholds else ""
    return (
        f'<p class="about">{text(heading_of(data, "phases")[1])} {text(axes)}</p>{_slice_choice(data)}'
        f'<div class="wide">{_figure(charts["phases"], "", "")}'
        f'<ul class="legend" aria-label="Phases">{rows}</ul></div>{rule}'
    )


def _measures(data: ReportData, charts: Mapping[str, Any]) -> str:
    names = [q.name for q in data.quantities if q.name in charts]
    if not names:
        return ""
    main = [n for n in names if (q := data.quantity(n)) is not None and q.main] or names
    more = [n for n in names if n not in main]

    def grid(chosen: list[str]) -> str:
        return '<div class="grid">' + "".join(_figure(charts[n], *heading_of(data, n)) for n in chosen) + "</div>"

    hidden = f"<details><summary>{len(more)} more maps</summary>{grid(more)}</details>" if more else ""
    what = "Every map shows the same cells: click one to select it in all of them. Grey: not measured." if data.y else (
        "Means over seeds with their standard errors, coloured by phase: click a point to select its cell everywhere."
    )  # fmt: skip
    choice = "" if "phases" in charts else _slice_choice(data)
    return f'<p class="about">{what}</p>{choice}{grid(main)}{hidden}'


def _curves(data: ReportData, charts: Mapping[str, Any]) -> str:
    found = [item for name, item in charts.items() if item["kind"] == "curve"]
    if not found:
        return ""
    return '<div class="pair">' + "".join(_figure(i, *heading_of(data, i["name"])) for i in found[:2]) + "</div>"


def _use(data: ReportData, charts: Mapping[str, Any]) -> str:
    names = [n for n in charts if n.startswith("effect_")]
    parts = []
    if names:
        parts.append(
            '<p class="about">Mean over the cells of each phase with its 95 % bootstrap interval. The dashed line '
            "is the mean over all labelled cells: what one would expect without knowing phases. Collapsed cells are "
            "left out.</p>"
        )
        main = [n for n in names if (q := data.quantity(n.removeprefix("effect_"))) is not None and q.main] or names
        parts.append('<div class="grid">' + "".join(_figure(charts[n], *heading_of(data, n)) for n in main) + "</div>")
    if "tracking" in charts:
        parts.append(f'<div class="pair spaced">{_figure(charts["tracking"], *heading_of(data, "tracking"))}</div>')
    return "".join(parts)


def _explore(data: ReportData, charts: Mapping[str, Any]) -> str:
    if "explore" not in charts:
        return ""
    names = [q.name for q in data.quantities]

    def choice(axis: str, label: str, wanted: tuple[str, ...], other: str) -> tuple[str, str]:
        start = next((n for n in wanted if n in names), next(n for n in names if n != other))
        options = "".join(
            f'<option value="{text(q.name)}"{" selected" if q.name == start else ""}>{text(q.label)}</option>'
            for q in data.quantities
        )
        return f'<label for="explore-{axis}">{label} <select id="explore-{axis}">{options}</select></label>', start

    across, start = choice("x", "Across", ("cka", "hessian_trace", "train_loss"), "")
    down, _ = choice("y", "Up", ("aligned_averaging_delta", "plain_averaging_delta", "test_accuracy"), start)
    return (
        '<p class="about">Any measure against any other, a point a cell.</p>'
        f'<div class="controls">{across}{down}<span id="explore-rho" role="status"></span></div>'
        f"{_figure(charts['explore'], '', '')}"
    )


def _models(data: ReportData, table: dict[str, Any]) -> str:
    heads = "".join(
        f'<th scope="col" aria-sort="none"{"" if c["numeric"] else " class=text"}>'
        f'<button type="button">{text(c["label"])}</button></th>'
        for c in table["columns"]
    )
    limited = (
        f'<p class="note">The table holds {len(table["cell"]):,} of {table["all"]:,} models, evenly chosen.</p>'
        if table["all"] > MOST_ROWS
        else ""
    )
    return (
        '<p class="about">Click a heading to sort, a row to select its cell.</p>'
        '<div class="controls"><label for="find">Filter <input id="find" type="search" '
        'placeholder="e.g. width=32 diverged" autocomplete="off" spellcheck="false"></label>'
        '<span id="count" role="status"></span><button id="clear" type="button" hidden>Show all</button></div>'
        f'{limited}<div class="scroll" tabindex="0" role="region" aria-label="Table of models">'
        f"<table><thead><tr>{heads}</tr></thead>"
        '<tbody id="rows"></tbody></table></div>'
        '<div class="controls after" id="pager"><button id="before" type="button">Previous</button>'
        '<span id="page"></span><button id="after" type="button">Next</button></div>'
    )


def _settings(data: ReportData) -> str:
    parts = data.settings
    body = "".join(
        f"<div><h3>{text(str(name)[:1].upper() + str(name)[1:])}</h3>{_tree(part)}</div>"
        for name, part in parts.items()
        if part
    )
    return (
        '<p class="about">All that decided these numbers, as recorded with the zoo.</p>'
        "<details><summary>Grid, training, data, measures and software</summary>"
        f'<div class="settings">{body}</div></details>'
    )


def _tree(value: Any, depth: int = 0) -> str:
    """Nested settings as nested definition lists."""
    if isinstance(value, Mapping) and depth < 4:
        rows = []
        for key, item in value.items():
            nested = isinstance(item, Mapping) and item
            body = _tree(item, depth + 1) if nested else text(_scalar(item))
            rows.append(f"<div{' class=nest' if nested else ''}><dt>{text(key)}</dt><dd>{body}</dd></div>")
        return f"<dl>{''.join(rows)}</dl>"
    return f"<p>{text(_scalar(value))}</p>"


def _scalar(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(_scalar(v) for v in value[:40])
        return shown + (f", … ({len(value):,} values)" if len(value) > 40 else "")
    return str(value)
