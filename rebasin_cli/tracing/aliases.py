"""Which tensors share memory: turns in-place changes and views into values that are assigned once.

Every tensor object that the model handles has a value. Tensors that share a storage form one family: a root, and views
that remember the chain of view operations which made them from it. Changing one member writes the change back through
its chain into the root; the other members find themselves outdated when they are next read and replay their chains.
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
    """One view operation: how to repeat it on another value of the same shape."""

    name: str
    overload: str
    arguments: dict[str, Any]
    results: tuple[Value, ...]
    which: int
    of: str

    def on(self, value: int) -> dict[str, Any]:
        """The arguments with `value` in place of the tensor that was viewed."""
        return {**self.arguments, self.of: Ref(value)}


@dataclass(slots=True)
class Family:
    """All tensors on one storage: the current value of the root, how often it was changed, and all values they had."""

    root: int
    version: int = 0
    values: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Member:
    """One tensor object: its value at the time of `version`, and its chain of views from the root."""

    family: Family
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
        self._latest: dict[tuple[int, ...], Member] = {}
        self._new_value = new_value
        self._emit = emit
        self._scope = scope
        self._describe = describe

    def add_root(self, tensor: Tensor, value: int) -> None:
        """A tensor that is no view of another one that is known."""
        self._keep(tensor, Member(Family(value), value, 0))

    def add_view(self, tensor: Tensor, value: int, viewed: Tensor, step: ViewStep) -> None:
        """A tensor made by a view operation of another."""
        parent = self._member(viewed)
        self._keep(tensor, Member(parent.family, value, parent.family.version, (*parent.chain, step)))

    def add_stand_in(self, tensor: Tensor, known: Tensor) -> None:
        """Another tensor object for the same memory."""
        self._keep(tensor, self._member(known))

    def adopt(self, tensor: Tensor) -> bool:
        """Recognise a tensor object that looks at the whole of a known one (`.data`, a fresh wrapper); False if
        none.
        """
        place = _place(tensor)
        if place not in self._latest:
            return False
        for other, (member, _) in list(self._members.items()):
            if place[0] and _place(other) == place:
                self._keep(tensor, member)
                return True
        return False

    def read(self, tensor: Tensor) -> int | None:
        """The current value of a tensor, replaying its views where its family has changed; None if unknown."""
        kept = self._members.get(tensor)
        if kept is None:
            return None
        member: Member = kept[0]
        if kept[1] != _storage(tensor):  # `.data` was assigned: the object stands for other memory now, or for other's
            del self._members[tensor]
            latest = self._latest.get(_place(tensor))  # what it was assigned may be gone by now
            if latest is not None:
                self._keep(tensor, latest)
            return self.read(tensor) if latest is not None or self.adopt(tensor) else None
        if member.version != member.family.version:
            member.value = self._replay(member.family.root, member.chain)[-1]
            member.version = member.family.version
            member.family.values.add(member.value)
        return member.value

    def write(self, tensor: Tensor, value: int) -> None:
        """The tensor was changed in place and now has this value."""
        member = self._member(tensor)
        family = member.family
        current = value
        if member.chain:
            stages = self._replay(family.root, member.chain[:-1])
            for stage, step in zip(reversed(stages), reversed(member.chain), strict=True):
                current = self._scatter(stage, current, step)
        family.root = current
        family.version += 1
        member.value, member.version = value, family.version
        self._keep(tensor, member)

    def family_values(self, tensor: Tensor) -> set[int]:
        """Values of all tensors that share or shared memory with this one, itself included."""
        return self._member(tensor).family.values

    def _member(self, tensor: Tensor) -> Member:
        member: Member = self._members[tensor][0]
        return member

    def _keep(self, tensor: Tensor, member: Member) -> None:
        self._members[tensor] = member, _storage(tensor)
        member.family.values.add(member.value)
        self._latest[_place(tensor)] = member

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
    """Which memory a tensor looks at; 0 where it has none of its own kind (a sparse one)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def _place(tensor: Tensor) -> tuple[int, ...]:
    """The memory, and which part of it in which order."""
    storage = _storage(tensor)
    return (storage, int(tensor.storage_offset()), *tensor.shape, *tensor.stride()) if storage else (0, id(tensor))
