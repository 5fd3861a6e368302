"""The commands. Each parses its words, calls one function of the library and prints what it returns."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from zoarium._core.errors import ZoariumError
from zoarium.cli.exchange import exchange_app
from zoarium.cli.interrupts import exit_codes
from zoarium.cli.listing import listing_app
from zoarium.cli.options import Address, Backend, Cores, Json, Memory, Quiet, Settings, Workers, ZooPath
from zoarium.cli.output import err, out, print_frame, print_json, print_zoo, progress
from zoarium.cli.study import study_app
from zoarium.cli.twins import twins_app
from zoarium.cli.words import checkpoints_of, escape, settings_of

app = typer.Typer(
    name="zoarium",
    help="Populations of neural networks: grow them, measure every model, label phases, put them to use.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study_app, name="study")
app.add_typer(twins_app, name="twins")
app.add_typer(exchange_app)
app.add_typer(listing_app)


def run() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    with suppress(AttributeError, ValueError):  # names of files may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with exit_codes():
            app()
    except ZoariumError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _version(wanted: bool) -> None:
    if wanted:
        from zoarium import __version__

        print(f"zoarium {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the zoo goes.")] = Path("demo-zoo"),
    overwrite: Annotated[bool, typer.Option(help="Replace a zoo that is there already.")] = False,
    backend: Backend = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Grow 126 digit networks, measure them, label phases and write a report.

    Example: [bold]zoarium demo -o my-zoo[/]
    """
    from zoarium.studies.demo import run_demo

    with progress("demo", quiet=quiet or json) as bar:
        result = run_demo(
            output, overwrite=overwrite, backend=backend, address=address, workers=workers, on_progress=bar
        )
    if json:
        print_json(result.to_dict())
        return
    from rich.padding import Padding

    from zoarium.measure.phases import phase_map_text

    out.print(phase_map_text(result.phases))
    for number, finding in enumerate(result.findings, 1):
        out.print(Padding(f"{number}. {escape(str(finding))}", (0, 0, 0, 2)))
    timing = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    out.print(f"\n{len(result.zoo)} models: {timing}")
    out.print(f"report: {escape(str(result.report))}", soft_wrap=True)


