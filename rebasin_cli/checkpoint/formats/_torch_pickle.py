"""Pickles read as data: nothing that a pickle names is ever imported or called.

A pickle is a small program that may name any function. Here each name resolves to a placeholder made for this one
reading: for the few names that torch.save itself needs, one that records its arguments; for any other, an inert object,
whose name is reported so that the caller can refuse the file. Before that, the program's operations are listed without
running them, because Python's unpickler does not check sizes (a memo index of 2^32 takes 64 GiB). torch is not used.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rebasin_cli.checkpoint.checkpoint import ITEM_SIZES

MOST_OPERATIONS = 8_000_000
LONGEST_PICKLE = 256 << 20
LARGEST_TUPLE = 1_000_000
_FORBIDDEN = {"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip
_ALIASES = {
    "half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64",
    "chalf": "complex32", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip
# Permitted names whose values are not used: an inert object is enough.
_INERT = {
    "collections.Counter", "torch.device", "torch.serialization._get_layout", "torch.Tensor",
    "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.memory_format", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "torch.per_tensor_affine", "torch.per_tensor_symmetric",
    "torch.per_channel_affine", "torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage by key: `numel` elements of the dtype of this name (None: bytes); `offset` of a view in elements."""

    key: str
    dtype: str | None
    numel: int
    offset: int = 0


class TensorRef:
    """A tensor as storage, element offset, shape, strides, name of dtype; `trouble` says why it is not a dense one."""

    __slots__ = ("dtype", "offset", "shape", "storage", "stride", "trouble")

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any, trouble: str = "") -> None:
        self.storage, self.offset, self.shape, self.stride, self.dtype = storage, offset, shape, stride, dtype
        self.trouble = trouble

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor is given a state")

    @property
    def numel(self) -> int:
        """How many elements it claims to have."""
        return math.prod(self.shape)


