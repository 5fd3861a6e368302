"""How phases and charts look: one palette for the report, the terminal map and the docs.

The phase colours are Okabe and Ito's, which stay apart under every common colour-vision deficiency; a letter always
stands beside the colour, so that nothing is said by colour alone.

Okabe & Ito, "Color universal design", 2008.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PhaseStyle:
    """How one phase is drawn and described.

    Parameters
    ----------
    key : str
        The label in tables, e.g. ``"IV-B"``.
    mark : str
        What a cell of a map shows.
    name : str
        The phase in two words.
    meaning : str
        The phase in a sentence.
    colour : str
        Hex colour.
    """

    key: str
    mark: str
    name: str
    meaning: str
    colour: str


PHASES: dict[str, PhaseStyle] = {
    style.key: style
    for style in (
        PhaseStyle(
            "I", "I", "under-fitted and under-sized",
            "High training loss, sharp minimum, seeds separated by a barrier.", "#D55E00",
        ),
        PhaseStyle(
            "II", "II", "under-fitted",
            "High training loss, but seeds are connected: more or hotter training would help.", "#56B4E9",
        ),
        PhaseStyle(
            "III", "III", "under-sized",
            "Training loss is low and the minimum flat, yet seeds are separated by a barrier: too little width.",
            "#E69F00",
        ),
        PhaseStyle(
            "IV-A", "IV-A", "over-fitted",
            "Flat and connected, but seeds disagree on what they compute.", "#CC79A7",
        ),
        PhaseStyle("IV-B", "IV-B", "generalising", "Flat, connected, and seeds compute alike.", "#009E73"),
        PhaseStyle(
            "ambiguous", "?", "ambiguous",
            "Resampling the seeds changes the label too often to give one.", "#B9BDC3",
        ),
        PhaseStyle(
            "collapsed", "×", "collapsed",
            "Near-constant predictions or training that diverged; its other measures mean little.", "#8A9099",
        ),
    )
}  # fmt: skip

UNLABELLED = PhaseStyle("unlabelled", "", "unlabelled", "A measure that the phase rule needs is missing.", "#D5D8DC")
INK = "#15181c"  # text on a phase colour, in either theme: every one of them is light enough


def phase_style(key: str | None) -> PhaseStyle:
    """How a phase is drawn; a label of somebody else's rule is shown as it is, in neutral grey.

    Examples
    --------
    >>> phase_style("IV-B").name
    'generalising'
    """
    if not key:
        return UNLABELLED
    return PHASES.get(key) or PhaseStyle(key, key, key, "A label of your own rule.", UNLABELLED.colour)


def ordered_phases(keys: Any) -> list[PhaseStyle]:
    """Styles of the distinct phases in `keys`, in the order of the legend, labels of one's own last."""
    present = list(dict.fromkeys(keys))
    known = [key for key in PHASES if key in present]
    return [phase_style(key) for key in [*known, *(k for k in present if k and k not in PHASES)]] + (
        [UNLABELLED] if any(not k for k in present) else []
    )


FONT = 'Inter, "Helvetica Neue", Arial, sans-serif'

_LIGHT = {
    "ink": "#1c2127",
    "soft": "#5b6470",
    "grid": "#eceef1",
    "context": "#b4bac2",
    "missing": "#e9ebee",
    "paper": "#ffffff",
}
_DARK = {
    "ink": "#e8eaed",
    "soft": "#a3abb5",
    "grid": "#2a3038",
    "context": "#59626d",
    "missing": "#2a3038",
    "paper": "#15181c",
}


def colours(dark: bool = False) -> dict[str, str]:
    """Colours of everything that is not data."""
    return dict(_DARK if dark else _LIGHT)


def theme(dark: bool = False, font: str = FONT) -> dict[str, Any]:
    """A Vega-Lite config: one type scale, thin lines, no frames.

    Examples
    --------
    >>> theme()["axis"]["labelColor"] != theme(dark=True)["axis"]["labelColor"]
    True
    """
    c = colours(dark)
    text = {"labelColor": c["soft"], "titleColor": c["soft"], "labelFontSize": 11, "titleFontSize": 11}
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "title": {
            "anchor": "start", "color": c["ink"], "fontSize": 14, "fontWeight": 600, "offset": 10,
            "subtitleColor": c["soft"], "subtitleFontSize": 11, "subtitlePadding": 4,
        },
        "axis": {
            **text, "titleFontWeight": 400, "titlePadding": 8, "labelPadding": 5, "domain": False, "ticks": False,
            "gridColor": c["grid"], "gridWidth": 1,
        },
        "axisBand": {"grid": False},
        "legend": {**text, "titleFontWeight": 400, "gradientThickness": 8, "titlePadding": 6, "symbolStrokeWidth": 2},
        "header": text,
        # "color", not "fill" or "stroke": Vega-Lite's own default colour would go before those.
        "style": {
            "context": {"color": c["context"]}, "ink": {"color": c["ink"]}, "baseline": {"color": c["soft"]},
            "chosen": {"color": c["ink"]}, "halo": {"color": c["paper"]}, "missing": {"color": c["missing"]},
        },
    }  # fmt: skip
