"""Resolves views and in-place changes into values that are assigned once.

Every tensor object that the model handles has a value. Tensors on one storage are a root and its views, each with the
chain of view operations that made it from the root. An in-place change of one of them is written back through its chain
into the root, which gets a new version. A view of an older version is outdated: when it is next read, its chain is
replayed on the current root. So every read sees all writes before it, and no value ever changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rebasin_cli.tracing.graph import SCATTER, Call, Ref, Value


@dataclass(frozen=True, slots=True)
class ViewStep:
    """One view operation, to be repeated on another value of the same shape."""

    name: str
    overload: str
    arguments: dict[str, Any]
    results: tuple[Value, ...]
    which: int
    of: str

    def on(self, value: int) -> dict[str, Any]:
        """The arguments with `value` in memory of the tensor that was viewed."""
        return {**self.arguments, self.of: Ref(value)}


@dataclass(slots=True)
class SharedStorage:
    """All tensors on one storage: the current value of the root, its version, and all values that they have had."""

    root: int
    version: int = 0
    values: set[int] = field(default_factory=set)


@dataclass(slots=True)
class TrackedTensor:
    """One tensor object: its value as of `version`, and its chain of views from the root."""

    shared: SharedStorage
    value: int
    version: int
    chain: tuple[ViewStep, ...] = field(default=())


class AliasTable:
    """Values of tensor objects.

    Args:
        new_value: registers a value and returns its index.
        emit: adds a call to the record.
        scope: path of the module that is running.
        describe: shape and dtype of a value.
    """

    def __init__(
        self,
        new_value: Callable[[Value], int],
        emit: Callable[[Call], None],
        scope: Callable[[], str],
        describe: Callable[[int], Value],
    ) -> None:
        self._members: Any = WeakTensorKeyDictionary()
        self._latest: dict[tuple[int, ...], TrackedTensor] = {}
        self._new_value = new_value
        self._emit = emit
        self._scope = scope
        self._describe = describe

    def add_root(self, tensor: Tensor, value: int) -> None:
        """Register a tensor that is no view of a known one."""
        self._keep(tensor, TrackedTensor(SharedStorage(value), value, 0))

    def add_view(self, tensor: Tensor, value: int, viewed: Tensor, step: ViewStep) -> None:
        """Register a tensor that a view operation made of another."""
        parent = self._member(viewed)
        self._keep(tensor, TrackedTensor(parent.shared, value, parent.shared.version, (*parent.chain, step)))

    def add_stand_in(self, tensor: Tensor, known: Tensor) -> None:
        """Register another tensor object for the same memory."""
        self._keep(tensor, self._member(known))

    def adopt(self, tensor: Tensor) -> bool:
        """Register an unknown object for the memory of a known tensor (`.data`, a new wrapper); False if it is none."""
        memory = _memory(tensor)
        if memory not in self._latest:
            return False
        for other, (member, _) in list(self._members.items()):
            if memory[0] and _memory(other) == memory:
                self._keep(tensor, member)
                return True
        return False

    def read(self, tensor: Tensor) -> int | None:
        """The current value of a tensor, its views replayed if its storage has changed; None if it is unknown."""
        kept = self._members.get(tensor)
        if kept is None:
            return None
        member: TrackedTensor = kept[0]
        if kept[1] != _storage(tensor):  # `.data` was assigned: the object now has other memory
            del self._members[tensor]
            latest = self._latest.get(_memory(tensor))  # the assigned tensor may no longer exist
            if latest is not None:
                self._keep(tensor, latest)
            return self.read(tensor) if latest is not None or self.adopt(tensor) else None
        if member.version != member.shared.version:
            member.value = self._replay(member.shared.root, member.chain)[-1]
            member.version = member.shared.version
            member.shared.values.add(member.value)
        return member.value

    def write(self, tensor: Tensor, value: int) -> None:
        """The tensor was changed in memory and now has this value."""
        member = self._member(tensor)
        shared = member.shared
        current = value
        if member.chain:
            stages = self._replay(shared.root, member.chain[:-1])
            for stage, step in zip(reversed(stages), reversed(member.chain), strict=True):
                current = self._scatter(stage, current, step)
        shared.root = current
        shared.version += 1
        member.value, member.version = value, shared.version
        self._keep(tensor, member)

    def values_sharing_memory(self, tensor: Tensor) -> set[int]:
        """All values, past and present, of tensors that share memory with this one, itself included."""
        return self._member(tensor).shared.values

    def _member(self, tensor: Tensor) -> TrackedTensor:
        member: TrackedTensor = self._members[tensor][0]
        return member

    def _keep(self, tensor: Tensor, member: TrackedTensor) -> None:
        self._members[tensor] = member, _storage(tensor)
        member.shared.values.add(member.value)
        self._latest[_memory(tensor)] = member

    def _replay(self, root: int, chain: tuple[ViewStep, ...]) -> list[int]:
        values = [root]
        for step in chain:
            results = tuple(self._new_value(value) for value in step.results)
            self._emit(Call(step.name, step.overload, step.on(values[-1]), results, self._scope(), synthetic=True))
            values.append(results[step.which])
        return values

    def _scatter(self, base: int, part: int, step: ViewStep) -> int:
        """The value `base` after its view by `step` was changed to `part`."""
        result = self._new_value(self._describe(base))
        arguments = {**step.on(base), "base": Ref(base), "part": Ref(part), "view": step.name, "which": step.which}
        self._emit(Call(SCATTER, SCATTER, arguments, (result,), self._scope(), synthetic=True))
        return result


def _storage(tensor: Tensor) -> int:
    """Identifies the storage of a tensor; 0 where it has none (a sparse one)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """The storage, and the part of it in which order."""
    storage = _storage(tensor)
    return (storage, int(tensor.storage_offset()), *tensor.shape, *tensor.stride()) if storage else (0, id(tensor))
