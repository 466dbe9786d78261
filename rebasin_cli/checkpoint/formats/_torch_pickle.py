"""The pickle of torch.save read as data: which tensors it describes, and what in it is skipped or refused.

`_pickle_machine.py` turns the pickle into a graph without importing or calling anything that it names. Here the records
of torch's own functions become descriptions of tensors and storages. Objects of any other class are kept as they are
and found again by `skipped`, with their places; a pickle that is a program is refused by `_pickled_names.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rebasin_cli.checkpoint.checkpoint import ITEM_SIZES
from rebasin_cli.checkpoint.formats._pickle_machine import Buffer, Machine, Made, Name, SetOf
from rebasin_cli.checkpoint.formats._pickled_names import (
    DTYPE_ALIASES,
    Refused,
    is_plain,
    label,
    refusal_of_name,
    refusal_of_object,
)

LONGEST_PICKLE = 256 << 20
_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}  # fmt: skip
STORAGE_NAMES = {dtype: f"{kind}Storage" for kind, dtype in _STORAGES.items()}
"""The storage class of a dtype, for those that have one."""


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage by key: `numel` elements of the dtype of this name (None: bytes); `offset` of a view in elements.

    `pid` is the reference as the pickle has it.
    """

    key: str
    dtype: str | None
    numel: int
    offset: int = 0
    pid: Any = None


class TensorRef:
    """A tensor as storage, element offset, shape, strides, name of dtype; `trouble` says why it is not a dense one.

    `source` is the record of the call that would have made it.
    """

    __slots__ = ("dtype", "offset", "shape", "source", "storage", "stride", "trouble")

    def __init__(
        self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any, trouble: str = "", source: Any = None
    ) -> None:
        self.storage, self.offset, self.shape, self.stride, self.dtype = storage, offset, shape, stride, dtype
        self.trouble, self.source = trouble, source

    @property
    def numel(self) -> int:
        """How many elements it claims to have."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An object in the graph that is no tensor and no plain data: its class, and the keys that lead to it."""

    name: str
    at: tuple[str, ...]
    made: Made | Name


@dataclass(frozen=True, slots=True)
class Unpickled:
    """The contents of a pickle.

    Attributes:
        root: the graph.
        refused: why the pickle is a program or a whole model, in the order of the file.
        storages: the storages that it refers to, by key.
        protocol: the highest protocol that it announced.
        end: the position after it.
    """

    root: Any
    refused: tuple[Refused, ...]
    storages: Mapping[str, StorageRef]
    protocol: int = 2
    end: int = 0


