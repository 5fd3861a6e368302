"""Commands for models and zoos that come from elsewhere or go there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from zoarium.cli.options import Json, Quiet, Settings, ZooPath
from zoarium.cli.output import out, print_frame, print_json, print_zoo, progress
from zoarium.cli.words import checkpoints_of, escape, settings_of

exchange_app = typer.Typer()


@exchange_app.command()
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
            zoo, *sources, copy=copy, net=net, net_params=settings_of(setting), data=data,
            epochs=checkpoints_of(epochs), on_progress=bar,
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
            out.print(escape("".join(c if c.isprintable() else "?" for c in line)), soft_wrap=True)
        out.print(escape(f"{added}; {zoo} holds {len(added.zoo)} models."), soft_wrap=True)
    if added.counts["skipped"]:
        raise typer.Exit(1)


@exchange_app.command()
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
        out.print(f"exported: {escape(str(path))}", soft_wrap=True)


@exchange_app.command()
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
        out.print(f"pushed: {escape(str(pushed))}", soft_wrap=True)


@exchange_app.command()
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
        print_zoo(zoo, False)


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


@exchange_app.command()
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


@exchange_app.command()
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
    out.print(escape(str(found)) + ".", soft_wrap=True)
    if output is not None:
        out.print(f"map: {escape(str(output))}", soft_wrap=True)
