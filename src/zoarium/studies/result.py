"""What a study found: checks with verdicts, tables and figures, printed, stored and turned into a page."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoarium._core.errors import StoreError
from zoarium._core.files import replacing, write_bytes, write_text

if TYPE_CHECKING:
    import polars as pl

Verdict = Literal["reproduced", "not reproduced", "reported only"]
COMPARISONS = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__, "<": float.__lt__}
SOFTWARE = ("zoarium", "torch", "numpy", "scipy", "polars")


@dataclass(frozen=True)
class Check:
    """One number of a claim, found once for each seed.

    Parameters
    ----------
    name : str
        What was computed.
    values : mapping of int to float
        Value by seed; NaN where it does not exist.
    threshold : float, optional
        Frozen before the run; None for a number that is reported and not judged.
    comparison : {">=", "<=", ">", "<"}
        How a value must stand to the threshold.
    baseline : float, optional
        The same number for the obvious alternative; `baseline_name` says which.
    note : str
        What a reader should know beside it.
    """

    name: str
    values: Mapping[int, float]
    threshold: float | None = None
    comparison: Literal[">=", "<=", ">", "<"] = ">="
    baseline: float | None = None
    baseline_name: str = ""
    note: str = ""

    @property
    def value(self) -> float:
        """Mean over the seeds; NaN if any is missing."""
        return sum(self.values.values()) / len(self.values) if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lowest and highest over the seeds; NaN if any is missing."""
        given = list(self.values.values())
        return (math.nan, math.nan) if not given or any(map(math.isnan, given)) else (min(given), max(given))

    @property
    def verdict(self) -> Verdict:
        """Reproduced only if the threshold is met in every seed; a missing value does not meet it."""
        if self.threshold is None:
            return "reported only"
        met = COMPARISONS[self.comparison]
        every = bool(self.values) and all(met(float(v), float(self.threshold)) for v in self.values.values())
        return "reproduced" if every else "not reproduced"

    @property
    def condition(self) -> str:
        """The threshold in words."""
        return "" if self.threshold is None else f"{self.comparison} {_number(self.threshold)}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-like values; NaN becomes None."""
        return {
            "name": self.name, "value": _plain(self.value), "interval": [_plain(v) for v in self.interval],
            "values": {str(seed): _plain(v) for seed, v in self.values.items()}, "threshold": self.threshold,
            "comparison": self.comparison, "verdict": self.verdict, "baseline": _plain(self.baseline),
            "baseline_name": self.baseline_name, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class StudyResult:
    """A study that ran: what was claimed, what was found, and the verdict.

    Parameters
    ----------
    number, title, claim, data, baseline, falsifier, reference : str
        As the study registered them.
    seeds : sequence of int
        Seeds it was judged on.
    budget : str
        "full", or "small" for a run whose verdicts mean nothing.
    seconds : float
        Wall time.
    checks : tuple of Check
    tables : dict of str to polars.DataFrame
    figures : dict of str to altair chart
    """

    number: str
    title: str
    claim: str
    data: str
    baseline: str
    falsifier: str
    reference: str
    seeds: Sequence[int]
    budget: str
    seconds: float
    checks: tuple[Check, ...]
    tables: dict[str, pl.DataFrame] = field(default_factory=dict, repr=False)
    figures: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def reproduced(self) -> bool:
        """Whether a full run met every threshold in every seed."""
        return self.budget == "full" and all(check.verdict != "not reproduced" for check in self.checks)

    @property
    def verdict(self) -> str:
        """The outcome in a phrase."""
        judged = [c for c in self.checks if c.threshold is not None]
        missed = [c for c in judged if c.verdict == "not reproduced"]
        if self.budget != "full":
            return "a small run: its numbers show that the study runs, not that a claim holds"
        if missed:
            return f"not reproduced: {len(missed)} of {len(judged)} checks missed their threshold"
        return f"reproduced: all {len(judged)} checks met their thresholds in every seed"

    def text(self) -> str:
        """The result for a terminal."""
        seeds = ", ".join(map(str, self.seeds))
        lines = [
            f"Study {self.number}. {self.title}",
            f"  claim      {self.claim}",
            f"  data       {self.data}",
            f"  baseline   {self.baseline}",
            f"  falsified  {self.falsifier}",
            f"  seeds      {seeds} ({self.seconds:.0f} s); values are means over seeds [lowest, highest]",
            "",
        ]
        width = max((len(c.name) for c in self.checks), default=0)
        for check in self.checks:
            low, high = check.interval
            found = f"{_number(check.value)} [{_number(low)}, {_number(high)}]"
            beside = f"  {check.baseline_name} {_number(check.baseline)}" if check.baseline is not None else ""
            lines.append(
                f"  {check.verdict:<14}  {check.name:<{width}}  {found:<24} {check.condition:<8}{beside}".rstrip()
            )
        return "\n".join([*lines, "", f"  {self.verdict}"])

    __str__ = text

    def to_dict(self) -> dict[str, Any]:
        """Everything but tables and figures as JSON-like values."""
        return {
            "study": self.number, "title": self.title, "claim": self.claim, "data": self.data,
            "baseline": self.baseline, "falsifier": self.falsifier, "reference": self.reference,
            "seeds": list(self.seeds), "budget": self.budget, "seconds": round(self.seconds, 1),
            "reproduced": self.reproduced, "verdict": self.verdict, "checks": [c.to_dict() for c in self.checks],
            "tables": sorted(self.tables), "figures": list(self.figures),
            "software": {"python": platform.python_version(), **_versions()},
        }  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write ``FOLDER/NN/``: result.json, a Parquet file a table, an SVG and a PNG a figure; returns that folder."""
        home = Path(folder) / self.number
        for name, table in self.tables.items():
            with replacing(home / f"{name}.parquet") as path:
                table.write_parquet(path)
        for name, chart in self.figures.items():
            svg, png = io.StringIO(), io.BytesIO()
            chart.save(svg, format="svg")
            chart.save(png, format="png", scale_factor=1.5)
            write_text(home / f"{name}.svg", svg.getvalue())
            write_bytes(home / f"{name}.png", png.getvalue())
        write_text(home / "result.json", json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return home


def studies_page(results: Path | str, *, assets: Path | str | None = None) -> str:
    """The page of all studies, in Markdown, from their stored results.

    Parameters
    ----------
    results : path
        The folder :meth:`StudyResult.save` was given.
    assets : path, optional
        Folder, beside the page, to copy the figures to; they are then linked as ``NAME/NN-figure.svg``. Without it
        they are embedded in the page.

    Returns
    -------
    str
        Claims, verdicts, every check with its values, and the figures. Equal results give equal pages.

    Raises
    ------
    StoreError
        When the folder holds no result, or one that cannot be read.
    """
    found = sorted(Path(results).glob("*/result.json"))
    if not found:
        raise StoreError(f"no stored study in {results}; run: zoarium study run --all --store {results}")
    parts = [
        "# Studies",
        "Each study is a published claim as code, its thresholds frozen after calibration on seed 0 and judged on "
        "fresh seeds. A check is *reproduced* only if it meets its threshold in every seed; a claim that fails stays "
        "on this page. Values are means over seeds, with the lowest and highest in brackets. This page is generated "
        "by `make studies`; the tables behind it are in `studies/results`.",
    ]
    for path in found:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parts.append(_section(content, path.parent, Path(assets) if assets is not None else None))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StoreError(f"{path} is not a stored study ({error}); run that study again with --store.") from error
    return "\n\n".join(parts) + "\n"


def _section(content: Mapping[str, Any], home: Path, assets: Path | None) -> str:
    rows = ["| check | value | threshold | baseline | verdict |", "|---|---|---|---|---|"]
    notes = []
    for check in content["checks"]:
        low, high = check["interval"]
        threshold = "" if check["threshold"] is None else f"{check['comparison']} {_number(check['threshold'])}"
        beside = "" if check["baseline"] is None else f"{check['baseline_name']}: {_number(check['baseline'])}"
        verdict = f"**{check['verdict']}**" if check["verdict"] == "not reproduced" else check["verdict"]
        value = f"{_number(check['value'])} [{_number(low)}, {_number(high)}]"
        rows.append("| " + " | ".join(map(_cell, (check["name"], value, threshold, beside, verdict))) + " |")
        if check["note"]:
            notes.append(f"- {check['name']}: {check['note']}")
    software = ", ".join(f"{name} {version}" for name, version in content["software"].items())
    seeds = ", ".join(map(str, content["seeds"]))
    parts = [
        f"## {content['study']}. {content['title']}",
        f"**{content['verdict'].capitalize()}.**",
        f"*Claim.* {content['claim']}",
        f"*Data.* {content['data']}",
        f"*Baseline.* {content['baseline']}",
        f"*Falsified if* {content['falsifier']}",
        f"*Source.* {content['reference']}",
        "\n".join(rows),
        "\n".join(notes),
        *(_image(name, content["study"], home, assets) for name in content["figures"]),
        f"Seeds {seeds}; {content['seconds']:.0f} s; {software}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _image(name: str, number: str, home: Path, assets: Path | None) -> str:
    alt = name.replace("_", " ")
    source = home / f"{name}.svg"
    if assets is None:
        return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(source.read_bytes()).decode()})"
    assets.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, assets / f"{number}-{name}.svg")
    return f"![{alt}]({assets.name}/{number}-{name}.svg)"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "missing"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _versions() -> dict[str, str]:
    versions = {}
    for name in SOFTWARE:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from the source tree without installation
            continue
    return versions
