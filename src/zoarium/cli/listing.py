"""Commands that list what there is by name."""

from __future__ import annotations

from typing import Annotated

import typer

from zoarium.cli.options import Json
from zoarium.cli.output import out, print_frame, print_json
from zoarium.cli.words import escape

listing_app = typer.Typer()


@listing_app.command()
def measures(json: Json = False) -> None:
    """List the measures with what they return."""
    import polars as pl

    from zoarium.measure.registry import MEASURES

    rows = [
        {
            "measure": name,
            "one value a": method.facts["scope"],
            "quantities": list(method.facts["quantities"]),
            "summary": method.summary,
            "reference": method.reference,
        }
        for name, method in MEASURES.items()
    ]
    print_frame(pl.DataFrame(rows), as_json=json, rows=200)


@listing_app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="One preset, in full.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List the published zoos that can be grown by name, or show one as YAML."""
    import polars as pl

    import zoarium as za
    from zoarium.growth.presets import PRESETS

    if name is not None:
        one = za.preset(name)
        if json:
            print_json({"name": one.name, "published": one.published, "chosen": one.chosen, "grid": one.grid.to_dict()})
        else:
            out.print(escape(f"# {one}\n# published: {one.published}\n# our choice: {one.chosen}"), soft_wrap=True)
            out.print(escape(one.grid.to_yaml()), soft_wrap=True)
        return
    rows = [
        {
            "preset": key,
            "models": len(one),
            "net": one.grid.net,
            "data": one.grid.axes["data"][0],
            "load": one.grid.load,
            "temperature": one.grid.temperature,
            "offline": bool(one.twin_of) or key == "convection-pinn",
        }
        for key in PRESETS
        if (one := za.preset(key))
    ]
    print_frame(pl.DataFrame(rows), as_json=json, rows=200)


@listing_app.command()
def nets(json: Json = False) -> None:
    """List the architectures with their axes."""
    import inspect

    import polars as pl

    from zoarium.nets.registry import NETS, axes_of

    rows = [
        {
            "net": name,
            "axes": [k if v is inspect.Parameter.empty else f"{k}={v}" for k, v in axes_of(name).items()],
            "summary": method.summary,
            "reference": method.reference,
        }
        for name, method in NETS.items()
    ]
    print_frame(pl.DataFrame(rows), as_json=json, rows=200)


@listing_app.command()
def data(json: Json = False) -> None:
    """List the data sets and what each needs."""
    import polars as pl

    from zoarium.data import DATA, needs

    rows = [
        {
            "data": name,
            "needs": needs(name),
            "summary": method.summary,
            "licence": method.facts["licence"],
            "reference": method.reference,
        }
        for name, method in DATA.items()
    ]
    print_frame(pl.DataFrame(rows), as_json=json, rows=200)
