"""The ``zoarium study`` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from zoarium._core.errors import ZoariumError
from zoarium.cli.options import Json, Quiet, Workers
from zoarium.cli.output import out, print_frame, print_json, progress

study_app = typer.Typer(no_args_is_help=True, help="Claims of published methods as runnable studies.")


@study_app.command("list")
def study_list(json: Json = False) -> None:
    """List the studies with their claims."""
    import polars as pl

    from zoarium.studies import STUDIES

    rows = [
        {"study": name, "title": m.facts["title"], "claim": m.facts["claim"], "source": m.reference}
        for name, m in STUDIES.items()
    ]
    print_frame(pl.DataFrame(rows), as_json=json, rows=200)


@study_app.command("show")
def study_show(
    number: Annotated[str, typer.Argument(metavar="NN", help="Number of a study.")], json: Json = False
) -> None:
    """Show a study's claim, data, thresholds and source."""
    from zoarium.studies import STUDIES

    method = STUDIES[number]
    content = {
        "study": number,
        **method.facts,
        "source": method.reference,
        "about": (method.function.__doc__ or "").strip(),
    }
    if json:
        print_json(content)
    else:
        for key, value in content.items():
            out.print(f"[bold]{key}[/]: {escape(str(value))}")


@study_app.command("run")
def study_run(
    numbers: Annotated[list[str] | None, typer.Argument(metavar="NN...", help="Numbers of studies.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all of them.")] = False,
    seeds: Annotated[str | None, typer.Option(help="Zoo seeds to judge on, such as 1,2,3.")] = None,
    store: Annotated[Path | None, typer.Option(help="Keep tables and figures in this folder.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 unless every claim is reproduced.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run studies on fresh seeds and print their verdicts.

    Example: [bold]zoarium study run 01 --seeds 1,2,3[/]
    """
    from zoarium.studies import STUDIES, run_study

    chosen = list(STUDIES) if every else list(numbers or [])
    if not chosen:
        raise ZoariumError(f"no study named; give numbers or --all. Known: {', '.join(STUDIES)}.")
    for number in chosen:
        STUDIES[number]  # an unknown one is said before any of them runs
    results = []
    for number in chosen:
        with progress(f"study {number}", quiet=quiet or json) as bar:
            result = run_study(number, seeds=_numbers(seeds), workers=workers, on_progress=bar)
        if store is not None:
            result.save(store)
        if not json:
            out.print(result.text(), markup=False)
        results.append(result)
    if json:
        print_json([result.to_dict() for result in results])
    if strict and not all(result.reproduced for result in results):
        raise typer.Exit(1)


def _numbers(text: str | None) -> list[int] | None:
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise ZoariumError(f"--seeds takes whole numbers such as 1,2,3, found {text!r}.") from error


@study_app.command("page")
def study_page(
    results: Annotated[Path, typer.Option(help="Folder of stored results.")] = Path("studies/results"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file to write.")] = Path("docs/studies.md"),
) -> None:
    """Write the page of studies from stored results."""
    from zoarium._core.files import write_text
    from zoarium.studies import studies_page

    write_text(output, studies_page(results, assets=output.parent / "pictures"))
