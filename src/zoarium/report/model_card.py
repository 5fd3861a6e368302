"""The card of one exported model: what it is, how it was made, what it can do, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import polars as pl

from zoarium.report.markdown import block, code, front_matter, table, text
from zoarium.report.quantities import number

if TYPE_CHECKING:
    from zoarium.zoo.foreign.model import ForeignModel
    from zoarium.zoo.model import Model
    from zoarium.zoo.model_folder.export import Exported

TASKS = {"gpt2": "text-generation", "vit": "image-classification", "resnet": "image-classification"}
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def model_card(model: Model, exported: Exported) -> str:
    """The card of a model of a zoo, as Markdown; names and values from the zoo are escaped."""
    row = model.row
    kind = exported.config.get("model_type")
    facts: dict[str, Any] = {"tags": ["zoarium", "model-zoo", *([kind] if kind else [])]}
    if kind:
        facts = {"library_name": "transformers", "pipeline_tag": TASKS[kind], **facts}
    parts = [
        _head(facts, exported.license, model.id),
        f"A {code(row.get('net'))} of {_count(exported)} numbers, one model of a population (status "
        f"{code(model.status)}, epoch {exported.epoch}).",
        "## Load it",
        *_own_load(model, exported),
        "## Training",
        table(["setting", "value"], [[code(k), code(v)] for k, v in model.config.items()]),
        *_data(model),
        *_results(model, exported.epoch),
        "## Lineage",
        table(
            ["model", "made by", "from"],
            [[code(o["id"]), text(o["relation"] or "training"), _list(o["parents"])] for o in model.lineage],
        ),
        *_end(exported, model.zoo.info.get("software", {})),
    ]
    return "\n\n".join(parts) + "\n"


def foreign_card(model: ForeignModel, exported: Exported) -> str:
    """The card of a model from elsewhere whose tensors were copied."""
    files = [[code(s.path.name), f"{s.size:,}", code(s.sha256)] for s in model.sources]
    kinds: dict[str, list[int]] = {}
    for info in model.tensors.values():
        kinds.setdefault(info.stored or info.dtype, []).append(info.numel)
    parts = [
        _head({"tags": ["zoarium"]}, exported.license, model.name),
        f"{_count(exported)} numbers in {len(model):,} tensors, copied from files of the format {code(model.format)}; "
        "no code of theirs was run.",
        "## Load it",
        block(_TORCH, "python"),
        "The architecture is not known to zoarium"
        + ("; `config.json` is the one that lay beside the weights." if model.metadata.get("config") else "."),
        "## Tensors",
        table(["stored as", "tensors", "numbers"], [[code(k), f"{len(v):,}", f"{sum(v):,}"] for k, v in kinds.items()]),
        "## Lineage",
        table(["file", "bytes", "SHA-256"], files),
        *_end(exported, {}),
    ]
    return "\n\n".join(parts) + "\n"


_TORCH = """\
from safetensors.torch import load_file

state = load_file("model.safetensors")"""


def _head(facts: dict[str, Any], license: str | None, name: str) -> str:
    facts = {**({"license": license} if license else {}), **facts}
    return f"{front_matter(facts)}\n# {text(name)}"


def _count(exported: Exported) -> str:
    return f"{sum(prod(shape) for _, shape in exported.tensors.values()):,}"


def _list(names: Iterable[Any]) -> str:
    return ", ".join(map(code, names)) or "–"


def _own_load(model: Model, exported: Exported) -> Iterator[str]:
    data = model.zoo.store.manifest.data.get(str(model.row.get("data")))
    shape = f"(b, {', '.join(map(str, data.in_shape))})" if data else "(b, ...)"
    if exported.format == "transformers":
        head = "CausalLM" if exported.config["model_type"] == "gpt2" else "ImageClassification"
        yield block(
            f"from transformers import AutoModelFor{head}\n\n"
            f'model = AutoModelFor{head}.from_pretrained("path/to/this/folder").eval()',
            "python",
        )
        yield f"Inputs are {shape}, in the scale of the training data. No tokenizer or image processor is included."
    elif exported.format == "pt2":
        yield block('import torch\n\nnet = torch.export.load("model.pt2").module()', "python")
        yield f"It takes inputs {shape} for any b and needs neither zoarium nor the net's code."
    else:
        yield block(_TORCH, "python")
        yield "With the net, by zoarium:"
        architecture = f"{model.row.get('net')!r}, config['net_params']"
        yield block(
            "import json\n\nfrom zoarium.nets import build\n\n"
            'config = json.load(open("config.json"))["architecture"]\n'
            f'net = build({architecture}, in_shape=tuple(config["in_shape"]), n_outputs=config["n_outputs"])\n'
            "net.load_state_dict(state)",
            "python",
        )
        if model.row.get("net") in ("vit", "resnet18", "resnet50"):
            yield "Tensors are called as in torchvision."


def _data(model: Model) -> Iterator[str]:
    name = model.row.get("data")
    info = model.zoo.store.manifest.data.get(str(name))
    if info is None:
        return
    yield "## Data"
    rows = [
        ["name", code(name)], ["task", text(info.task)], ["input", code(info.in_shape)],
        ["outputs", str(info.n_outputs)], ["samples", f"{info.n_train:,} train, {info.n_test:,} test"],
        ["fingerprint", code(info.fingerprint)],
    ]  # fmt: skip
    if info.classes:
        rows.append(["classes", _list(info.classes[:50]) + (" …" if len(info.classes) > 50 else "")])
    yield table(["", ""], rows)


def _results(model: Model, epoch: int | None) -> Iterator[str]:
    """History and measures at the exported epoch, with their standard errors."""
    at = model.history.filter(pl.col("epoch") == epoch)
    known = [name for name in CURVES if len(at) and name in at.columns and at[name][0] is not None]
    rows = [[code(name), number(float(at[name][0])), "–", "history"] for name in known]
    store = model.zoo.store
    for stored in sorted(n for n in store.table_names if n.startswith("measures/")):
        frame = store.table(stored)
        if frame is None or not {"id", "epoch", "quantity", "value"} <= set(frame.columns):
            continue
        mine = frame.filter((pl.col("id") == model.id) & (pl.col("epoch") == epoch) & pl.col("value").is_not_null())
        for one in mine.iter_rows(named=True):
            stderr = one.get("stderr")
            shown = "–" if stderr is None else number(float(stderr))
            measure = stored.removeprefix("measures/")
            rows.append([code(one["quantity"]), number(float(one["value"])), shown, code(measure)])
    if rows:
        yield "## Results"
        yield table(["quantity", "value", "standard error", "measure"], rows)


def _end(exported: Exported, software: dict[str, Any]) -> Iterator[str]:
    if exported.dtype is not None:
        yield f"Floating-point tensors were cast to {code(exported.dtype)} for this folder."
    yield "## Licence"
    yield f"{code(exported.license)}." if exported.license else "None has been chosen: ask the owner before you use it."
    if software:
        yield f"Made with {', '.join(f'{text(k)} {text(v)}' for k, v in software.items())}."
