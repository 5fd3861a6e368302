"""The commands. Each parses its words, calls one function of the library and prints what it returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml

from zoarium._core.errors import ZoariumError
from zoarium.cli.interrupts import exit_codes
from zoarium.cli.options import Address, Backend, Cores, Json, Memory, Quiet, Settings, Workers, ZooPath
from zoarium.cli.output import err, out, print_frame, print_json, progress
from zoarium.cli.study import study_app
from zoarium.cli.twins import twins_app

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


def run() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    with suppress(AttributeError, ValueError):  # names of files may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with exit_codes():
            app()
    except ZoariumError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """``["samples=100", "layers=[fc1, logits]"]`` as a mapping; values are YAML."""
    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ZoariumError(f"--set takes KEY=VALUE, found {pair!r}.")
        try:
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ZoariumError(f"--set {key}: {value!r} is not a valid value.") from error
    return settings


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
        out.print(Padding(f"{number}. {_escape(str(finding))}", (0, 0, 0, 2)))
    timing = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    out.print(f"\n{len(result.zoo)} models: {timing}")
    out.print(f"report: {_escape(str(result.report))}", soft_wrap=True)


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
            checkpoints=_checkpoints(kept),
            on_progress=bar,
        )
    _print_zoo(zoo, json)


def _checkpoints(text: str) -> str | list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text


def _print_zoo(zoo: Any, as_json: bool) -> None:
    if as_json:
        print_json(zoo.summary())
    else:
        out.print(_escape(str(zoo)), soft_wrap=True)


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
        out.print(f"[bold]{row['program']}[/] {_escape(size)}: {_escape(row['reason'])}", soft_wrap=True)
    total = f"{programs['models'].sum():,} models in {len(programs)} programs"
    out.print(f"{total}, ~{programs['seconds'].sum():.2g} s on one core")


@app.command()
def add(
    zoo: Annotated[Path, typer.Argument(metavar="ZOO", help="Folder of a zoo; made if it is not there.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Files, folders, hf:org/model@REVISION, ray:FOLDER.", show_default=False
        ),
    ],
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy weights into the zoo instead of pointing at them.")
    ] = False,
    net: Annotated[str | None, typer.Option(help="Net of all these models; --set gives its parameters.")] = None,
    setting: Settings = None,
    data: Annotated[str | None, typer.Option(help="What the models are measured on.")] = None,
    epochs: Annotated[
        str, typer.Option(help="Which epochs of Ray-era trials: last, last:5, every, every:10, or 5,10,30.")
    ] = "last",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Bring models that exist already into a zoo; no code of theirs is run.

    Folders are searched for every model below them. What cannot be read is named and skipped, and the exit code is
    then 1. Example: [bold]zoarium add zoo/ ./checkpoints hf:org/model[/]
    """
    import polars as pl

    import zoarium as za

    with progress("add", quiet=quiet or json) as bar:
        added = za.add(
            zoo, *sources, copy=copy, net=net, net_params=_settings(setting), data=data,
            epochs=_checkpoints(epochs), on_progress=bar,
        )  # fmt: skip
    if json:
        print_json(added.to_dict())
    else:
        taken = added.table.filter(pl.col("id").is_not_null())
        if len(taken):
            print_frame(taken.select("id", "state", "format", "n_params", "detail"), as_json=False, rows=200)
        for source, state, detail in (
            added.table.filter(pl.col("id").is_null()).select("source", "state", "detail").iter_rows()
        ):
            line = f"{state}: {'' if source in detail else source + ': '}{detail}"
            out.print(_escape("".join(c if c.isprintable() else "?" for c in line)), soft_wrap=True)
        out.print(_escape(f"{added}; {zoo} holds {len(added.zoo)} models."), soft_wrap=True)
    if added.counts["skipped"]:
        raise typer.Exit(1)


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
            **_settings(setting),
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

    chosen = _settings(setting)
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
            _print_zoo(opened, False)
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
        out.print(f"report: {_escape(str(path))}", soft_wrap=True)
        if files:
            out.print(f"charts: {len(files)} files in {_escape(str(charts))}", soft_wrap=True)


@app.command()
def predict(zoo: ZooPath, json: Json = False) -> None:
    """Predict test accuracy and phase from weight statistics alone, against the trivial predictors."""
    import zoarium as za
    from zoarium.evaluate.weight_statistics import predict_from_weights

    print_frame(predict_from_weights(za.open(zoo)), as_json=json, title=str(zoo))


