"""Write one model as a folder of open files with a card, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoarium._core.errors import NetError, StoreError, unknown_name
from zoarium._core.files import sync, write_error
from zoarium.zoo.model_folder.program import write_program
from zoarium.zoo.model_folder.safetensors_writer import write_safetensors
from zoarium.zoo.model_folder.transformers import to_transformers
from zoarium.zoo.store import software_versions

if TYPE_CHECKING:
    from torch import Tensor

    from zoarium.zoo.foreign.model import ForeignModel
    from zoarium.zoo.model import Model

Format = Literal["torch", "transformers", "pt2"]
FORMATS = ("torch", "transformers", "pt2")
DTYPES = ("float64", "float32", "float16", "bfloat16")
WEIGHTS = {"torch": "model.safetensors", "transformers": "model.safetensors", "pt2": "model.pt2"}
Facts = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Exported:
    """What is written, for the card and ``config.json`` to describe."""

    format: str
    dtype: str | None
    license: str | None
    tensors: Facts
    load: Callable[[str], Tensor] = field(repr=False)
    epoch: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # of transformers


def export_model(
    model: Model | ForeignModel, folder: str | Path, epoch: int | None = None, *, format: Format = "torch",
    dtype: str | None = None, license: str | None = None,
) -> Path:  # fmt: skip
    """Write one model as a folder that other programs load.

    Parameters
    ----------
    model : Model or ForeignModel
        One of a zoo, or what ``za.read_model`` returns.
    folder : path
        Where to: empty or not there yet.
    epoch : int, optional
        A stored epoch, default the last.
    format : {"torch", "transformers", "pt2"}, default "torch"
        ``torch``: ``model.safetensors`` with the tensors under our names, which for `resnet18`, `resnet50` and `vit`
        are torchvision's. ``transformers``: a folder for ``AutoModel...from_pretrained``, for `gpt2`, `vit` and
        ResNets with the "imagenet" stem. ``pt2``: the whole computation, as a program of ``torch.export``, for any net
        it can follow.
    dtype : {"float64", "float32", "float16", "bfloat16"}, optional
        Type of the floating-point tensors; default as they are stored.
    license : str, optional
        As the hub spells it, such as ``"cc-by-4.0"``; goes into the card.

    Returns
    -------
    Path
        The folder. It holds the weights, ``config.json`` and a card, ``README.md``, with lineage, training, data,
        results and how to load it; with ``transformers``, ``zoarium.json`` holds our own facts.

    Raises
    ------
    StoreError
        If the folder holds something, or cannot be written.
    NetError
        If the format does not fit the net.

    Notes
    -----
    The folder appears whole. A foreign model is copied tensor by tensor, so that it takes the memory of its largest.

    Examples
    --------
    >>> import tempfile, torch, zoarium as za
    >>> model = za.grow("mlp", width=[4], epochs=1)[0]
    >>> folder = export_model(model, tempfile.mkdtemp(), format="pt2")
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'config.json', 'model.pt2']
    >>> net = torch.export.load(folder / "model.pt2").module()
    >>> torch.equal(net(torch.ones(5, 1, 8, 8)), model.module()(torch.ones(5, 1, 8, 8)))
    True
    """
    for what, value, known in (("format", format, FORMATS), ("dtype", dtype, (*DTYPES, None))):
        if value not in known:
            raise StoreError(unknown_name(f"{what} of an export", value, [k for k in known if k]))
    from zoarium.zoo.model import Model

    with _new_folder(Path(folder)) as target:
        if isinstance(model, Model):
            _write_own(model, target, epoch, format, dtype, license)
        else:
            _write_foreign(model, target, format, dtype, license)
    return Path(folder)


def _write_own(
    model: Model, target: Path, epoch: int | None, format: str, dtype: str | None, license: str | None
) -> None:
    from zoarium.report.model_card import model_card

    place = model.place(epoch)
    state = {k: _cast(v, dtype) for k, v in model.state_dict(place.epoch).items()}
    config: dict[str, Any] = {}
    if format == "transformers":
        config, state = _as_transformers(model, state, dtype)
    facts = {k: (_name(v), tuple(v.shape)) for k, v in state.items()}
    exported = Exported(format, dtype, license, facts, state.__getitem__, place.epoch, config)
    weights = target / WEIGHTS[format]
    if format == "pt2":
        module = model.module(epoch=place.epoch)
        module = module if dtype is None else module.to(_torch(dtype))
        write_program(weights, module, _in_shape(model), f"model {model.id!r}")
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    else:
        digest = write_safetensors(weights, facts, exported.load)
    own = _describe(model, place.epoch, place.digest, weights.name, digest, dtype)
    if config:
        _write_json(target / "config.json", config)
        _write_json(target / "zoarium.json", own)
    else:
        _write_json(target / "config.json", own)
    (target / "README.md").write_text(model_card(model, exported), encoding="utf-8")


def _as_transformers(model: Model, state: dict[str, Tensor], dtype: str | None) -> tuple[dict[str, Any], Any]:
    from zoarium.nets.registry import NETS, axes_of

    row = model.row
    net = str(row.get("net"))
    if net not in NETS:
        raise NetError(
            f"model {model.id!r} has the net {net!r}, which transformers does not know; choose format='torch' or 'pt2'."
        )
    data = model.zoo.store.manifest.data[str(row["data"])] if row.get("data") else None
    params = {**axes_of(net), **json.loads(row.get("net_params") or "{}")}
    config, renamed = to_transformers(net, params, _in_shape(model), state, data.classes if data else ())
    kinds = {_name(v) for v in renamed.values() if v.is_floating_point()}
    config["torch_dtype"] = dtype or (kinds.pop() if len(kinds) == 1 else "float32")
    return config, renamed


def _in_shape(model: Model) -> tuple[int, ...]:
    data = model.zoo.store.manifest.data.get(str(model.row.get("data")))
    if data is None:
        raise NetError(
            f"the shape of one input of model {model.id!r} is not known, since zoo.json does not describe its data; "
            "choose format='torch'."
        )
    return data.in_shape


def _describe(model: Model, epoch: int, digest: str, file: str, sha256: str, dtype: str | None) -> dict[str, Any]:
    """Our own facts of a model: what it is, where it comes from, and what its weights are."""
    row = model.row
    data = model.zoo.store.manifest.data.get(str(row.get("data")))
    return {
        "format": "zoarium-model",
        "version": 1,
        "id": model.id,
        "epoch": epoch,
        "architecture": {
            "net": row.get("net"),
            "net_params": json.loads(row.get("net_params") or "{}"),
            "in_shape": list(data.in_shape) if data else None,
            "n_outputs": data.n_outputs if data else None,
        },
        "config": model.config,
        "data": data.model_dump(mode="json") if data else None,
        "lineage": model.lineage,
        "weights": {"file": file, "sha256": sha256, "digest": digest, "dtype": dtype or "as stored"},
        "software": software_versions(),
    }


def _write_foreign(model: ForeignModel, target: Path, format: str, dtype: str | None, license: str | None) -> None:
    from zoarium.report.model_card import foreign_card

    if format != "torch":
        raise NetError(
            f"the architecture of {model.name!r} is not known, only its tensors; choose format='torch', which copies "
            "them under their names."
        )
    facts = {k: (_cast_name(info.dtype, dtype), info.shape) for k, info in model.tensors.items()}
    exported = Exported(format, dtype, license, facts, lambda name: _cast(model.tensor(name), dtype))
    digest = write_safetensors(target / "model.safetensors", facts, exported.load)
    config = dict(model.metadata.get("config") or {})
    config.pop("auto_map", None)  # names code that is not copied
    sources = [{"file": s.path.name, "size": s.size, "sha256": s.sha256} for s in model.sources]
    own = {
        "format": "zoarium-model", "version": 1, "id": model.name, "architecture": None, "foreign": model.format,
        "lineage": [{"id": model.name, "relation": "copy", "parents": sources}],
        "weights": {"file": "model.safetensors", "sha256": digest, "dtype": dtype or "as stored"},
        "software": software_versions(),
    }  # fmt: skip
    _write_json(target / "zoarium.json", own)
    _write_json(target / "config.json", config or own)
    (target / "README.md").write_text(foreign_card(model, exported), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _torch(dtype: str) -> Any:
    import torch

    return getattr(torch, dtype)


def _cast_name(stored: str, dtype: str | None) -> str:
    return dtype if dtype is not None and stored.startswith(("float", "bfloat")) else stored


def _cast(tensor: Tensor, dtype: str | None) -> Tensor:
    return tensor.to(_torch(dtype)) if dtype is not None and tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that becomes it when the block ends well, and is removed when it does not."""
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if held:
            one = next((name for name in (*WEIGHTS.values(), "config.json") if name in held), min(held))
            raise StoreError(f"{folder} holds a {one} already; choose another folder.")
        folder = Path(os.path.abspath(folder))
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if folder.is_dir():
            folder.rmdir()
        os.rename(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
