"""A map of which models are alike: every pair of a comparison as a cell, models in the order of their clusters.

The order is that of average linkage on the quantity shown, with the leaves turned so that neighbours are alike. Pairs
that cannot be independent carry a dot.

Bar-Joseph et al., "Fast optimal leaf ordering for hierarchical clustering", 2001.
"""

from __future__ import annotations

import json
import math
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoarium._core.errors import unknown_name
from zoarium._core.files import write_bytes, write_error
from zoarium.report.bundle import bundle
from zoarium.report.errors import ReportError
from zoarium.report.escape import embedded, text
from zoarium.report.maps import Spec
from zoarium.report.style import theme

if TYPE_CHECKING:
    import altair
    import polars as pl

QUANTITIES = {
    "cosine_distance": ("Cosine distance of weights", (0.0, 1.0)),
    "l2_distance": ("Relative L2 distance of weights", (0.0, math.sqrt(2))),
    "spectral_distance": ("Distance of singular values", None),
    "sign_agreement": ("Weights of one sign", (0.5, 1.0)),
}
FORMATS = ("html", "svg", "png", "json")
MOST_MODELS = 400  # beyond, a cell would be less than a pixel or two
SIDE = 620  # pixels

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="zoarium $version">
<title>$title</title>
<style>
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: #fff; color: #1c2127;
  font: 0.9375rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 0.25rem; } p { margin: 0 0 1rem; color: #5b6470; max-width: 50em; }
#map { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.8125rem; }
th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #d9dde2; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
<div id="map" role="img" aria-label="$label"></div>
$table
<script type="application/json" id="data">$data</script>
<script>$bundle</script>
<script>$script</script>
</body>
</html>
"""
SCRIPT = """"use strict";
vegaEmbed(document.getElementById("map"), JSON.parse(document.getElementById("data").textContent),
  { ast: true, actions: false, renderer: "svg" }).then(() => { document.documentElement.dataset.ready = "true"; });
"""


def cluster_order(distances: np.ndarray) -> list[int]:
    """An order of models in which like stands beside like.

    Parameters
    ----------
    distances : array of shape (n, n)
        Symmetric; NaN counts as farther than any.

    Returns
    -------
    list of int
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(distances)
    if n < 3:
        return list(range(n))
    known = distances[np.isfinite(distances)]
    far = 2 * float(known.max(initial=0.0)) or 1.0
    filled = np.where(np.isfinite(distances), distances, far)
    np.fill_diagonal(filled, 0.0)
    tree = linkage(squareform(filled, checks=False), "average", optimal_ordering=n <= MOST_MODELS)
    return [int(i) for i in leaves_list(tree)]


def _default(pairs: pl.DataFrame) -> str:
    cosine = pairs["cosine_distance"].is_not_null().any()
    return "cosine_distance" if cosine or "spectral_distance" not in pairs.columns else "spectral_distance"


def _spec(pairs: pl.DataFrame, quantity: str | None) -> Spec:
    quantity = quantity or _default(pairs)
    known = [name for name in QUANTITIES if name in pairs.columns]
    if quantity not in known:
        raise ReportError(unknown_name("quantity of a similarity map", quantity, known))
    names = list(dict.fromkeys([*pairs["a"], *pairs["b"]]))
    if not 2 <= len(names) <= MOST_MODELS:
        raise ReportError(f"a similarity map shows 2 to {MOST_MODELS} models, found {len(names)}; compare fewer.")
    heading, domain = QUANTITIES[quantity]
    alike = quantity == "sign_agreement"  # more is nearer
    place = {name: i for i, name in enumerate(names)}
    distances = np.full((len(names), len(names)), np.nan)
    for a, b, value in pairs.select("a", "b", quantity).iter_rows():
        i, j = place[a], place[b]
        distances[i, j] = distances[j, i] = math.nan if value is None else 1 - value if alike else value
    order = [names[i] for i in cluster_order(distances)]
    values = [v for v in pairs[quantity].to_list() if v is not None]
    domain = domain or (0.0, max(values, default=1.0) or 1.0)
    rows = [{"x": name, "y": name, "value": domain[1] if alike else 0.0, "shown": "itself", "dot": ""}
            for name in order]  # fmt: skip
    for row in pairs.iter_rows(named=True):
        value, z, related = row[quantity], row["z"], row["related"]
        said = "–" if value is None else f"{value:.4g}"
        told = row["reason"] or f"{row['matched']} matrices, {row['parameters']:,} numbers"
        verdict = "" if related is None else f"{'related' if related else 'independent'} (z = {z:.1f})"
        for x, y in ((row["a"], row["b"]), (row["b"], row["a"])):
            rows.append({"x": x, "y": y, "value": value, "shown": said, "compared": told, "verdict": verdict,
                         "dot": "●" if related else ""})  # fmt: skip
    side = max(min(SIDE, 28 * len(order)), 120)
    axis = {"labelLimit": 260, "labelOverlap": len(order) > 60}
    band = {"type": "nominal", "scale": {"domain": order, "paddingInner": 0.03}, "title": None}
    tip = [{"field": "x", "title": "model"}, {"field": "y", "title": "and"}, {"field": "shown", "title": heading},
           {"field": "compared"}, {"field": "verdict"}]  # fmt: skip
    legend = {"orient": "bottom", "title": heading, "gradientLength": min(side, 300), "tickCount": 4, "format": ".3~g"}
    layers: list[Spec] = [
        {"transform": [{"filter": "!isValid(datum.value)"}],
         "mark": {"type": "rect", "style": "missing"}, "encoding": {"tooltip": tip}},
        {"transform": [{"filter": "isValid(datum.value)"}], "mark": {"type": "rect"},
         "encoding": {"tooltip": tip, "fill": {
             "field": "value", "type": "quantitative", "legend": legend,
             "scale": {"scheme": "viridis", "domain": list(domain), "clamp": True, "reverse": not alike}}}},
    ]  # fmt: skip
    if len(order) <= 60:
        ink = {"condition": {"test": "datum.value === null", "value": "#5b6470"}, "value": "#15181c"}
        layers.append({"transform": [{"filter": "datum.dot !== ''"}], "mark": {"type": "text", "fontSize": 8},
                       "encoding": {"text": {"field": "dot"}, "fill": ink, "tooltip": tip}})  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",  # names the language; nothing is fetched
        "description": f"{heading} of every pair of {len(order)} models.",
        "title": {"text": heading, "subtitle": "● cannot be independent; grey: nothing in common to compare"},
        "width": side, "height": side, "data": {"values": rows}, "config": theme(),
        "encoding": {"x": {**band, "field": "x", "axis": {**axis, "labelAngle": -45}},
                     "y": {**band, "field": "y", "axis": axis}},
        "layer": layers,
    }  # fmt: skip


