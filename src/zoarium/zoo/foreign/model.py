"""A model from elsewhere: named tensors in files we did not write, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from zoarium._core.errors import StoreError, unknown_name
from zoarium.zoo.foreign.source import ITEM_BYTES, MAX_TENSORS, SourceFile, count, faults_named, shown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of one tensor.

    Parameters
    ----------
    dtype : str
        Type of the tensor as it is read, as torch names it, such as ``"float32"``.
    shape : tuple of int
        Sizes of its axes.
    stored : str
        How the file keeps it, such as ``"BF16"`` or ``"Q4_0"``; quantised blocks are read as float32.
    """

    dtype: str
    shape: tuple[int, ...]
    stored: str = ""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory once read."""
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ForeignModel:
    """Named tensors of a model that zoarium did not grow; nothing is loaded until a tensor is asked for.

    Parameters
    ----------
    name : str
        Name of the file or folder.
    format : str
        ``safetensors``, ``torch``, ``torch-legacy``, ``torchscript``, ``onnx`` or ``gguf``.
    sources : tuple of SourceFile
        The files tensors are read from, each with `size` and `sha256` (computed at first use).
    tensors : mapping of str to TensorInfo
        Type and shape of every tensor, in the order of the file.
    metadata : mapping
        What else the files say: headers, ``config`` of a Hugging Face folder, and for pickles ``stubs`` (names of the
        classes and functions that were *not* imported, with counts), ``wrapper`` (the key the weights stood under),
        ``prefix`` (``"module."`` where every name has it) and ``left_out`` (tensors per key that is not weights).

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from zoarium.zoo.foreign import read_model
    >>> path = Path(tempfile.mkdtemp()) / "small.pt"
    >>> torch.save({"state_dict": {"weight": torch.ones(2, 3)}, "epoch": 4}, path)
    >>> model = read_model(path)
    >>> model.tensors["weight"].shape, model.metadata["wrapper"]
    ((2, 3), 'state_dict')
    >>> model.tensor("weight").sum().item()
    6.0

    Notes
    -----
    Iteration holds one tensor at a time. Reading one takes its own size, plus a block of a few MiB where it is
    dequantised or decompressed, plus once more its size where it is not contiguous in the file.
    """

    name: str
    format: str
    sources: tuple[SourceFile, ...]
    tensors: Mapping[str, TensorInfo]
    load: Callable[[str], Tensor] = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    load_part: Callable[[str, int, int], Tensor | None] | None = field(default=None, repr=False)

    def __post_init__(self):
        if len(self.tensors) > MAX_TENSORS:
            raise StoreError(
                f"{self.sources[0].path} names {len(self.tensors)} tensors, more than {MAX_TENSORS}; split the file."
            )
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs of name and tensor, one read at a time."""
        for name in self.tensors:
            yield name, self.tensor(name)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} tensors, {self.numel} numbers ({self.format})"

    @property
    def numel(self) -> int:
        """Numbers in all tensors together."""
        return sum(info.numel for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors once read."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> Tensor:
        """Read one tensor.

        Parameters
        ----------
        name : str
            As in `tensors`.

        Returns
        -------
        Tensor
            Contiguous, on the CPU, of the type and shape that `tensors` tells; it owns its memory.

        Raises
        ------
        StoreError
            For a name the model does not have, or a file that has changed since.
        DamagedError
            If the bytes are not what the file promised.
        """
        if name not in self.tensors:
            few = sorted(self.tensors)[:20]
            raise StoreError(f"{self.sources[0].path}: " + unknown_name("tensor", name, few))
        with faults_named(self.sources[0].path, f"{self.format} (tensor {shown(name)})"):
            return self.load(name)

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of one tensor's numbers, without the rest where the file allows it.

        Parameters
        ----------
        name : str
            As in `tensors`.
        start, stop : int
            Positions in the flat tensor, ``0 <= start <= stop <= numel``.

        Returns
        -------
        Tensor of shape (stop - start,)
            What ``tensor(name).flatten()[start:stop]`` gives.

        Raises
        ------
        StoreError, DamagedError
            As `tensor`; also for a range the tensor does not have.

        Notes
        -----
        Tensors that are transposed, compressed or listed number by number in their file are read whole.
        """
        if name in self.tensors and not 0 <= start <= stop <= self.tensors[name].numel:
            raise StoreError(
                f"{self.sources[0].path}: tensor {shown(name)} has {self.tensors[name].numel} numbers, so none at "
                f"{start} to {stop}; ask for a range inside it."
            )
        if name in self.tensors and self.load_part is not None:
            with faults_named(self.sources[0].path, f"{self.format} (tensor {shown(name)})"):
                found = self.load_part(name, start, stop)
            if found is not None:
                return found
        return self.tensor(name).flatten()[start:stop].clone()
