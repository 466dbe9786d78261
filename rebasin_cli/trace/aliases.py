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

from rebasin_cli.trace.graph import SCATTER, Call, Ref, Value


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
    """All tensors on one storage: the current value of the root, and how often it was changed."""

    root: int
    version: int = 0


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
        self._new_value = new_value
        self._emit = emit
        self._scope = scope
        self._describe = describe

    def add_root(self, tensor: Tensor, value: int) -> None:
        """A tensor that is no view of another one that is known."""
        self._members[tensor] = Member(Family(value), value, 0)

    def add_view(self, tensor: Tensor, value: int, viewed: Tensor, step: ViewStep) -> None:
        """A tensor made by a view operation of another."""
        parent: Member = self._members[viewed]
        self._members[tensor] = Member(parent.family, value, parent.family.version, (*parent.chain, step))

    def add_stand_in(self, tensor: Tensor, known: Tensor) -> None:
        """Another tensor object for the same memory."""
        self._members[tensor] = self._members[known]

    def adopt(self, tensor: Tensor) -> bool:
        """Recognise a tensor object that looks at the whole of a known one (`.data`, a fresh wrapper); False if
        none.
        """
        storage = tensor.untyped_storage()._cdata
        layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for other, member in list(self._members.items()):
            theirs = (other.shape, other.stride(), other.storage_offset())
            if storage and other.untyped_storage()._cdata == storage and theirs == layout:
                self._members[tensor] = member
                return True
        return False

    def read(self, tensor: Tensor) -> int | None:
        """The current value of a tensor, replaying its views where its family has changed; None if unknown."""
        member: Member | None = self._members.get(tensor)
        if member is None:
            return None
        if member.version != member.family.version:
            member.value = self._replay(member.family.root, member.chain)[-1]
            member.version = member.family.version
        return member.value

    def write(self, tensor: Tensor, value: int) -> None:
        """The tensor was changed in place and now has this value."""
        member: Member = self._members[tensor]
        family = member.family
        current = value
        if member.chain:
            stages = self._replay(family.root, member.chain[:-1])
            for stage, step in zip(reversed(stages), reversed(member.chain), strict=True):
                current = self._scatter(stage, current, step)
        family.root = current
        family.version += 1
        member.value, member.version = value, family.version

    def family_values(self, tensor: Tensor) -> list[int]:
        """Last read values of all live tensors that share memory with this one, itself included."""
        family = self._members[tensor].family
        return [member.value for member in self._members.values() if member.family is family]

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
