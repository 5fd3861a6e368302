"""Find out what a path holds and read it: one file, several with an index, or a folder of Hugging Face's layout."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign.gguf import read_gguf
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.onnx import beside, read_onnx
from zoarium.zoo.foreign.safetensors_reader import read_safetensors
from zoarium.zoo.foreign.source import AGAIN, MAX_JSON, SourceFile, faults_named, parse_json, shown
from zoarium.zoo.foreign.torch_reader import read_torch_legacy, read_torch_zip

if TYPE_CHECKING:
    from torch import Tensor

READERS = {
    "safetensors": read_safetensors,
    "torch": read_torch_zip,
    "torch-legacy": read_torch_legacy,
    "onnx": read_onnx,
    "gguf": read_gguf,
}
SUFFIXES = {".safetensors": "safetensors", ".onnx": "onnx", ".gguf": "gguf"}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".jit", ".ts")
PREFERRED = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
    "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
MAX_SHARDS = 10_000


def read_model(path: str | Path) -> ForeignModel:
    """Read what a file or folder says of a model; its tensors are loaded one by one, when asked for.

    Parameters
    ----------
    path : path or str
        A file of safetensors, of ``torch.save`` (``.pt``, ``.pth``, ``.ckpt``, ``.bin``), TorchScript, ONNX or GGUF; an
        index of shards (``*.index.json``); a folder with one of these, such as a Hugging Face model with its
        ``config.json``; or a model of the Hugging Face hub as ``hf:org/model``, ``hf:org/model@REVISION`` or
        ``hf:org/model:FILE``, which needs the extra ``hub``. Formats are told by content; the suffix decides for
        ``.safetensors``, ``.onnx`` and ``.gguf``.

    Returns
    -------
    ForeignModel
        Types and shapes of all tensors; see there for reading them.

    Raises
    ------
    StoreError
        If there is no such file, or its format, or something in it, is one we do not read.
    DamagedError
        If lengths, offsets, counts or checksums do not fit each other or the file.

    Notes
    -----
    Nothing in a file is run or imported. Pickles go through a machine of our own that knows only tensors and plain
    containers; everything else is recorded by name in ``metadata["stubs"]``. Headers are held in memory (at most
    100 MB), tensors are not. The pickle inside a PyTorch file may have 64 MiB, and its objects 32 times its
    size; other headers are bounded likewise ("Foreign files" in the documentation has the numbers).

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> path = Path(tempfile.mkdtemp()) / "two.safetensors"
    >>> save_file({"bias": torch.zeros(3), "weight": torch.ones(3, 2)}, path)
    >>> for name, tensor in read_model(path):
    ...     print(name, tuple(tensor.shape), tensor.sum().item())
    bias (3,) 0.0
    weight (3, 2) 6.0
    """
    if isinstance(path, str) and path.startswith("hf:"):
        from zoarium.zoo.foreign.hub import read_hub

        return read_hub(path)
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise StoreError(f"there is no file or folder {path}; check the path.")
    return _read_sharded(path) if path.name.endswith(".index.json") else _read_file(path)


def _read_file(path: Path) -> ForeignModel:
    source = SourceFile(path)
    kind = _format(source)
    with faults_named(path, kind):
        return READERS[kind](source)


def _format(source: SourceFile) -> str:
    """The format of a file, by its suffix where that is one format's own, else by its first bytes."""
    path = source.path
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    head = bytes(source.read(0, min(source.size, 16)))
    if head[:4] == b"GGUF":
        return "gguf"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size:
        return "safetensors"
    with source.open() as file:
        if head[:4] == b"PK\x03\x04" or zipfile.is_zipfile(file):
            return "torch"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "torch-legacy"
    raise StoreError(
        f"{path} ({source.size} bytes) is none of safetensors, torch, TorchScript, ONNX and GGUF; "
        "convert it to safetensors, or give it its suffix (.safetensors, .onnx, .gguf)."
    )


def weights_of_folder(folder: Path) -> Path:
    """The file of weights, or the index of shards, that stands for the model in a folder.

    Raises
    ------
    StoreError
        If the folder cannot be listed, or does not hold just one.
    """
    names = _names_in(folder)
    chosen = next((name for name in PREFERRED if name in names), None)
    if chosen is None:
        held = sorted(name for name in names if name.lower().endswith((*WEIGHTS, ".index.json")))
        indices = [name for name in held if name.endswith(".index.json")]
        held = indices or held
        if len(held) != 1:
            listed = ", ".join(held[:10]) or "none"
            raise StoreError(f"{folder} holds {len(held)} files of weights ({listed}); give the path of one file.")
        (chosen,) = held
    return beside(folder / chosen, chosen)


def _names_in(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error.strerror}; give a folder you may read.") from error


def _read_folder(folder: Path) -> ForeignModel:
    path = weights_of_folder(folder)
    model = _read_sharded(path) if path.name.endswith(".index.json") else _read_file(path)
    facts = dict(model.metadata)
    if "config.json" in _names_in(folder):
        facts["config"] = read_json(beside(folder / "config.json", "config.json"))
    name = folder.name or folder.resolve().name
    return replace(model, name=name, metadata=facts)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file that must hold a table of names and values."""
    source = SourceFile(path)
    if source.size > MAX_JSON:
        raise DamagedError(f"{path} has {source.size} bytes, more than any index or configuration; {AGAIN}.")
    found = parse_json(path, source.read(0, source.size), "it")
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is not a table of names and values; {AGAIN}.")
    return found


def _read_sharded(path: Path) -> ForeignModel:
    """The model of an index such as ``model.safetensors.index.json``: tensor to file, all in the index's folder."""
    index = read_json(path)
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise DamagedError(f"{path} has no weight_map from tensors to files; {AGAIN}.")
    names = list(dict.fromkeys(where.values()))
    if len(names) > MAX_SHARDS:
        raise DamagedError(f"{path} names {len(names)} files, more than {MAX_SHARDS}; {AGAIN}.")
    shards: dict[str, ForeignModel] = {}
    for name in names:
        shard = beside(path, name)
        if not shard.is_file():
            raise StoreError(
                f"{path} names the file {shown(name)}, which is missing; download it into the same folder."
            )
        shards[name] = _read_file(shard)
    for tensor, name in where.items():
        if tensor not in shards[name]:
            raise DamagedError(f"{path}: tensor {shown(tensor)} should be in {shown(name)} and is not; {AGAIN}.")
    extra = {name: sum(where.get(tensor) != name for tensor in shard.tensors) for name, shard in shards.items()}
    facts: dict[str, Any] = {"stubs": {k: v for s in shards.values() for k, v in s.metadata.get("stubs", {}).items()}}
    facts["left_out"] = {name: n for name, n in extra.items() if n}  # tensors the index does not name
    facts["header"] = index.get("metadata")

    def load(tensor: str) -> Tensor:
        return shards[where[tensor]].tensor(tensor)

    def load_part(tensor: str, start: int, stop: int) -> Tensor:
        return shards[where[tensor]].part(tensor, start, stop)

    tensors = {tensor: shards[name].tensors[tensor] for tensor, name in where.items()}
    formats = sorted({shard.format for shard in shards.values()})
    sources = tuple(source for shard in shards.values() for source in shard.sources)
    name = path.name.removesuffix(".index.json")
    facts = {k: v for k, v in facts.items() if v}
    return ForeignModel(name, "+".join(formats), sources, tensors, load, facts, load_part)