def unpickle(data: Buffer, position: int = 0) -> Unpickled:
    """Read the pickle that begins at `position`.

    Raises:
        ValueError: it is malformed or beyond the limits.
    """
    reader = _Reader()
    machine = Machine(data, reader, position)
    try:
        root = machine.run()
    except (LookupError, TypeError, AttributeError, OverflowError, ArithmeticError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return Unpickled(root, tuple(dict.fromkeys(reader.refused)), reader.storages, machine.protocol, machine.position)


class _Reader:
    """What torch's names mean; see `Meaning`."""

    def __init__(self) -> None:
        self.refused: list[Refused] = []
        self.storages: dict[str, StorageRef] = {}

    def named(self, name: Name) -> None:
        self._refuse(refusal_of_name(name))

    def made(self, made: Made) -> Any:
        act = _KNOWN.get(made.full) if made.how == "REDUCE" else None
        if act is not None:
            found = act(*made.args)
            if isinstance(found, TensorRef):
                return TensorRef(
                    found.storage, found.offset, found.shape, found.stride, found.dtype, found.trouble, made
                )
            return found if isinstance(found, bytes) else made
        if made.full.startswith("torch._utils._rebuild_"):
            return TensorRef(None, 0, (), (), None, made.full.removeprefix("torch._utils._rebuild_"), made)
        self._refuse(refusal_of_object(made))
        if made.full in _MAPPINGS:
            _fill(made)
        return made

    def built(self, target: Any, state: Any) -> None:
        if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
            self._refuse(Refused(label(target), is_model=True))

    def persistent(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        if not (isinstance(pid, tuple) and len(pid) in {5, 6} and pid[0] == "storage"):
            raise ValueError("an unknown kind of reference to data outside the pickle")
        kind, key, numel = pid[1], pid[2], pid[4]
        if not (isinstance(kind, Name) and isinstance(key, str) and _is_size(numel)):
            raise ValueError("a storage that is not described by kind, name and size")
        dtype = _storage_dtype(kind)
        view = pid[5] if len(pid) == 6 else None
        self.storages.setdefault(key, StorageRef(key, dtype, numel, pid=pid))
        if view is None:
            return StorageRef(key, dtype, numel, pid=pid)
        if not (isinstance(view, tuple) and len(view) == 3 and _is_size(view[1])):
            raise ValueError("a view of a storage that is not described by name, offset and size")
        return StorageRef(key, dtype, numel, view[1], pid)

    def _refuse(self, found: Refused | None) -> None:
        if found is not None and len(self.refused) < _MOST_REFUSALS:
            self.refused.append(found)


_MOST_REFUSALS = 100
_MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict"}


def _fill(made: Made) -> None:
    """Items that a mapping gets as an argument: Python 2 wrote ordered ones in this way."""
    given = made.args[-1] if made.args else ()
    if isinstance(given, dict):
        made.update(given)
    elif isinstance(given, (list, tuple)):
        made.update((pair[0], pair[1]) for pair in given if _is_item(pair))


def _is_item(pair: Any) -> bool:
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)


def _storage_dtype(kind: Name) -> str | None:
    """The dtype of a storage class; None for bytes."""
    word = kind.name.removesuffix("Storage")
    if not kind.name.endswith("Storage") or (word != "Untyped" and word not in _STORAGES):
        raise ValueError(f"a storage of an unknown kind, {kind.full[:80]}")
    return _STORAGES.get(word)


def skipped(root: Any) -> Iterator[Skipped]:
    """The objects in a graph that are neither tensors nor plain data, with their places; each once, outermost first."""
    pending: list[tuple[Any, Any]] = [(root, None)]
    seen: set[int] = set()
    while pending:
        value, at = pending.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, TensorRef, StorageRef, type(None))):
            continue
        seen.add(id(value))
        if (isinstance(value, Made) and not is_plain(value.full)) or (
            isinstance(value, Name) and not is_plain(value.full)
        ):
            yield Skipped(label(value) if isinstance(value, Made) else value.full, _place(at), value)
        inner = list(_parts(value))
        pending.extend((one, (at, key)) for key, one in reversed(inner))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield str(key), one
    if isinstance(value, Made):
        if is_plain(value.full):
            yield from (("", one) for one in value.args if not isinstance(one, (Name, str)))
        yield from (("", one) for one in (*value.appended, *value.added))
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield str(number), one
    elif isinstance(value, SetOf):
        yield from (("", one) for one in value.elements)


def _place(at: Any) -> tuple[str, ...]:
    """The keys of a place, from the outermost on; of a very deep one the innermost."""
    keys: list[str] = []
    while at is not None and len(keys) < 20:
        at, key = at
        keys += [key] if key else []
    return tuple(reversed(keys))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _sizes(value: Any) -> Any:
    """A tuple of sizes, also where it is a `torch.Size`."""
    if isinstance(value, Made) and value.full == "torch.Size" and value.args:
        return value.args[0]
    return value


def _rebuilt(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: Any = None) -> TensorRef:
    shape, stride = _sizes(shape), _sizes(stride)
    sizes = (offset, *shape, *stride)
    if not (isinstance(storage, StorageRef) and len(shape) == len(stride) <= 64 and all(map(_is_size, sizes))):
        raise ValueError("a tensor that is not described by storage, offset, shape and strides")
    if math.prod(max(1, length) for length in shape) >= 1 << 62:
        raise ValueError(f"a tensor whose shape {list(shape)[:8]} overflows")
    flags = rest[2] if len(rest) > 2 else None
    trouble = "a conjugate or negative view" if isinstance(flags, dict) and any(flags.values()) else ""
    return TensorRef(storage, offset, tuple(shape), tuple(stride), _dtype(dtype) or storage.dtype, trouble)


def _dtype(value: Any) -> str | None:
    """The dtype that a name of torch stands for."""
    if not isinstance(value, Name) or value.module != "torch":
        return None
    name = DTYPE_ALIASES.get(value.name, value.name)
    return name if name in ITEM_SIZES else None


def _rebuilt_with_dtype(*args: Any) -> TensorRef:
    storage, offset, shape, stride, grad, hooks, dtype, *rest = args
    return _rebuilt(storage, offset, shape, stride, grad, hooks, *rest, dtype=dtype)


def _rebuilt_from_type(rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
    act = _KNOWN.get(rebuild.full) if isinstance(rebuild, Name) else None
    if act is None or not isinstance(args, tuple):
        return TensorRef(None, 0, (), (), None, trouble="a tensor of its own class")
    return act(*args)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "utf-8"}:
        raise ValueError("an unusual way of writing bytes")
    return text.encode(encoding)


def _bytes(*args: Any) -> Any:
    return args[0] if args and isinstance(args[0], bytes) else b""


_KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_with_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_rest: data,
    "torch._tensor._rebuild_from_type_v2": _rebuilt_from_type,
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
}
