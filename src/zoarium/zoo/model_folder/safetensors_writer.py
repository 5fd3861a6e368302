"""Write a safetensors file tensor by tensor, so that a model larger than the memory can be copied.

Eight bytes of header length, a JSON header, the tensors side by side in the order given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from zoarium._core.errors import StoreError
from zoarium.zoo.foreign.safetensors_reader import DTYPES
from zoarium.zoo.foreign.source import ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {torch_name: name for name, torch_name in DTYPES.items()}


def write_safetensors(
    path: Path, facts: Mapping[str, tuple[str, tuple[int, ...]]], load: Callable[[str], Tensor]
) -> str:
    """Write tensors to `path` and return the SHA-256 of the file.

    Parameters
    ----------
    path : Path
        A file that is not there yet.
    facts : mapping of str to (dtype, shape)
        What each tensor will be, with dtypes as torch names them.
    load : callable
        Gives the tensor of a name; each is asked for once and held no longer than it takes to write it.

    Raises
    ------
    StoreError
        For a type that safetensors does not have, or a tensor that is not what was announced.
    """
    import torch

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape) in facts.items():
        if dtype not in NAMES:
            raise StoreError(f"tensor {name!r} has the type {dtype}, which safetensors cannot hold; choose dtype=.")
        end = start + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name, (dtype, shape) in facts.items():
            tensor = load(name).detach().cpu().contiguous()
            found = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            if found != (dtype, tuple(shape)):
                raise StoreError(f"tensor {name!r} should be {dtype} {tuple(shape)}, found {found[0]} {found[1]}.")
            if tensor.numel():
                content = tensor.reshape(-1).view(torch.uint8).numpy().data
                digest.update(content)
                file.write(content)
    return digest.hexdigest()
