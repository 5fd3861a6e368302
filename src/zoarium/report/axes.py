"""Which axis of a grid is which physical one, and which way is hot.

The physics is :mod:`zoarium.measure.phases.axes`'s; here it becomes directions on a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from zoarium.measure.phases.axes import LOAD, TEMPERATURE, equal_epochs_caveat

Role = Literal["load", "temperature", "axis"]


def pretty(axis: str) -> str:
    """Name of an axis for people: ``batch_size`` is "batch size"."""
    return {"lr": "learning rate"}.get(axis, axis.replace("_", " "))


def axis_text(value: Any) -> str:
    """One value of an axis as text."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Axis:
    """One axis of the maps.

    Parameters
    ----------
    name : str
        Column of the tables.
    role : {"load", "temperature", "axis"}
        What it stands for.
    values : tuple of str
        Its values in the order drawn: left to right, or top to bottom with the hottest on top.
    large_is_high : bool or None
        Whether a large value means high load or hot; None where nobody knows.
    why : str
        The physics in a phrase.
    numeric : tuple of float
        The values as numbers, for charts of one axis; empty if they are none.
    """

    name: str
    role: Role
    values: tuple[str, ...]
    large_is_high: bool | None = None
    why: str = ""
    numeric: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Name for people: ``batch_size`` is "batch size"."""
        return pretty(self.name)

    @property
    def ends(self) -> tuple[str, str]:
        """Words for the first and the last of `values`, e.g. ("hot", "cold"); empty where nobody knows."""
        if self.large_is_high is None or self.role == "axis" or len(self.values) < 2:
            return "", ""
        low, high = ("low load", "high load") if self.role == "load" else ("cold", "hot")
        ascending = not self.numeric or self.numeric[0] <= self.numeric[-1]
        first_is_high = self.large_is_high != ascending
        return (high, low) if first_is_high else (low, high)

    @property
    def sentence(self) -> str:
        """The axis named physically, for the caption."""
        role = {"load": "Load", "temperature": "Temperature", "axis": "Axis"}[self.role]
        return f"{role}: {self.label}" + (f" ({self.why})" if self.why else "") + "."

    def title(self, horizontal: bool = True) -> str:
        """Axis title with the physical direction."""
        first, last = self.ends
        if not first:
            return self.label
        return f"← {first} · {self.label} · {last} →" if horizontal else f"← {last} · {self.label} · {first} →"


def choose_axes(
    table: pl.DataFrame, axes: Sequence[str], load: str | None, temperature: str | None
) -> tuple[Axis | None, Axis | None, list[str]]:
    """Which axis goes across, which goes down, and which are left for slices.

    Load goes across and temperature down: those the zoo names, else the first known of each kind, else the first axes
    there are, which then have no physical meaning.
    """
    left = [a for a in axes if table[a].n_unique() > 1]
    chosen: dict[str, Role] = {}
    for role, named, known in (("load", load, LOAD), ("temperature", temperature, TEMPERATURE)):
        candidates = [named] if named in left else [a for a in known if a in left and a not in (load, temperature)]
        found = next((a for a in candidates if a is not None and a not in chosen), None)
        if found is not None:
            chosen[found] = role  # type: ignore[assignment]
    rest = [a for a in left if a not in chosen]
    across = next((a for a, role in chosen.items() if role == "load"), None)
    down = next((a for a, role in chosen.items() if role == "temperature"), None)
    across = across or (rest.pop(0) if rest else None)
    down = down or (rest.pop(0) if rest else None)
    if across is None:
        across, down = down, None
    x = _axis(table, across, chosen.get(across, "axis"), down=False) if across else None
    y = _axis(table, down, chosen.get(down, "axis"), down=True) if down else None
    return x, y, rest


def _axis(table: pl.DataFrame, name: str, role: Role, down: bool) -> Axis:
    column = table[name]
    sign, why = {"load": LOAD, "temperature": TEMPERATURE}.get(role, {}).get(name, ("", ""))
    large_is_high = {"+": True, "-": False}.get(sign)
    numeric: list[Any] = []
    if column.dtype.is_numeric():
        values = sorted(v for v in column.unique().to_list() if v is not None)
        # Down the page, the hottest comes first; where nobody knows what is hot, the largest does, as on a plot.
        if down and large_is_high is not False:
            values.reverse()
        numeric = [float(v) for v in values]
        if column.null_count():
            values.append(None)
            numeric = []
    else:
        values = column.unique(maintain_order=True).to_list()
    texts = tuple(dict.fromkeys(map(axis_text, values)))
    return Axis(name, role, texts, large_is_high, why, tuple(numeric) if len(numeric) == len(texts) else ())


def axis_caveats(x: Axis | None, y: Axis | None, table: pl.DataFrame) -> list[str]:
    """What the choice of axes confounds."""
    found = [equal_epochs_caveat(table)]
    if any(a is not None and a.role == "axis" for a in (x, y)):
        found.append(
            "Some axes are neither load nor temperature as far as is known, so the maps name no direction for them."
        )
    return [text for text in found if text]
