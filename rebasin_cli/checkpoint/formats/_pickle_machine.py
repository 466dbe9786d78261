"""The program of a pickle, run on placeholders: a graph of plain values and of objects that were never made.

A pickle is a program for a stack machine that may name any function and call it. This machine knows the same operations
and imports and calls nothing: a name stays a `Name`, an object the `Made` record of how it would have been built. The
graph is faithful, so that `_pickle_writer.py` can write the pickle again without some of its parts.

Time and memory grow with the length of the pickle and with nothing that it claims. Sizes are compared with what is left
of the file; nothing is called recursively; only texts, small numbers and None are hashed, all other keys of a mapping
are compared by identity (the hash of a nested tuple visits shared parts once per use: exponential in its depth).
Operations: `pickletools` in Python's standard library.
"""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Callable
from typing import Any, Protocol

MOST_OPERATIONS = 8_000_000
LONGEST_PICKLE = 256 << 20
_LONGEST_LINE = 1 << 20
LARGEST_TUPLE = 1_000_000
_LARGEST_KEY = 1 << 61
_NO_VALUE = object()

Buffer = bytes | mmap.mmap


class Name:
    """A name in a module: a class, a function or a value; it is never looked up."""

    __slots__ = ("full", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self.full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)


class Made(dict[Any, Any]):
    """An object as the pickle builds it; its items, if it has any, are those of this dictionary.

    Attributes:
        callee: what is called; `how` is the operation: REDUCE calls it, NEWOBJ and NEWOBJ_EX make an instance of it.
        args: the arguments; `kwargs` those with names, of NEWOBJ_EX.
        states: what BUILD gives to it, in order.
        appended, added: what is put into it as into a list or a set.
    """

    __slots__ = ("added", "appended", "args", "callee", "how", "kwargs", "states")

    def __init__(self, how: str, callee: Any, args: Any, kwargs: Any = None) -> None:
        super().__init__()
        self.how, self.callee, self.args, self.kwargs = how, callee, args, kwargs
        self.states: list[Any] | tuple[()] = ()  # most objects have none: the lists are made when they are needed
        self.appended: list[Any] | tuple[()] = ()
        self.added: list[Any] | tuple[()] = ()

    @property
    def full(self) -> str:
        """The full name of what is called, or an empty text for something that was computed."""
        return self.callee.full if isinstance(self.callee, Name) else ""


class Excessive(ValueError):
    """The pickle is beyond a limit: reading it would take more time or memory than a checkpoint can need."""


class SetOf:
    """A set or a frozen set, in the order of the file; its elements are not hashed."""

    __slots__ = ("elements", "frozen")

    def __init__(self, elements: list[Any], frozen: bool) -> None:
        self.elements, self.frozen = elements, frozen


