"""The ``zoarium twins`` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoarium._core.errors import ZoariumError
from zoarium.cli.options import Json, Quiet, Workers
from zoarium.cli.output import out, print_json, progress

twins_app = typer.Typer(no_args_is_help=True, help="Offline twins of the published zoos, grown and labelled.")


@twins_app.command("run")
def twins_run(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Twins; see: zoarium presets.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all of them.")] = False,
    store: Annotated[Path | None, typer.Option(help="Keep labels and pictures in this folder.")] = None,
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Grow twins, measure them and print their phase diagrams.

    Example: [bold]zoarium twins run cifar10-resnet18-twin[/]
    """
    from zoarium.growth import PRESETS, preset
    from zoarium.studies.twins import run_twin

    chosen = [name for name in PRESETS if preset(name).twin_of] if every else list(names or [])
    if not chosen:
        raise ZoariumError("no twin named; give names or --all. See: zoarium presets.")
    for name in chosen:
        preset(name)  # an unknown one is said before any of them grows
    facts = []
    for name in chosen:
        with progress(name, quiet=quiet or json) as bar:
            result = run_twin(name, workers=workers, on_progress=bar)
        if store is not None:
            result.save(store)
        if not json:
            out.print(result.map, markup=False)
            out.print(
                f"{name}: {result.models} models, grown in {result.seconds['grow']:.0f} s, "
                f"measured in {result.seconds['measure']:.0f} s\n"
            )
        facts.append({"name": name, "seconds": result.seconds, "phases": result.phases.to_dicts()})
    if json:
        print_json(facts)


@twins_app.command("page")
def twins_page(
    results: Annotated[Path, typer.Option(help="Folder of stored results.")] = Path("studies/twins"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file to write.")] = Path("docs/twins.md"),
) -> None:
    """Write the page of twins from stored results."""
    from zoarium._core.files import write_text
    from zoarium.studies.twins import twins_page as page

    write_text(output, page(results, assets=output.parent / "pictures"))
