"""A pickle machine that cannot run anything.

It follows the opcodes of protocols 0 to 5 as documented in the standard library's ``pickletools``, but has no way to
import or call: a name in the pickle becomes a :class:`Name`, and "calling" one looks it up in a table of our own
builders. Every other name gives a :class:`Stub` that only remembers what it was given. The standard library's machine
is not used even with a filter, because a few bytes can make it allocate gigabytes (an index into its memo) or overflow
the C stack (hashing a deep tuple).

Work and memory are linear in the pickle. Contents are copied only against a budget of one item a byte, and nothing is
hashed but text, numbers and our own stubs. Every object is paid for with the bytes it takes in memory, from a second
budget of `MEMORY_FACTOR` bytes for each byte of the pickle: a byte may make an empty list, which takes 64, but pickles
of weights were measured to need 7 to 15 bytes in memory for one of their own.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from zoarium._core.errors import DamagedError

MEMORY_FACTOR = 32  # bytes of objects for each byte of a pickle
MEMORY_FREE = 1 << 20  # bytes that any pickle may take
SLOT, ENTRY = 8, 104  # bytes of a place in a list, and in a dictionary as it grows
PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
MAX_LINE = 64 * 1024  # bytes of a line of protocol 0


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function a pickle refers to; never imported."""

    text: str


@dataclass(eq=False, repr=False, slots=True)  # equal to itself only; printing a hostile one could take for ever
class Stub:
    """What stands in for an object we do not know: its class by name, and what it was given."""

    name: str
    args: Any = None
    state: Any = None
    items: list[Any] = field(default_factory=list)
    mapping: dict[Any, Any] = field(default_factory=dict)


STUB = 72 + 56 + 64  # with its list and its dictionary


class _Mark:
    pass


MARK = _Mark()
Builder = Callable[[tuple[Any, ...]], Any]


