"""Offline twins of the published phase zoos, grown, measured and labelled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium._core.errors import StoreError
from zoarium._core.files import write_bytes, write_text

if TYPE_CHECKING:
    from zoarium.zoo import Zoo

Progress = Callable[[float, float, str], None]

EXTRA = {"language": "perplexity", "regression": "pde_error"}  # what a task reports beside loss and accuracy
SHOWN = {
    "classification": ("train_loss", "test_accuracy"), "language": ("test_perplexity", "test_accuracy"),
    "regression": ("residual_error", "relative_error"),
}  # fmt: skip


@dataclass(frozen=True)
class TwinResult:
    """A twin that was grown and labelled.

    Attributes
    ----------
    name : str
    task : str
    models, diverged : int
    phases : polars.DataFrame
        A row a cell, see ``zoo.phases()``.
    values : polars.DataFrame
        Median over the seeds of what the task reports, a row a cell.
    map : str
        The phase diagram as text.
    seconds : dict of str to float
        Wall time of ``grow`` and ``measure``.
    thresholds : dict of str to float
        Those of the labels, found in the data.
    contiguity, chance : float
        Share of neighbouring cells with one label, and its 99th percentile over shuffled labels.
    """

    name: str
    task: str
    models: int
    diverged: int
    phases: pl.DataFrame = field(repr=False)
    values: pl.DataFrame = field(repr=False)
    map: str = field(repr=False)
    seconds: dict[str, float]
    thresholds: dict[str, float]
    contiguity: float
    chance: float
    zoo: Zoo | None = field(default=None, repr=False, compare=False)

    def save(self, folder: Path | str) -> Path:
        """Write ``result.json``, ``phases.parquet`` and ``phases.svg`` to ``folder/name``."""
        home = Path(folder) / self.name
        facts = {k: v for k, v in vars(self).items() if k not in ("phases", "values", "zoo")}
        write_text(home / "result.json", json.dumps({**facts, "values": self.values.to_dicts()}, indent=1) + "\n")
        with (home / "phases.parquet").open("wb") as file:
            self.phases.write_parquet(file)
        if self.zoo is not None:
            from zoarium.report import save_charts

            save_charts(self.zoo, home, formats=("svg",), names=("phases",))
        return home


def run_twin(
    name: str, out: Path | str | None = None, *, workers: int | None = None,
    on_progress: Progress = lambda done, total, note: None,
) -> TwinResult:  # fmt: skip
    """Grow a twin, measure what a phase diagram needs, and label it.

    Parameters
    ----------
    name : str
        A preset with measures, such as ``"cifar10-resnet18-twin"``.
    out : path, optional
        Folder of the zoo; resumed if it is there. Default a temporary one.
    workers : int, optional
        Worker processes; default one a core.
    on_progress : callable, optional
        Called with (done, total, note).

    Returns
    -------
    TwinResult
    """
    from zoarium.growth import grow, preset
    from zoarium.measure.phases import phase_map_text, zoo_phase_result
    from zoarium.measure.phases.map import label_contiguity

    chosen = preset(name)
    if not chosen.measures:
        raise StoreError(f"preset {name!r} is a published zoo, not a twin; grow it with: zoarium grow preset:{name}.")
    start = time.perf_counter()
    zoo = grow(chosen.grid, out, workers=workers, on_progress=on_progress)
    grown = time.perf_counter()
    task = zoo.base_data(zoo.table["data"][0]).task
    names = {**chosen.measures, **({EXTRA[task]: {}} if task in EXTRA else {})}
    zoo.measure(names, workers=workers, on_progress=lambda what, done, total: on_progress(done, total, what))
    done = time.perf_counter()
    found = zoo_phase_result(zoo)
    contiguity = label_contiguity(found.table)
    return TwinResult(
        name, task, len(zoo), int((zoo.table["status"] == "diverged").sum()), found.table, _values(zoo, SHOWN[task]),
        str(phase_map_text(found.table)), {"grow": grown - start, "measure": done - grown},
        {k: v for k, v in vars(found.thresholds).items() if v is not None}, contiguity.rate, contiguity.chance_99, zoo,
    )  # fmt: skip


def _values(zoo: Zoo, quantities: tuple[str, ...]) -> pl.DataFrame:
    """Median over the seeds of each cell."""
    axes = zoo.axes
    table = zoo.measured.group_by(axes, maintain_order=True).agg(pl.col(q).median() for q in quantities)
    return table.sort(axes)


def twins_page(results: Path | str, *, assets: Path | str) -> str:
    """The twins as a Markdown page, from stored results; pictures go to `assets`.

    Raises
    ------
    StoreError
        When the folder holds no result, or one that cannot be read.
    """
    found = sorted(Path(results).glob("*/result.json"))
    if not found:
        raise StoreError(f"no stored twin in {results}; run: zoarium twins run --all --store {results}")
    parts = [
        "# Offline twins of the published zoos",
        "Each of the twelve published phase zoos has a twin: the same axes and optimiser on data that need no network, "
        "with a smaller net of the same family. `zoarium grow preset:NAME` grows the published zoo or its twin; "
        "`zoarium presets NAME` shows the whole recipe and says what of it is published and what is our choice. "
        "Thresholds are found in each zoo's own data; a question mark is a cell whose label a bootstrap over seeds "
        "does not settle. *Contiguity* is the share of neighbouring cells with the same label, beside its 99th "
        "percentile over shuffled labels. This page is generated by `make twins`.",
    ]
    for path in found:
        try:
            parts.append(_section(json.loads(path.read_text(encoding="utf-8")), path.parent, Path(assets)))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StoreError(f"{path} is not a stored twin ({error}); run it again with --store.") from error
    return "\n\n".join(parts) + "\n"


def _section(content: dict[str, Any], home: Path, assets: Path) -> str:
    from zoarium.growth import preset

    chosen = preset(content["name"])
    picture = home / "phases.svg"
    shown = ""
    if picture.exists():
        write_bytes(assets / f"twin-{chosen.name}.svg", picture.read_bytes())
        shown = f"![phase diagram of {chosen.name}]({assets.name}/twin-{chosen.name}.svg)"
    seconds, first = content["seconds"], content["values"][0]
    ranges = [
        f"{name.replace('_', ' ')} from {min(values):.3g} to {max(values):.3g}"
        for name in first
        if name in SHOWN[content["task"]]
        and (values := [row[name] for row in content["values"] if row[name] is not None])
    ]
    labels = ", ".join(f"{k} {v:.3g}" for k, v in content["thresholds"].items())
    return "\n\n".join(
        part
        for part in (
            f"## {chosen.name}",
            f"Stands for *{chosen.twin_of}*: {content['models']} models, {chosen.grid.net} on "
            f"`{chosen.grid.axes['data'][0]}`; {chosen.chosen}.",
            shown,
            "```\n" + content["map"].rstrip() + "\n```",
            f"{'; '.join(ranges)} (medians over seeds). {content['diverged']} models diverged. Contiguity "
            f"{content['contiguity']:.2f} (by chance {content['chance']:.2f}). Thresholds: {labels}. Grown in "
            f"{seconds['grow']:.0f} s and measured in {seconds['measure']:.0f} s.",
        )
        if part
    )