class _Name:
    """The placeholder of a permitted name. Slots and the refused state prevent a pickle from changing it."""

    __slots__ = ("_act",)

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act

    def __call__(self, *args: Any) -> Any:
        return self._act(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function is given a state")


@dataclass(frozen=True, slots=True)
class Unpickled:
    """The contents of a pickle: its root, the names in it that are not permitted, the storages it refers to."""

    root: Any
    foreign: tuple[str, ...]
    storages: Mapping[str, StorageRef]


class _TupleSizes:
    """How many elements each tuple of a pickle has when it is written out, nested ones included.

    A tuple that is used as a key is hashed, and its hash visits shared parts once per use: a pickle of 445 bytes can
    describe a tuple of 2^60 elements. Other objects count as one: they have no hash, or it is stored. The stack is
    followed by the effects that `pickletools` documents.
    """

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # None is a mark
        self._memo: dict[int, int] = {}

    def follow(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply one operation.

        Raises:
            ValueError: a tuple becomes too large, or the stack has not what the operation takes.
        """
        name, stack = operation.name, self._stack
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            self._memo[argument] = self._top()
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            stack.append(self._memo.get(argument, 1))
        elif name == "DUP":
            stack.append(self._top())
        elif name == "MARK":
            stack.append(None)
        else:
            taken = self._take(operation)
            size = 1
            if name in {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}:
                size += sum(taken)
                if size > LARGEST_TUPLE:
                    raise ValueError(f"a tuple of more than {LARGEST_TUPLE:,} elements, written out")
            stack.extend([size] * len(operation.stack_after))

    def _top(self) -> int:
        if not self._stack:
            raise ValueError("an operation on an empty stack")
        return self._stack[-1] or 1

    def _take(self, operation: pickletools.OpcodeInfo) -> list[int]:
        before, stack = operation.stack_before, self._stack
        taken: list[int] = []
        if pickletools.stackslice in before or operation.name == "POP_MARK":
            while stack and (top := stack.pop()) is not None:
                taken.append(top)
        plain = [entry for entry in before if entry not in (pickletools.stackslice, pickletools.markobject)]
        for _ in plain:
            if not stack:
                raise ValueError("an operation on an empty stack")
            taken.append(stack.pop() or 1)
        return taken


def extent(stream: io.BytesIO | mmap.mmap) -> int:
    """The end of the pickle that begins at the stream's position; its operations are listed, not run.

    Raises:
        ValueError: not a pickle, cut short, or beyond the limits.
    """
    begin = stream.tell()
    sizes = _TupleSizes()
    for count, (operation, argument, _position) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
        if operation.name in _FORBIDDEN:
            raise ValueError(f"operation {operation.name} does not belong in a checkpoint")
        if operation.name in {"PUT", "BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > count:
            raise ValueError(f"memo index {argument:,} after {count:,} operations")
        sizes.follow(operation, argument)
        if count > MOST_OPERATIONS or stream.tell() - begin > LONGEST_PICKLE:
            raise ValueError(f"more than {MOST_OPERATIONS:,} operations or {LONGEST_PICKLE:,} bytes")
    return stream.tell()


def unpickle(data: bytes) -> Unpickled:
    """Read one pickle that `extent` has checked.

    Raises:
        ValueError: it is malformed, whatever exception Python raises.
    """
    try:
        reader = _Reader(data)
        root = reader.load()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except Exception as error:
        # A malformed program can cause any exception: KeyError, AttributeError, IndexError, …
        raise ValueError(str(error) or type(error).__name__) from error
    return Unpickled(root, tuple(dict.fromkeys(reader.foreign)), reader.storages)


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="backslashreplace")
        self.foreign: list[str] = []
        self.storages: dict[str, StorageRef] = {}
        self._inert = _new_inert_class()
        self._names = {name: _Name(act) for name, act in _KNOWN.items()}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full == "collections.OrderedDict":
            return OrderedDict
        if full in self._names:
            return self._names[full]
        if module in {"torch", "torch.cuda", "torch.storage"} and name.endswith("Storage"):
            kind = name.removesuffix("Storage")
            if kind == "Untyped":
                return StorageKind(None)
            if kind in _STORAGES:
                return StorageKind(_STORAGES[kind])
        if module == "torch" and _ALIASES.get(name, name) in ITEM_SIZES:
            return DtypeRef(_ALIASES.get(name, name))
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _Name(lambda *_args: TensorRef(None, 0, (), (), None, trouble=name.removeprefix("_rebuild_")))
        if full not in _INERT:
            self.foreign.append(full)
        return self._inert

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[0] == "module" and len(pid) > 1:
            return pid[1]
        if not (isinstance(pid, tuple) and len(pid) in {5, 6} and pid[0] == "storage"):
            raise pickle.UnpicklingError("an unknown kind of reference to data outside the pickle")
        kind, key, numel = pid[1], pid[2], pid[4]
        if not (isinstance(kind, StorageKind) and isinstance(key, str) and _is_size(numel)):
            raise pickle.UnpicklingError("a storage that is not described by kind, name and size")
        view = pid[5] if len(pid) == 6 else None
        self.storages.setdefault(key, StorageRef(key, kind.dtype, numel))
        if view is None:
            return StorageRef(key, kind.dtype, numel)
        if not (isinstance(view, tuple) and len(view) == 3 and _is_size(view[1])):
            raise pickle.UnpicklingError("a view of a storage that is not described by name, offset and size")
        return StorageRef(key, kind.dtype, numel, view[1])


@dataclass(frozen=True)
class StorageKind:
    """The element type that a storage class of torch names; None is bytes."""

    dtype: str | None

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a class is given a state")


@dataclass(frozen=True)
class DtypeRef:
    """A dtype of torch by its name."""

    name: str

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a dtype is given a state")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _rebuilt(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: Any = None) -> TensorRef:
    sizes = (offset, *shape, *stride)
    if not (isinstance(storage, StorageRef) and len(shape) == len(stride) <= 64 and all(map(_is_size, sizes))):
        raise pickle.UnpicklingError("a tensor that is not described by storage, offset, shape and strides")
    if math.prod(max(1, length) for length in shape) >= 1 << 62:
        raise pickle.UnpicklingError(f"a tensor whose shape {list(shape)[:8]} overflows")
    flags = rest[2] if len(rest) > 2 else None
    trouble = "a conjugate or negative view" if isinstance(flags, dict) and any(flags.values()) else ""
    chosen = dtype.name if isinstance(dtype, DtypeRef) else storage.dtype
    return TensorRef(storage, offset, tuple(shape), tuple(stride), chosen, trouble)


def _rebuilt_with_dtype(*args: Any) -> TensorRef:
    storage, offset, shape, stride, grad, hooks, dtype, *rest = args
    return _rebuilt(storage, offset, shape, stride, grad, hooks, *rest, dtype=dtype)


def _rebuilt_from_type(rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
    return rebuild(*args)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "utf-8"}:
        raise pickle.UnpicklingError("an unusual way of writing bytes")
    return text.encode(encoding)


def _bytearray(data: Any = b"", *_encoding: Any) -> Any:
    # A bare number would allocate that many bytes.
    return data if isinstance(data, (bytes, str)) else b""


def _items(values: Any = ()) -> Any:
    # A list has no hash, so no key can hide a large tuple in it.
    return list(values) if isinstance(values, (list, tuple)) else []


_KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_with_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_rest: data,
    "torch._tensor._rebuild_from_type_v2": _rebuilt_from_type,
    "torch.Size": _items,
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytearray,
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "builtins.complex": lambda *parts: list(parts),
}


def _new_inert_class() -> type:
    """A class that ignores everything a pickle does with it; new for each reading, so that no change persists."""

    class Inert:
        def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
            return super().__new__(cls)

        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
            return self

        def __setstate__(self, _state: Any) -> None:
            pass

        def __setitem__(self, _key: Any, _value: Any) -> None:
            pass

        def append(self, _item: Any) -> None:
            pass

        def extend(self, _items: Any) -> None:
            pass

        def add(self, _item: Any) -> None:
            pass

    return Inert