class Unpickler:
    """Read one pickle from a stream.

    Parameters
    ----------
    file : binary stream
        Positioned at the pickle; left after its last byte.
    limit : int
        Bytes the pickle may take, at most those that are left in the file.
    builders : mapping of str to callable
        What a name, such as ``"collections.OrderedDict"``, makes of its arguments; ours, never the pickle's.
    persistent : callable
        What stands for a persistent id.

    Attributes
    ----------
    stubs : Counter
        Names that were asked for and not in `builders`.
    """

    def __init__(
        self, file: BinaryIO, limit: int, builders: Mapping[str, Builder], persistent: Callable[[Any], Any], where: str
    ):
        self._file, self._left, self._budget = file, limit, limit + 16
        self._memory = MEMORY_FACTOR * limit + MEMORY_FREE
        self._builders, self._persistent, self._where = builders, persistent, where
        self.stubs: Counter[str] = Counter()
        self._stack: list[Any] = []
        self._row: list[Any] = []  # memo of those that came in order, as picklers write them
        self._memo: dict[int, Any] = {}  # and of the others

    def load(self) -> Any:
        """The object in the pickle.

        Raises
        ------
        DamagedError
            If it is truncated, or holds an opcode or operands that no pickle of weights has.
        """
        table = _TABLE
        while True:
            code = self._read(1)
            if code == b".":
                return self._pop()
            step = table.get(code)
            if step is None:
                raise self._wrong(f"holds the opcode {code!r}")
            step(self)

    # --- the stream

    def _wrong(self, what: str) -> DamagedError:
        return DamagedError(f"{self._where} {what}, so it cannot be read safely; save the weights as safetensors.")

    def _read(self, n: int) -> bytes:
        if n > self._left:
            raise self._wrong(f"asks for {n} bytes where {self._left} are left")
        content = self._file.read(n)
        if len(content) != n:
            raise self._wrong(f"ends early ({len(content)} of {n} bytes)")
        self._left -= n
        return content

    def _line(self, encoding: str = "utf-8") -> str:
        line = self._file.readline(min(MAX_LINE, self._left))
        if not line.endswith(b"\n"):
            raise self._wrong("has a line without end")
        self._left -= len(line)
        return line[:-1].decode(encoding)

    def _number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self._read(size), "little", signed=signed)

    def _text(self, content: bytes) -> str:
        return content.decode("utf-8", "surrogatepass")

    def pay(self, size: int) -> None:
        """Pay for `size` bytes of memory."""
        self._memory -= size
        if self._memory < 0:
            raise self._wrong(f"makes more than {MEMORY_FACTOR} bytes of objects for each of its own")

    # --- the stack

    def _push(self, value: Any) -> None:
        """Put something on the stack that was there already, or that all share."""
        self.pay(SLOT)
        self._stack.append(value)

    def _make(self, value: Any) -> None:
        """Put a new object on the stack; numbers and text at their own size, containers with their items."""
        self.pay(SLOT + (STUB if isinstance(value, Stub) else sys.getsizeof(value)))
        self._stack.append(value)

    def _mark(self) -> None:
        self.pay(SLOT)
        self._stack.append(MARK)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is MARK:
            raise self._wrong("takes more from its stack than it put there")
        self._memory += SLOT
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is MARK:
            raise self._wrong("takes more from its stack than it put there")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        stack = self._stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is MARK:
                items = stack[at + 1 :]
                self._memory += SLOT * (len(stack) - at)
                del stack[at:]
                return items
        raise self._wrong("closes a list it did not open")

    def spend(self, items: int) -> None:
        """Pay for copying `items` items; a pickle may copy about as many as it has bytes."""
        self.pay(SLOT * items)
        self._budget -= items
        if self._budget < 0:
            raise self._wrong("unfolds into far more than its own size")

    # --- objects

    def call(self, function: Any, args: Any) -> Any:
        """What one of our builders makes of `args`, or a stub."""
        if not isinstance(function, Name):
            return Stub("an object that is not a class", args)
        builder = self._builders.get(function.text)
        if builder is None:
            self.stubs[function.text] += 1
            return Stub(function.text, args)
        if not isinstance(args, tuple):
            raise self._wrong(f"gives {function.text} something else than arguments")
        return builder(args)

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._wrong("names a class by something that is not text")
        text = f"{module}.{name}"[:200]
        if text not in self._builders and text not in self.stubs:
            self.pay(ENTRY + len(text))
            self.stubs[text] = 0  # named, though perhaps never called
        self.pay(2 * len(text))
        self._make(Name(text))

    def _put(self, at: int) -> None:
        if at < 0:
            raise self._wrong(f"stores object {at}")
        if at == len(self._row):
            self.pay(SLOT)
            self._row.append(self._top())
        elif at < len(self._row):
            self._row[at] = self._top()
        else:
            self.pay(0 if at in self._memo else ENTRY)
            self._memo[at] = self._top()

    def _get(self, at: int) -> None:
        if 0 <= at < len(self._row):
            self._push(self._row[at])
        elif at in self._memo:
            self._push(self._memo[at])
        else:
            raise self._wrong(f"recalls object {at}, which it did not store")

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        self.pay(SLOT * len(items) + SLOT)
        if isinstance(target, Stub):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise self._wrong("appends to something that is not a list")

    def _set(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise self._wrong("has a key without a value")
        target = self._top()
        mapping = target.mapping if isinstance(target, Stub) else target
        if not isinstance(mapping, dict):
            raise self._wrong("sets keys of something that is not a dictionary")
        if items:
            self.pay(ENTRY * (len(items) // 2) + (0 if mapping else ENTRY))
        mapping.update(self._pairs(items))

    def _dictionary(self) -> None:
        items = self._to_mark()
        self._make({})
        self._set(items)

    def _pairs(self, items: list[Any]) -> dict[Any, Any]:
        # hashing a deep tuple would overflow the C stack: any key but plain ones stands for itself only
        odd = sum(not isinstance(k, PLAIN_KEYS) for k in items[::2])
        self.pay(STUB * odd)
        keys = (k if isinstance(k, PLAIN_KEYS) else Stub("key", k) for k in items[::2])
        return dict(zip(keys, items[1::2], strict=True))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Stub):
            target.state = state

    def _reduce(self) -> None:
        args = self._pop()
        self._make(self.call(self._pop(), args))

    def _new_with_keywords(self) -> None:
        self._pop()
        self._reduce()

    def _object(self) -> None:
        items = self._to_mark()
        if not items:
            raise self._wrong("makes an object of no class")
        self._make(self.call(items[0], tuple(items[1:])))

    def _instance(self) -> None:
        module, name = self._line(), self._line()
        self._name(module, name)
        function = self._pop()
        self._make(self.call(function, tuple(self._to_mark())))

    def _take(self, n: int) -> tuple[Any, ...]:
        return tuple([self._pop() for _ in range(n)][::-1])

    def _stack_name(self) -> None:
        name = self._pop()
        self._name(self._pop(), name)

    def _integer_line(self) -> int | bool:
        line = self._line()
        return {"00": False, "01": True}[line] if line in ("00", "01") else int(line)

    def _quoted(self) -> str:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in "\"'":
            raise self._wrong("has text without quotes")
        return line[1:-1]


def _drop(machine: Unpickler) -> None:
    if machine._stack and machine._stack[-1] is MARK:  # POP may drop a mark
        machine._stack.pop()
    else:
        machine._pop()


_TABLE: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": lambda m: m._read(1),  # PROTO
    b"\x95": lambda m: m._read(8),  # FRAME: we read opcode by opcode
    b"(": lambda m: m._mark(),
    b"0": _drop,
    b"1": lambda m: m._to_mark(),
    b"2": lambda m: m._push(m._top()),
    # numbers
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"K": lambda m: m._push(m._number(1)),
    b"M": lambda m: m._make(m._number(2)),
    b"J": lambda m: m._make(m._number(4, signed=True)),
    b"\x8a": lambda m: m._make(m._number(m._number(1), signed=True)),
    b"\x8b": lambda m: m._make(m._number(m._number(4), signed=True)),
    b"G": lambda m: m._make(struct.unpack(">d", m._read(8))[0]),
    b"F": lambda m: m._make(float(m._line())),
    b"I": lambda m: m._make(m._integer_line()),
    b"L": lambda m: m._make(int(m._line().rstrip("L"))),
    # text and bytes
    b"X": lambda m: m._make(m._text(m._read(m._number(4)))),
    b"\x8c": lambda m: m._make(m._text(m._read(m._number(1)))),
    b"\x8d": lambda m: m._make(m._text(m._read(m._number(8)))),
    b"V": lambda m: m._make(m._line("raw_unicode_escape")),
    b"S": lambda m: m._make(m._quoted()),
    b"T": lambda m: m._make(m._read(m._number(4)).decode("latin-1")),
    b"U": lambda m: m._make(m._read(m._number(1)).decode("latin-1")),
    b"B": lambda m: m._make(m._read(m._number(4))),
    b"C": lambda m: m._make(m._read(m._number(1))),
    b"\x8e": lambda m: m._make(m._read(m._number(8))),
    b"\x96": lambda m: m._make(m._read(m._number(8))),
    # containers; sets become lists, so that nothing is hashed
    b"]": lambda m: m._make([]),
    b")": lambda m: m._make(()),
    b"}": lambda m: m._make({}),
    b"\x8f": lambda m: m._make([]),
    b"l": lambda m: m._make(m._to_mark()),
    b"t": lambda m: m._make(tuple(m._to_mark())),
    b"\x91": lambda m: m._make(m._to_mark()),
    b"\x85": lambda m: m._make(m._take(1)),
    b"\x86": lambda m: m._make(m._take(2)),
    b"\x87": lambda m: m._make(m._take(3)),
    b"a": lambda m: m._extend([m._pop()]),
    b"e": lambda m: m._extend(m._to_mark()),
    b"\x90": lambda m: m._extend(m._to_mark()),
    b"s": lambda m: m._set(list(m._take(2))),
    b"u": lambda m: m._set(m._to_mark()),
    b"d": lambda m: m._dictionary(),
    # memo
    b"p": lambda m: m._put(int(m._line())),
    b"q": lambda m: m._put(m._number(1)),
    b"r": lambda m: m._put(m._number(4)),
    b"\x94": lambda m: m._put(len(m._row) + len(m._memo)),
    b"g": lambda m: m._get(int(m._line())),
    b"h": lambda m: m._get(m._number(1)),
    b"j": lambda m: m._get(m._number(4)),
    # names and objects
    b"c": lambda m: m._name(m._line(), m._line()),
    b"\x93": lambda m: m._stack_name(),
    b"R": lambda m: m._reduce(),
    b"\x81": lambda m: m._reduce(),
    b"\x92": lambda m: m._new_with_keywords(),
    b"i": lambda m: m._instance(),
    b"o": lambda m: m._object(),
    b"b": lambda m: m._build(),
    b"P": lambda m: m._make(m._persistent(m._line())),
    b"Q": lambda m: m._make(m._persistent(m._pop())),
}