def similarity_map(pairs: pl.DataFrame, quantity: str | None = None) -> altair.Chart:
    """Every pair of models as a cell, in the order of their clusters, as an `altair.Chart`.

    Parameters
    ----------
    pairs : polars.DataFrame
        What ``za.weight_similarity`` returns, of at most 400 models.
    quantity : str, optional
        ``cosine_distance``, ``l2_distance``, ``sign_agreement`` or, where it was asked for, ``spectral_distance``;
        default the first, or the last where no names match.

    Raises
    ------
    ReportError
        For an unknown quantity, or too many models.
    """
    import altair

    return altair.Chart.from_dict(_spec(pairs, quantity))


def write_similarity_map(
    pairs: pl.DataFrame, path: str | Path, *, quantity: str | None = None, models: pl.DataFrame | None = None
) -> Path:
    """Write the map of `similarity_map` as a page that works offline, or as a picture.

    Parameters
    ----------
    pairs, quantity
        As for `similarity_map`.
    path : path
        The suffix decides: ``.html``, ``.svg``, ``.png`` or ``.json`` (the Vega-Lite specification with its data).
    models : polars.DataFrame, optional
        ``WeightSimilarity.models``, shown below the map of a page: what share of each model was compared.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ReportError
        For another suffix.
    StoreError
        If it cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ReportError(
            f"cannot write a similarity map as {path.name!r}; name it {', '.join('.' + f for f in FORMATS)}."
        )
    spec = _spec(pairs, quantity)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _drawn(spec, kind, pairs, models))
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _drawn(spec: Spec, kind: str, pairs: pl.DataFrame, models: pl.DataFrame | None) -> bytes:
    if kind == "json":
        return json.dumps(spec, indent=1).encode()
    if kind == "html":
        return _page(spec, pairs, models).encode()
    import vl_convert

    white = {**spec, "background": "white"}
    if kind == "svg":
        return vl_convert.vegalite_to_svg(white).encode()
    return vl_convert.vegalite_to_png(white, scale=2.0)


def _page(spec: Spec, pairs: pl.DataFrame, models: pl.DataFrame | None) -> str:
    from zoarium import __version__
    from zoarium.report.page import script_hash

    related = int(pairs["related"].sum())
    none = int(pairs["matched"].eq(0).sum())
    summary = (
        f"{len(pairs):,} pairs: {related:,} cannot be independent, {none:,} have no matrix in common. Point at a cell "
        "for its numbers."
    )
    policy = (
        f"default-src 'none'; script-src {script_hash(bundle())} {script_hash(SCRIPT)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return string.Template(PAGE).substitute(
        policy=policy, version=text(__version__), title="Similarity of models", summary=text(summary),
        label=text(spec["description"]), table=_table(models), data=embedded(spec), bundle=bundle(), script=SCRIPT,
    )  # fmt: skip


def _table(models: pl.DataFrame | None) -> str:
    if models is None:
        return ""
    head = "<tr><th>model</th><th>parameters</th><th>matrices compared</th><th>share compared</th></tr>"
    rows: list[Any] = [
        f"<tr><td>{text(r['model'])}</td><td class=n>{r['parameters']:,}</td><td class=n>{r['kept']}</td>"
        f"<td class=n>{r['share']:.1%}</td></tr>"
        for r in models.iter_rows(named=True)
    ]
    return f"<table>{head}{''.join(rows)}</table>"
