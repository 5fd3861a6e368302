"""What torch puts in its pickles: tensors as views of numbered storages, and dictionaries that nest them.

The builders below are the whole allow-list. Each gives an inert record; bytes are read later, by whoever knows where
the storages lie (a member of a zip archive, or a place in a file of the older format).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoarium._core.errors import DamagedError
from zoarium.zoo.foreign.model import TensorInfo
from zoarium.zoo.foreign.source import (
    AGAIN,
    ITEM_BYTES,
    MAX_TENSORS,
    check_name,
    check_shape,
    count,
    shown,
    to_tensor,
)
from zoarium.zoo.foreign.unpickler import ENTRY, Builder, Name, Stub, Unpickler

if TYPE_CHECKING:
    from torch import Tensor

STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
MAX_DEPTH = 100
ROOM, NAMED = 1 << 20, 500  # bytes free for names in any file; bytes a named tensor takes beside its name
MAX_WRAPPERS = 4  # keys such as "model" in one another; each level is another walk over all objects


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage: `items` numbers of type `dtype` under a key; `start` where a view of the older format begins."""

    key: str
    dtype: str
    items: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self.items * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A tensor that is not read yet: a strided view of a storage, all in elements of `dtype`."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def info(self) -> TensorInfo:
        """Type and shape."""
        return TensorInfo(self.dtype, self.shape, self.dtype)

    @property
    def span(self) -> tuple[int, int]:
        """First byte of the storage that is needed, and how many from there."""
        item = ITEM_BYTES[self.dtype]
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset * item, 0 if 0 in self.shape else (last + 1) * item

    @property
    def contiguous(self) -> bool:
        """Whether its numbers lie side by side in their order."""
        step = 1
        for size, stride in zip(self.shape[::-1], self.stride[::-1], strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    def view(self, content: bytearray) -> Tensor:
        """The tensor, contiguous, from the bytes of its span."""
        import torch

        if not content:
            return to_tensor(content, self.dtype, self.shape)
        flat = to_tensor(content, self.dtype, (len(content) // ITEM_BYTES[self.dtype],))
        return torch.as_strided(flat, self.shape, self.stride).contiguous()


class TorchPickle:
    """Reads a pickle of torch's into records.

    Parameters
    ----------
    path : Path
        For messages, and for the size of its file: no tensor may claim to be larger.
    size : int
        Bytes of the file.

    Attributes
    ----------
    storages : dict
        Every storage a tensor may refer to, by key.
    stubs : Counter
        Names that were not imported.
    """

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        self.storages: dict[str, StorageRef] = {}
        self.stubs: Counter[str] = Counter()
        self._machine: Unpickler | None = None

    def load(self, file: BinaryIO, limit: int) -> Any:
        """Read one pickle from `file`, at most `limit` bytes of it."""
        machine = Unpickler(file, limit, self._builders(), self._persistent, f"{self.path}: its pickle")
        self._machine = machine
        found = machine.load()
        self.stubs.update(machine.stubs)
        return found

    def _wrong(self, what: str) -> DamagedError:
        return DamagedError(f"{self.path}: {what}; {AGAIN}.")

    def _builders(self) -> dict[str, Builder]:
        def first(args: tuple[Any, ...]) -> Any:
            return args[0]

        table: dict[str, Builder] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": first,
            "torch._utils._rebuild_parameter_with_state": first,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "collections.OrderedDict": self._dictionary,
            "collections.defaultdict": lambda args: {},
            "torch.Size": lambda args: tuple(self._items(args)),
            "torch.device": lambda args: Stub("torch.device", args),
            "_codecs.encode": self._encoded,
            "torch.nn.parameter.Parameter": first,
            "torch.jit._pickle.restore_type_tag": first,
            "torch.jit._pickle.build_intlist": first,
            "torch.jit._pickle.build_doublelist": first,
            "torch.jit._pickle.build_boollist": first,
            "torch.jit._pickle.build_tensorlist": first,
        }
        for module in ("builtins", "__builtin__"):
            for kind in ("set", "frozenset", "list", "tuple"):
                table[f"{module}.{kind}"] = self._items
            table[f"{module}.dict"] = self._dictionary
        for name in (*STORAGES, "dtype"):
            table[f"torch.{name}"] = lambda args: Stub("torch", args)
        table["torch.storage.UntypedStorage"] = table["torch.storage.TypedStorage"] = table["torch.dtype"]
        for name in ITEM_BYTES:
            table[f"torch.{name}"] = table["torch.dtype"]
        return table

    def _spend(self, items: int) -> None:
        assert self._machine is not None
        self._machine.spend(items)

    def _pay(self, size: int) -> None:
        assert self._machine is not None
        self._machine.pay(size)

    def _items(self, args: tuple[Any, ...]) -> list[Any]:
        given = args[0] if args else []
        if not isinstance(given, (list, tuple)):
            raise self._wrong("its pickle makes a list of something else")
        self._spend(len(given))
        return list(given)

    def _dictionary(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        made = {}
        pairs = self._items(args)
        self._pay(ENTRY * len(pairs))
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], (str, int)):
                raise self._wrong("its pickle makes a dictionary of something else than pairs")
            made[pair[0]] = pair[1]
        return made

    def _encoded(self, args: tuple[Any, ...]) -> bytes:
        text = args[0] if args else None
        if not isinstance(text, str):
            raise self._wrong("its pickle encodes something that is not text")
        self._spend(len(text))
        return text.encode("latin-1")

    def _persistent(self, given: Any) -> Any:
        if not isinstance(given, tuple) or len(given) < 5 or given[0] != "storage":
            return Stub("a persistent id", given)
        _, kind, key, _, items = given[:5]
        dtype = STORAGES.get(kind.text.rpartition(".")[2]) if isinstance(kind, Name) else None
        if dtype is None:
            raise self._wrong(f"storage {shown(key)} is of the unknown type {shown(getattr(kind, 'text', kind))}")
        if not isinstance(key, str) or type(items) is not int or not 0 <= items * ITEM_BYTES[dtype] <= 2**60:
            raise self._wrong(f"storage {shown(key)} claims {shown(items)} numbers")
        whole = StorageRef(key, dtype, items)
        if key not in self.storages:
            self._pay(2 * ENTRY)
        if self.storages.setdefault(key, whole) != whole:
            raise self._wrong(f"storage {shown(key)} is described in two ways")
        if len(given) > 5 and given[5] is not None:  # (key, offset, size) of a view, before torch 0.4
            view = given[5]
            if not isinstance(view, tuple) or len(view) != 3 or type(view[1]) is not int or view[1] < 0:
                raise self._wrong(f"storage {shown(key)} has an unusable view")
            return StorageRef(key, dtype, items, view[1])
        return whole

    def _tensor(self, args: tuple[Any, ...], dtype: str | None = None) -> TensorRef:
        if len(args) < 4 or not isinstance(args[0], StorageRef):
            raise self._wrong("a tensor has no storage")
        storage, offset, shape, stride = args[:4]
        kind: str = dtype or storage.dtype
        if not isinstance(shape, (tuple, list)) or not isinstance(stride, (tuple, list)) or len(shape) != len(stride):
            raise self._wrong("a tensor has no usable shape and strides")
        shape, stride = check_shape(self.path, "of a pickle", shape), tuple(stride)
        if not all(type(n) is int and 0 <= n < 2**60 for n in (offset, *stride)):
            raise self._wrong(f"a tensor of shape {shape} begins at {shown(offset)} with strides {shown(stride)}")
        ref = TensorRef(storage, kind, offset + storage.start, shape, stride)
        start, length = ref.span
        if start + length > storage.nbytes:
            raise self._wrong(
                f"a tensor of shape {shape} ends at byte {start + length} of storage {shown(storage.key)}, "
                f"which has {storage.nbytes}"
            )
        if count(shape) * ITEM_BYTES[kind] > self.size:
            raise self._wrong(f"a tensor repeats its storage to the shape {shape}, more than the whole file holds")
        return ref

    def _tensor_v3(self, args: tuple[Any, ...]) -> TensorRef:
        kind = args[6] if len(args) > 6 else None
        dtype = kind.text.removeprefix("torch.") if isinstance(kind, Name) else ""
        if dtype not in ITEM_BYTES:
            raise self._wrong(f"a tensor is of the unknown type {shown(getattr(kind, 'text', kind))}")
        return self._tensor(args, dtype)

    def _from_type(self, args: tuple[Any, ...]) -> Any:
        if len(args) < 3 or not isinstance(args[0], Name) or args[0].text == "torch._tensor._rebuild_from_type_v2":
            return Stub("torch._tensor._rebuild_from_type_v2", args)
        assert self._machine is not None
        return self._machine.call(args[0], args[2])


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container or stub holds, by name; modules show their parameters, buffers and parts as their own."""
    if isinstance(value, dict):
        yield from ((str(k), v) for k, v in value.items() if isinstance(k, (str, int, float)))
    elif isinstance(value, (list, tuple)):
        yield from ((str(n), v) for n, v in enumerate(value))
    elif isinstance(value, Stub):
        yield from children(value.mapping)
        yield from children(value.items)
        state = value.state
        if isinstance(state, dict) and isinstance(state.get("_modules"), dict):  # a pickled nn.Module
            for part in ("_parameters", "_buffers", "_modules"):
                yield from children(state.get(part))
        elif isinstance(state, (dict, tuple)):
            yield from children(state)


def tensors_in(
    path: Path, root: Any, stem: str = "", seen: set[int] | None = None, *, room: int | None = None
) -> dict[str, TensorRef]:
    """Every tensor under `root`, under names joined by dots; a name met twice gets ``~2``.

    A container reached in two ways is followed once, so shared or circular objects cost nothing; `seen` carries what
    was followed from one call to the next. Names may take `room` bytes: under one long key a list of one tensor many
    times over would unfold to a thousand bytes for two in the file.
    """
    if isinstance(root, TensorRef):
        return {stem or "tensor": root}
    found: dict[str, TensorRef] = {}
    times: Counter[str] = Counter()
    seen = set() if seen is None else seen
    if id(root) in seen:
        return {}
    seen.add(id(root))
    room = room_for_names(path) if room is None else room
    stack = [(stem, 0, children(root))]
    while stack:
        prefix, depth, rest = stack[-1]
        step = next(rest, None)
        if step is None:
            stack.pop()
            continue
        key, value = step
        if isinstance(value, TensorRef):
            name = check_name(path, f"{prefix}.{key}" if prefix else key)
            times[name] += 1
            if times[name] > 1:
                name = f"{name}~{times[name]}"
            found[name] = value
            room -= len(name) + NAMED
            if len(found) > MAX_TENSORS or room < 0:
                raise DamagedError(
                    f"{path}: its pickle unfolds into more than {len(found) - 1} names of tensors, too many for its "
                    "size; split the file, or save a plain state dict."
                )
        elif isinstance(value, (dict, list, tuple, Stub)) and id(value) not in seen:
            seen.add(id(value))
            if depth >= MAX_DEPTH:
                raise DamagedError(f"{path}: its pickle nests more than {MAX_DEPTH} deep; save a plain state dict.")
            name = check_name(path, f"{prefix}.{key}" if prefix else key)
            stack.append((name, depth + 1, children(value)))
    return found


def room_for_names(path: Path) -> int:
    """Bytes that names of tensors may take: some ten times what they take in files that hold each name once."""
    return 32 * path.stat().st_size + ROOM


def choose_weights(path: Path, root: Any) -> tuple[dict[str, TensorRef], dict[str, Any]]:
    """The weights in a checkpoint, and what was said and left out on the way to them."""
    facts: dict[str, Any] = {}
    walked: list[str] = []
    while isinstance(root, Mapping):
        held = {key: value for key, value in root.items() if isinstance(key, str)}
        wrapper = next(
            (w for w in WRAPPERS if isinstance(held.get(w), (dict, Stub)) and tensors_in(path, held[w])), None
        )
        if wrapper is None or len(walked) >= MAX_WRAPPERS:
            break
        if any(isinstance(value, TensorRef) for value in held.values()):  # weights beside a part named "model"
            break
        walked.append(wrapper)
        seen: set[int] = {id(held[wrapper])}
        others = {key: len(tensors_in(path, value, key, seen)) for key, value in held.items() if key != wrapper}
        if any(others.values()):
            facts["left_out"] = facts.get("left_out", {}) | {key: n for key, n in others.items() if n}
        root = held[wrapper]
    tensors = tensors_in(path, root)
    if walked:
        facts["wrapper"] = ".".join(walked)
    if tensors and all(name.startswith("module.") for name in tensors):
        facts["prefix"] = "module."
    return tensors, facts


ReadSpan = Callable[[str, int, int], bytearray]