class Opaque:
    """A key that is compared by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"(a key of type {type(self.value).__name__})"


class Meaning(Protocol):
    """What the objects of a pickle mean to its reader."""

    def named(self, name: Name) -> None:
        """A name occurs."""

    def made(self, made: Made) -> Any:
        """An object is built; what takes its place in the graph."""

    def built(self, target: Any, state: Any) -> None:
        """A state is given to an object."""

    def persistent(self, pid: Any) -> Any:
        """What a reference to data outside the pickle stands for."""


class Machine:
    """One run over the pickle that begins at `position` of `data`.

    After `run`, `position` is the pickle's end and `protocol` the highest that it announced.
    """

    def __init__(self, data: Buffer, meaning: Meaning, position: int = 0, limit: int | None = None) -> None:
        self.data, self.position, self.begin = data, position, position
        self.limit = len(data) if limit is None else min(limit, len(data))
        self.meaning = meaning
        self.protocol = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.count = 0
        self._nested: dict[int, tuple[int, tuple[Any, ...]]] = {}

    def run(self) -> Any:
        """Run to STOP.

        Raises:
            ValueError: not a pickle, cut short, beyond the limits, or with an operation that no checkpoint needs.
        """
        data, end = self.data, min(self.limit, self.begin + LONGEST_PICKLE)
        while self.position < end:
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self.pop()
            self.count += 1
            if self.count > MOST_OPERATIONS:
                raise Excessive(f"more than {MOST_OPERATIONS:,} operations")
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f"operation {_FORBIDDEN.get(code, hex(code))} does not belong in a checkpoint")
            operation(self)
        if end < self.limit:
            raise Excessive(f"more than {LONGEST_PICKLE:,} bytes")
        raise ValueError("pickle exhausted before its end")

    def take(self, length: int) -> bytes:
        """The next bytes."""
        start = self.position
        if length < 0 or length > self.limit - start:
            raise ValueError(f"{length:,} bytes expected, {self.limit - start:,} left")
        self.position = start + length
        return self.data[start : start + length]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def line(self) -> bytes:
        """The text up to the next line feed."""
        end = self.data.find(b"\n", self.position, min(self.limit, self.position + _LONGEST_LINE))
        if end < 0:
            raise ValueError("a line of text without an end")
        text = self.data[self.position : end]
        self.position = end + 1
        return text

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("an operation on an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("an operation on an empty stack")
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        if not self.marks:
            raise ValueError("no mark on the stack")
        taken, self.stack = self.stack, self.marks.pop()
        return taken

    def remember(self, index: int) -> None:
        if index < 0 or index > self.count:
            raise ValueError(f"memo index {index:,} after {self.count:,} operations")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        value = self.memo.get(index, _NO_VALUE)
        if value is _NO_VALUE:
            raise ValueError(f"memo index {index:,} is empty")
        self.push(value)

    def name(self, module: str, name: str) -> None:
        found = Name(module, name)
        self.meaning.named(found)
        self.push(found)

    def make(self, how: str, callee: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(args, (tuple, list)):
            raise ValueError("an object is made from something that is not a tuple of arguments")
        self.push(self.meaning.made(Made(how, callee, tuple(args), kwargs)))

    def push_tuple(self, elements: tuple[Any, ...]) -> None:
        """Put a tuple on the stack, unless its hash would take for ever where the file is loaded.

        The size of a tuple counts nested ones as often as they occur: 445 bytes can describe one of 2^60 elements.
        """
        size = 1 + len(elements)
        for one in elements:
            if isinstance(one, tuple):
                size += self._nested.get(id(one), (1 + len(one),))[0]
        if size > LARGEST_TUPLE:
            raise Excessive(f"a tuple of more than {LARGEST_TUPLE:,} elements, written out")
        if size > 1 + len(elements):
            self._nested[id(elements)] = (size, elements)  # with the tuple, so that its id is not used again
        self.stack.append(elements)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict):
            raise ValueError("items are given to something that has none")
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        for at in range(0, len(pairs), 2):
            target[_key(pairs[at])] = pairs[at + 1]

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.appended = target.appended or []
            target.appended.extend(values)
        else:
            raise ValueError("elements are appended to something that is no list")

    def add(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, SetOf) and not target.frozen:
            target.elements.extend(values)
        elif isinstance(target, Made):
            target.added = target.added or []
            target.added.extend(values)
        else:
            raise ValueError("elements are added to something that is no set")

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, Made):
            kind = "a name" if isinstance(target, Name) else f"a {type(target).__name__}"
            raise ValueError(f"{kind} is given a state")
        target.states = target.states or []
        target.states.append(state)
        self.meaning.built(target, state)


def _key(value: Any) -> Any:
    """The value as a key of a mapping, in bounded time."""
    if value is None or isinstance(value, (str, bytes)):
        return value
    if isinstance(value, int) and -_LARGEST_KEY < value < _LARGEST_KEY:
        return value
    return Opaque(value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_text(data: bytes) -> str:
    """A byte string of Python 2."""
    return data.decode("utf-8", "backslashreplace")


def _whole(text: bytes) -> int:
    if len(text) > 4_000:
        raise Excessive("a number of more than 4,000 digits")
    return int(text)


def _line_int(machine: Machine) -> None:
    text = machine.line()
    machine.push({b"00": False, b"01": True}[text] if text in {b"00", b"01"} else _whole(text))


def _line_text(machine: Machine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise ValueError("a text without quotes")
    machine.push(_old_text(codecs.escape_decode(text[1:-1])[0]))


def _long(machine: Machine, form: str) -> None:
    machine.push(int.from_bytes(machine.take(machine.number(form)), "little", signed=True))


def _tuple(machine: Machine, length: int) -> None:
    if len(machine.stack) < length:
        raise ValueError("an operation on an empty stack")
    taken = tuple(machine.stack[-length:])
    del machine.stack[-length:]
    machine.push_tuple(taken)


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()  # as Python does: a mark is taken off like a value


def _pop_mark(machine: Machine) -> None:
    machine.since_mark()


def _frame(machine: Machine) -> None:
    machine.take(8)  # its length only helps readers of streams


def _dict(machine: Machine) -> None:
    pairs = machine.since_mark()
    machine.push({})
    machine.set_items(pairs)


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _set_items(machine: Machine) -> None:
    pairs = machine.since_mark()
    machine.set_items(pairs)


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.extend([value])


def _appends(machine: Machine) -> None:
    values = machine.since_mark()
    machine.extend(values)


def _additems(machine: Machine) -> None:
    values = machine.since_mark()
    machine.add(values)


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.name(_text(module), _text(name))


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a name that is not a text")
    machine.name(module, name)


def _inst(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    args = machine.since_mark()
    machine.name(_text(module), _text(name))
    machine.make("REDUCE", machine.pop(), args)


def _obj(machine: Machine) -> None:
    args = machine.since_mark()
    if not args:
        raise ValueError("an object without a class")
    machine.make("REDUCE", args[0], args[1:])


def _made(machine: Machine, how: str) -> None:
    kwargs = machine.pop() if how == "NEWOBJ_EX" else None
    args, callee = machine.pop(), machine.pop()
    machine.make(how, callee, args, kwargs)


def _bytearray(machine: Machine) -> None:
    data = machine.take(machine.number("<Q"))
    machine.make("REDUCE", Name("builtins", "bytearray"), (data,))


def _protocol(machine: Machine) -> None:
    found = machine.take(1)[0]
    if found > 5:
        raise ValueError(f"unsupported pickle protocol: {found}")
    machine.protocol = max(machine.protocol, found)


_FORBIDDEN = {
    0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x50: "PERSID", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip

_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    0x80: _protocol,
    0x95: _frame,
    ord("("): Machine.mark,
    ord("0"): _pop,
    ord("1"): _pop_mark,
    ord("2"): lambda m: m.push(m.top()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("I"): _line_int,
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("L"): lambda m: m.push(_whole(m.line().removesuffix(b"L"))),
    0x8A: lambda m: _long(m, "<B"),
    0x8B: lambda m: _long(m, "<i"),
    ord("S"): _line_text,
    ord("T"): lambda m: m.push(_old_text(m.take(m.number("<i")))),
    ord("U"): lambda m: m.push(_old_text(m.take(m.number("<B")))),
    ord("V"): lambda m: m.push(m.line().decode("raw-unicode-escape")),
    ord("X"): lambda m: m.push(_text(m.take(m.number("<I")))),
    0x8C: lambda m: m.push(_text(m.take(m.number("<B")))),
    0x8D: lambda m: m.push(_text(m.take(m.number("<Q")))),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    0x96: _bytearray,
    ord("]"): lambda m: m.push([]),
    ord("a"): _append,
    ord("e"): _appends,
    ord("l"): lambda m: m.push(m.since_mark()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push_tuple(tuple(m.since_mark())),
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("}"): lambda m: m.push({}),
    ord("d"): _dict,
    ord("s"): _set_item,
    ord("u"): _set_items,
    0x8F: lambda m: m.push(SetOf([], frozen=False)),
    0x90: _additems,
    0x91: lambda m: m.push(SetOf(m.since_mark(), frozen=True)),
    ord("g"): lambda m: m.recall(_whole(m.line())),
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    ord("p"): lambda m: m.remember(_whole(m.line())),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("c"): _global,
    0x93: _stack_global,
    ord("i"): _inst,
    ord("o"): _obj,
    0x81: lambda m: _made(m, "NEWOBJ"),
    0x92: lambda m: _made(m, "NEWOBJ_EX"),
    ord("R"): lambda m: _made(m, "REDUCE"),
    ord("b"): Machine.build,
    ord("Q"): lambda m: m.push(m.meaning.persistent(m.pop())),
}  # fmt: skip
