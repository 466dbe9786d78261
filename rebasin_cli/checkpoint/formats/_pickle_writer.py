"""The inverse of `_pickle_machine.py`: a graph written as a pickle, with or without some of its parts.

What the reader skips cannot be loaded by `torch.load(weights_only=True)`. A pickle that holds such objects is written
again without them: an entry of a mapping is left out, and any other place holds None instead. A mapping of a skipped
class that leads to tensors becomes a plain dictionary.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from rebasin_cli.checkpoint.formats._pickle_machine import Made, Name, Opaque, SetOf
from rebasin_cli.checkpoint.formats._pickled_names import is_plain
from rebasin_cli.checkpoint.formats._torch_pickle import StorageRef, TensorRef


def pickled(root: Any, protocol: int = 2, *, skip: bool = False) -> bytes:
    """The pickle of a graph; with `skip`, without objects that are neither tensors nor plain data."""
    writer = _Writer(protocol, leading_to_tensors(root) if skip else None)
    writer.write(root)
    # Without what is remembered and never used, it is shorter than what any writer of pickles made of the same graph.
    return pickletools.optimize(writer.data())


def padded(pickle: bytes, length: int) -> bytes | None:
    """The same pickle with operations that do nothing before its end, so that it has `length` bytes.

    Repeating the protocol (two bytes) and remembering the result (five bytes) do nothing, and every reader knows them.
    None if it is too long, or shorter by one or three bytes, which these operations cannot fill.
    """
    missing = length - len(pickle)
    if missing < 0 or missing in {1, 3}:
        return None
    remember = b"r\0\0\0\0" if missing % 2 else b""
    return pickle[:-1] + remember + pickle[:2] * ((missing - len(remember)) // 2) + pickle[-1:]


def leading_to_tensors(root: Any) -> set[int]:
    """Identities of all containers that lead to a tensor, found without recursion: children first."""
    children: dict[int, list[int]] = {}
    found: list[int] = []
    pending, values = [root], {id(root): root}
    while pending:
        value = pending.pop()
        if isinstance(value, TensorRef):
            found.append(id(value))
            continue
        for one in _inner(value):
            children.setdefault(id(one), []).append(id(value))
            if id(one) not in values:
                values[id(one)] = one
                pending.append(one)
    holders: set[int] = set()
    while found:
        one_id = found.pop()
        if one_id not in holders:
            holders.add(one_id)
            found += children.get(one_id, ())
    return holders


def _inner(value: Any) -> list[Any]:
    """The values in it that a tensor could be in; not what a skipped object was made from."""
    if isinstance(value, Made):
        own = [*value.args, *value.appended, *value.added] if is_plain(value.full) else []
        return [*value.values(), *own]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(value.elements) if isinstance(value, SetOf) else []


class _Writer:
    """One pickle; a stack of what is still to be written takes the place of recursion."""

    def __init__(self, protocol: int, holders: set[int] | None) -> None:
        self._protocol = max(2, min(protocol, 5))
        self._out = bytearray(b"\x80" + bytes([self._protocol]))
        self._holders = holders
        self._memo: dict[Any, int] = {}
        self._kept: list[Any] = []  # what is remembered by identity must live as long as the memo
        self._pending: list[Any] = []

    def data(self) -> bytes:
        return bytes(self._out) + b"."

    def write(self, root: Any) -> None:
        self._pending = [root]
        while self._pending:
            value = self._pending.pop()
            if isinstance(value, _Step):
                value.act()
            else:
                self._value(value)

    def _do(self, *steps: Any) -> None:
        self._pending.extend(reversed(steps))

    def _code(self, data: bytes) -> _Step:
        return _Step(lambda: self._out.extend(data))

    def _put(self, key: Any) -> None:
        number = len(self._memo)
        self._memo[key] = number
        self._out += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def _value(self, value: Any) -> None:
        key = _memo_key(value)
        known = self._memo.get(key)
        if known is not None:
            self._out += b"h" + bytes([known]) if known < 256 else b"j" + struct.pack("<I", known)
        elif self._is_skipped(value):
            if isinstance(value, Made) and self._holders is not None and id(value) in self._holders:
                self._mapping(value, key)
            else:
                self._out += b"N"
        elif value is None or isinstance(value, (bool, int, float)):
            self._out += _scalar(value)
        elif isinstance(value, (str, bytes)):
            self._literal(value, key)
        elif isinstance(value, Name):
            self._out += b"c" + f"{value.module}\n{value.name}\n".encode()
            self._put(key)
        elif isinstance(value, TensorRef):
            self._kept.append(value)
            self._do(value.source, _Step(lambda: self._put(key)))
        elif isinstance(value, StorageRef):
            self._do(value.pid, self._code(b"Q"))
        elif isinstance(value, Made):
            self._object(value, key)
        elif isinstance(value, dict):
            self._mapping(value, key)
        elif isinstance(value, list):
            self._out += b"]"
            self._put(key)
            self._kept.append(value)
            self._batch(value, b"e")
        elif isinstance(value, tuple):
            self._tuple(value, key)
        elif isinstance(value, SetOf):
            self._set(value, key)
        else:
            raise TypeError(f"a pickle cannot hold {type(value).__name__}")

    def _is_skipped(self, value: Any) -> bool:
        return self._holders is not None and isinstance(value, (Made, Name)) and not is_plain(value.full)

    def _literal(self, value: str | bytes, key: Any) -> None:
        if isinstance(value, str):
            data = value.encode("utf-8", "surrogatepass")
            short = self._protocol >= 4 and len(data) < 256
            self._out += (b"\x8c" + bytes([len(data)]) if short else b"X" + struct.pack("<I", len(data))) + data
            self._put(key)
        elif self._protocol >= 3:
            head = b"C" + bytes([len(value)]) if len(value) < 256 else b"B" + struct.pack("<I", len(value))
            self._out += head + value
            self._put(key)
        else:
            call = Made("REDUCE", Name("_codecs", "encode"), (value.decode("latin1"), "latin1"))
            self._kept.append(call)
            self._do(call.callee, call.args, self._code(b"R"), _Step(lambda: self._put(key)))

    def _batch(self, values: Any, end: bytes) -> None:
        single = {b"e": (1, b"a"), b"u": (2, b"s")}.get(end)
        if single is not None and len(values) == single[0]:
            self._do(*values, self._code(single[1]))
        elif values:
            self._do(self._code(b"("), *values, self._code(end))

    def _mapping(self, value: dict[Any, Any], key: Any) -> None:
        self._out += b"}"
        self._put(key)
        self._kept.append(value)
        self._items(value)

    def _items(self, value: dict[Any, Any]) -> None:
        flat: list[Any] = []
        for name, one in value.items():
            if not self._is_dropped(one):
                flat += [name.value if isinstance(name, Opaque) else name, one]
        self._batch(flat, b"u")

    def _is_dropped(self, value: Any) -> bool:
        return self._is_skipped(value) and not (self._holders is not None and id(value) in self._holders)

    def _tuple(self, value: tuple[Any, ...], key: Any) -> None:
        if not value:
            self._out += b")"
            return
        self._kept.append(value)
        put = _Step(lambda: self._put(key) if key not in self._memo else None)
        if len(value) <= 3:
            self._do(*value, self._code(b"\x85\x86\x87"[len(value) - 1 : len(value)]), put)
        else:
            self._do(self._code(b"("), *value, self._code(b"t"), put)

    def _set(self, value: SetOf, key: Any) -> None:
        self._kept.append(value)
        put = _Step(lambda: self._put(key))
        if value.frozen:
            self._do(self._code(b"("), *value.elements, self._code(b"\x91"), put)
        else:
            self._do(self._code(b"\x8f"), put, self._code(b"("), *value.elements, self._code(b"\x90"))

    def _object(self, value: Made, key: Any) -> None:
        self._kept.append(value)
        how = {"REDUCE": b"R", "NEWOBJ": b"\x81", "NEWOBJ_EX": b"\x92"}[value.how]
        kwargs = (value.kwargs,) if value.how == "NEWOBJ_EX" else ()
        steps: list[Any] = [value.callee, value.args, *kwargs, self._code(how), _Step(lambda: self._put(key))]
        steps.append(_Step(lambda: self._items(value)))
        steps.append(_Step(lambda: self._batch(value.appended, b"e")))
        steps.append(_Step(lambda: self._batch(value.added, b"\x90")))
        for state in value.states:
            steps += [state, self._code(b"b")]
        self._do(*steps)


def _memo_key(value: Any) -> Any:
    """Texts and names are remembered by what they are, all else by identity."""
    if isinstance(value, (str, bytes)):
        return type(value), value
    return (Name, value.module, value.name) if isinstance(value, Name) else id(value)


class _Step:
    """An action in the order of writing."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act


def _scalar(value: float | None) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if 0 <= value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return (b"\x8a" + bytes([len(data)]) if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data))) + data