@app.command()
def export(
    zoo: ZooPath,
    model: Annotated[str, typer.Argument(help="A model's id.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    format: Annotated[
        str, typer.Option(help="torch (safetensors), transformers (gpt2, vit, resnet), or pt2 (torch.export).")
    ] = "torch",
    epoch: Annotated[int | None, typer.Option(help="A stored epoch; default the last.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float64, float32, float16 or bfloat16; default as stored.")] = None,
    license: Annotated[str | None, typer.Option(help="For the card, as the hub spells it, such as cc-by-4.0.")] = None,
    json: Json = False,
) -> None:
    """Export one model as a folder with a card that PyTorch or transformers loads.

    Example: [bold]zoarium export zoo/ gpt2-3fa2c1 -o my-gpt2 --format transformers[/]
    """
    import zoarium as za

    path = za.open(zoo)[model].export(output, epoch, format=cast("Any", format), dtype=dtype, license=license)
    if json:
        print_json({"folder": path})
    else:
        out.print(f"exported: {_escape(str(path))}", soft_wrap=True)


@app.command()
def push(
    zoo: ZooPath,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Data set on the hub: owner/name.", show_default=False)],
    private: Annotated[bool, typer.Option(help="Make a new data set private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; default main.")] = None,
    license: Annotated[str, typer.Option(help="As the hub spells it.")] = "cc-by-4.0",
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    card: Annotated[Path | None, typer.Option(help="Your own card, a Markdown file; default a generated one.")] = None,
    no_card: Annotated[bool, typer.Option("--no-card", help="Leave the card as it is.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Push a zoo to the Hugging Face hub as a data set with a card; run again to resume.

    Example: [bold]zoarium push zoo/ me/digit-phases --private[/]
    """
    from dataclasses import asdict

    import zoarium as za

    opened = za.open(zoo)
    with _quiet_hub(), progress("push", quiet=quiet or json) as bar:
        pushed = opened.push_to_hub(
            repo,
            private=private or None,
            revision=revision,
            license=license,
            commit_message=message,
            create_pr=create_pr,
            card=False if no_card else True if card is None else card,
            on_progress=bar,
        )
    if json:
        print_json(asdict(pushed))
    else:
        out.print(f"pushed: {_escape(str(pushed))}", soft_wrap=True)


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Data set on the hub: owner/name.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the zoo goes; an unfinished one is resumed.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default main.")] = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Leave weights on the hub until a model is needed.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Pull a zoo from the Hugging Face hub, verified; run again to resume.

    Example: [bold]zoarium pull me/digit-phases -o zoo/[/]
    """
    import zoarium as za

    with _quiet_hub(), progress("pull", quiet=quiet or json) as bar:
        zoo = za.Zoo.from_hub(repo, output, revision=revision, weights=not tables_only, on_progress=bar)
    if json:
        origin = zoo.origin
        assert origin is not None
        print_json({**zoo.summary(), "revision": origin.revision})
    else:
        _print_zoo(zoo, False)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's client draws bars of its own; ours is enough."""
    from zoarium._core.extras import require

    utils = require("huggingface_hub.utils", "hub", "sharing on the Hugging Face hub")
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


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


@app.command()
def weights(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A file or folder of weights, or hf:org/model.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Norms, ranks and spectra of every weight matrix of a model from elsewhere.

    Reads safetensors, PyTorch files, TorchScript, ONNX, GGUF and Hugging Face folders, one tensor at a time, and runs
    no code of theirs. Example: [bold]zoarium weights model.safetensors[/]
    """
    import zoarium as za
    from zoarium.measure.weight_norms import weight_report

    found = za.read_model(model)
    print_frame(weight_report(found), as_json=json, title=str(found), rows=200)


@app.command()
def similarity(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders of models, zoos.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the map: .html, .svg, .png or .json.")
    ] = None,
    quantity: Annotated[str | None, typer.Option(help="What the map shows; default cosine_distance.")] = None,
    spectra: Annotated[bool, typer.Option(help="Also compare singular values, which needs no equal names.")] = False,
    tensors: Annotated[bool, typer.Option(help="Print a row a pair and tensor.")] = False,
    left_out: Annotated[bool, typer.Option(help="Print what was not compared, and why.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare every pair of models by their weights, and tell which cannot be independent.

    Needs no architecture and runs no code of the files. A folder stands for all models below it; a prefix of names
    such as module. may differ. Example: [bold]zoarium similarity checkpoints/ -o map.html[/]
    """
    from zoarium.measure.similarity import weight_similarity_result

    with progress("similarity", quiet=quiet or json) as bar:
        found = weight_similarity_result(sources, spectra=spectra, per_tensor=tensors, on_progress=bar)
    if output is not None:
        from zoarium.report import write_similarity_map

        write_similarity_map(found.pairs, output, quantity=quantity, models=found.models)
    if json:
        parts = {"pairs": found.pairs, "models": found.models, "left_out": found.left_out}
        parts |= {"tensors": found.tensors} if tensors else {}
        print_json({name: table.to_dicts() for name, table in parts.items()})
        return
    shown = ["a", "b", "related", *(["spectral_distance"] if spectra else []), "cosine_distance", "z", "l2_distance"]
    first = [*shown, "share_a", "share_b", "identical", "matched"]
    print_frame(found.tensors if tensors else found.pairs.select(first), as_json=False, rows=200)
    if left_out:
        print_frame(found.left_out, as_json=False, title="left out", rows=1000)
    out.print(_escape(str(found)) + ".", soft_wrap=True)
    if output is not None:
        out.print(f"map: {_escape(str(output))}", soft_wrap=True)


@app.command()
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


@app.command()
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
            out.print(_escape(f"# {one}\n# published: {one.published}\n# our choice: {one.chosen}"), soft_wrap=True)
            out.print(_escape(one.grid.to_yaml()), soft_wrap=True)
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


@app.command()
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


@app.command()
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
