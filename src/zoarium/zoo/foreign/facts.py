"""What a zoo records of a model from elsewhere: plain names, an architecture, digests, sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zoarium._core.digest import settings_hash
from zoarium.zoo.foreign.model import ForeignModel, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")  # put before every name by DataParallel and by torch.compile
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of batch norm, no parameters


def wrapper_prefix(names: Iterable[str]) -> str:
    """What wrappers have put before every name, such as ``"module."``; empty where there is none.

    >>> wrapper_prefix(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
    'module._orig_mod.'
    """
    names = list(names)
    prefix = ""
    while names:
        found = next((w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if found is None:
            break
        prefix += found
    return prefix


def without_prefix(model: ForeignModel, prefix: str) -> ForeignModel:
    """The model with `prefix`, which every name has, taken off."""
    if not prefix:
        return model
    tensors = {name.removeprefix(prefix): info for name, info in model.tensors.items()}
    return ForeignModel(
        model.name, model.format, model.sources, tensors, lambda name: model.load(prefix + name), model.metadata
    )


def arch_of_tensors(tensors: Mapping[str, TensorInfo]) -> str:
    """Name of an architecture: equal for models whose tensors have equal names, shapes and types."""
    what = [[name, list(info.shape), info.dtype] for name, info in sorted(tensors.items())]
    return f"foreign-{settings_hash(what, 12)}"


def count_parameters(tensors: Mapping[str, TensorInfo]) -> int:
    """Numbers in floating-point tensors that are no statistics of batch norm; other buffers cannot be told apart."""
    return sum(
        info.numel for name, info in tensors.items()
        if info.dtype.startswith(("float", "bfloat", "complex")) and name.rpartition(".")[2] not in STATISTICS
    )  # fmt: skip


def files_sha256(model: ForeignModel) -> str:
    """SHA-256 that names a model: that of its file, or of the list of its files' digests if it has several.

    The list is the text ``sha256`` and a line break for each file, in the order of their names, so that the same
    shards in another folder are the same model.
    """
    if len(model.sources) == 1:
        return model.sources[0].sha256
    lines = [f"{source.sha256}\n" for source in sorted(model.sources, key=lambda source: source.path.name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor in C order, as something that hashes and files take."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def content_digest(model: ForeignModel) -> str:
    """The digest of :func:`zoarium.zoo.weights.row_digests`, reading every tensor once and holding one at a time.

    Raises
    ------
    DamagedError
        If a tensor is not what the file promised.
    """
    names = sorted(model.tensors)
    facts = [[name, model.tensors[name].dtype, list(model.tensors[name].shape)] for name in names]
    digest = hashlib.blake2b(json.dumps(facts, separators=(",", ":")).encode(), digest_size=16)
    for name in names:
        digest.update(tensor_bytes(model.tensor(name)))
    return digest.hexdigest()