@app.command()
def grow(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC.yaml", help="A grid in YAML, or preset:NAME.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the zoo goes; an unfinished one is resumed.")],
    backend: Backend = "local",
    address: Address = None,
    workers: Workers = None,
    memory: Memory = "2GB",
    cores: Cores = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            help="Which epochs to keep: last, last:5, every, every:10, or a list such as 5,10,30; default last, or "
            "what the preset says."
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Grow every model of a grid.

    Example: [bold]zoarium grow spec.yaml -o zoo/[/] where spec.yaml holds

      net: mlp
      width: [2, 8, 32, 128]
      batch_size: [8, 32, 128]
      seed: {range: [0, 3]}

    A published zoo grows by its name: [bold]zoarium grow preset:cifar10-resnet18-twin -o zoo/[/]; see: zoarium presets.
    """
    import zoarium as za

    chosen = za.preset(spec) if spec.startswith("preset:") else None
    kept = checkpoints or (chosen.checkpoints if chosen else "last")
    with progress("grow", quiet=quiet or json) as bar:
        zoo = za.grow(
            chosen.grid if chosen else za.Grid.from_yaml(Path(spec)),
            output,
            backend=backend,
            address=address,
            workers=workers,
            memory=memory,
            cores=cores,
            checkpoints=checkpoints_of(kept),
            on_progress=bar,
        )
    print_zoo(zoo, json)


@app.command()
def plan(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC.yaml", help="A grid in YAML, or preset:NAME.", show_default=False)
    ],
    memory: Memory = "2GB",
    cores: Cores = None,
    json: Json = False,
) -> None:
    """Say how a grid would grow: its programs, the route of each and why. Nothing is trained or written.

    Example: [bold]zoarium plan spec.yaml[/]
    """
    import zoarium as za
    from zoarium.growth import dry_run

    programs = dry_run(
        spec if spec.startswith("preset:") else za.Grid.from_yaml(Path(spec)), memory=memory, cores=cores
    )
    if json:
        print_frame(programs, as_json=True)
        return
    for row in programs.iter_rows(named=True):
        size = f"{row['models']} models of {row['net']}, {row['route']}, ~{row['seconds']:.2g} s, {row['mib']} MiB"
        out.print(f"[bold]{row['program']}[/] {escape(size)}: {escape(row['reason'])}", soft_wrap=True)
    total = f"{programs['models'].sum():,} models in {len(programs)} programs"
    out.print(f"{total}, ~{programs['seconds'].sum():.2g} s on one core")


@app.command()
def measure(
    zoo: ZooPath,
    names: Annotated[list[str], typer.Argument(metavar="MEASURE...", help="See: zoarium measures.")],
    pairs: Annotated[str, typer.Option(help="Pairs to compare: cell (seeds of a cell) or all.")] = "cell",
    setting: Settings = None,
    backend: Backend = "local",
    address: Address = None,
    workers: Workers = None,
    memory: Memory = "2GB",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure every model, pair or cell of a zoo.

    Example: [bold]zoarium measure zoo/ hessian_trace cka mode_connectivity --set samples=640[/]
    """
    import polars as pl

    import zoarium as za
    from zoarium.measure.driver import quantity_of

    opened = za.open(zoo)
    methods = {quantity_of(name).name: quantity_of(name) for name in names}
    with progress("measure", quiet=quiet or json) as bar:
        opened.measure(
            *names,
            pairs=pairs,
            backend=backend,
            address=address,
            workers=workers,
            memory=memory,
            on_progress=lambda name, done, total: bar(done, total, name),
            **settings_of(setting),
        )
    quantities = [q for method in methods.values() for q in method.facts["quantities"]]
    rows = []
    for quantity in quantities:
        values = opened.values(quantity)
        finite = values.filter(pl.col("value").is_finite())
        rows.append(
            {
                "quantity": quantity,
                "values": len(values),
                "missing": len(values) - len(finite),
                "mean": finite["value"].mean(),
                "min": finite["value"].min(),
                "max": finite["value"].max(),
                "mean stderr": finite["stderr"].mean(),
                "seconds": values["seconds"].sum(),
            }
        )
    print_frame(pl.DataFrame(rows), as_json=json, title=str(zoo))


@app.command()
def phases(
    zoo: ZooPath,
    load: Annotated[str | None, typer.Option(help="Axis of load.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Axis of temperature.")] = None,
    setting: Settings = None,
    json: Json = False,
) -> None:
    """Label the phase of every cell of a zoo.

    Thresholds come from the data unless given, e.g. [bold]--set loss=0.1 --set cka=0.8[/].
    """
    import zoarium as za
    from zoarium.measure.phases import Thresholds, phase_map_text

    chosen = settings_of(setting)
    try:
        thresholds = Thresholds(**chosen) if chosen else None
    except TypeError as error:
        known = ", ".join(Thresholds.__dataclass_fields__)
        raise ZoariumError(f"unknown threshold in {sorted(chosen)}. Known: {known}.") from error
    table = za.open(zoo).phases(load=load, temperature=temperature, thresholds=thresholds)
    if json:
        print_frame(table, as_json=True)
        return
    out.print(phase_map_text(table))
    print_frame(table.drop("cell", "load_axis", "temperature_axis", "caveat", strict=False), as_json=False, rows=200)


@app.command()
def effects(
    zoo: ZooPath,
    backend: Backend = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure what each phase is good for: averaging, ensembling, pruning, fine-tuning.

    Prints the mean effect in each phase with its interval, beside the mean over all cells.
    """
    import zoarium as za
    from zoarium.evaluate.effects import EFFECTS, effects_by_phase

    opened = za.open(zoo)
    with progress("effects", quiet=quiet or json) as bar:
        opened.measure(
            *EFFECTS,
            backend=backend,
            address=address,
            workers=workers,
            on_progress=lambda name, done, total: bar(done, total, name),
        )
    print_frame(effects_by_phase(opened.effects(), opened.phases()), as_json=json, title=str(zoo), rows=200)


@app.command()
def show(
    zoo: ZooPath,
    model: Annotated[str | None, typer.Argument(help="One model's id.", show_default=False)] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
    json: Json = False,
) -> None:
    """Show a zoo, or one of its models."""
    import polars as pl

    import zoarium as za

    opened = za.open(zoo)
    if model is None:
        if not json:
            print_zoo(opened, False)
        table = opened.measured
        if not json:  # first what tells the models apart, then what was measured
            foreign = ("format", "n_params", "source") if "foreign" in table["status"] and not opened.axes else ()
            first = [c for c in ("id", *opened.axes, "seed", "status", *foreign) if c in table.columns]
            table = table.select(*first, *(c for c in table.columns if c not in opened.table.columns))
        print_frame(table, as_json=json, rows=rows)
        return
    one = opened[model]
    content = {"id": one.id, "status": one.status, **one.config, **one.measures}
    if json:
        print_json(content)
    else:
        print_frame(
            pl.DataFrame({"field": list(content), "value": [str(v) for v in content.values()]}),
            as_json=False,
            rows=1000,
        )


@app.command()
def report(
    zoo: ZooPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    charts: Annotated[Path | None, typer.Option(help="Also write every chart as SVG and PNG to this folder.")] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML report that works offline."""
    import zoarium as za

    opened = za.open(zoo)
    path = opened.report(output)
    files = []
    if charts is not None:
        from zoarium.report import save_charts

        files = save_charts(opened, charts)
    if json:
        print_json({"report": path, "charts": files})
    else:
        out.print(f"report: {escape(str(path))}", soft_wrap=True)
        if files:
            out.print(f"charts: {len(files)} files in {escape(str(charts))}", soft_wrap=True)


@app.command()
def predict(zoo: ZooPath, json: Json = False) -> None:
    """Predict test accuracy and phase from weight statistics alone, against the trivial predictors."""
    import zoarium as za
    from zoarium.evaluate.weight_statistics import predict_from_weights

    print_frame(predict_from_weights(za.open(zoo)), as_json=json, title=str(zoo))


@app.command()
def check(
    zoo: ZooPath,
    repair: Annotated[bool, typer.Option(help="Put back what can be rebuilt and set the rest aside.")] = False,
    json: Json = False,
) -> None:
    """Verify every file and every model of a zoo against its checksums; exit 1 if anything is damaged."""
    import polars as pl

    from zoarium.zoo.check import check_zoo

    table = check_zoo(zoo, repair=repair)
    bad = table.filter(pl.col("state") != "ok")
    if json:
        print_frame(table, as_json=True)
    elif len(bad):
        print_frame(bad.select("file", "id", "epoch", "state", "outcome" if repair else "detail"), as_json=False)
    if not json:
        out.print(f"{len(table) - len(bad)} of {len(table)} items are intact.")
        lost = bad.filter(pl.col("outcome").str.starts_with("lost"))
        if repair and len(bad):
            out.print(f"repaired: {len(lost)} of {len(bad)} damaged items are lost, the others are put back or kept.")
    if len(bad):
        raise typer.Exit(1)
