"""Records every ATen operation of a forward pass: the one place with a `TorchDispatchMode`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from rebasin_cli.trace.aliases import AliasTable, ViewStep
from rebasin_cli.trace.code_place import code_place
from rebasin_cli.trace.graph import DECIDING, Call, Ref, Value, refs_in

NUMBERS_NEEDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""Raised where the model's code asks a weightless tensor for its numbers."""

_SHAPES_FOR_BFLOAT16 = ("aten::_grouped_mm",)


class Recorder(TorchDispatchMode):
    """Runs operations as they come, on fakes where one takes part, and keeps the record.

    Attributes:
        values, calls: the record so far.
        constants: numbers of the values that depend on neither parameters nor inputs.
        scope: set by whoever follows the modules; gives the path of the module that is running.
    """

    def __init__(self, mode: FakeTensorMode | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.constants: dict[int, Tensor] = {}
        self._variable: set[int] = set()
        self._path = ""
        self.aliases = AliasTable(self.new_value, self._emit, self.scope, self.values.__getitem__)
        self.follow: Any = None

    def scope(self) -> str:
        return "" if self.follow is None else str(self.follow.path)

    def new_value(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _emit(self, call: Call) -> None:
        """A call made while views were resolved: what it gives varies where what it was given does."""
        self.calls.append(call)
        if not self._variable.isdisjoint(call.inputs):
            self._variable.update(value for value in call.results if value is not None)

    def add_leaf(self, tensor: Tensor, *, constant: bool = False) -> int:
        """Register a parameter, buffer or input (a constant keeps its numbers); the same tensor object once only."""
        known = self.aliases.read(tensor)
        if known is not None:
            return known
        index = self.new_value(Value(tuple(tensor.shape), tensor.dtype))
        self.aliases.add_root(tensor, index)
        if constant:
            self.constants[index] = tensor
        else:
            self._variable.add(index)
        return index

    def value_of(self, tensor: Tensor) -> int:
        """Value of a tensor; one that was never seen is a constant of the user's code."""
        index = self.aliases.read(tensor)
        if index is None and self.aliases.adopt(tensor):
            index = self.aliases.read(tensor)
        if index is None:
            index = self.add_leaf(tensor, constant=not isinstance(tensor, FakeTensor))
        return index

    def __torch_dispatch__(self, func: OpOverload, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        names = {id(tensor): self.value_of(tensor) for tensor in tensors}
        if func._schema.is_mutable:
            self._keep_numbers(tensors)
        given = bind(func, args, kwargs)
        arguments = tree_map_only(Tensor, lambda tensor: Ref(names[id(tensor)]), given)
        out = self._run(func, args, kwargs, tensors)
        self._record(func, given, arguments, out)
        return out

    def _run(self, func: OpOverload, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        if self._mode is None or not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        with self._mode:
            if func._schema.name in _SHAPES_FOR_BFLOAT16 and not any(t.dtype is torch.bfloat16 for t in tensors):
                return _as_bfloat16(func, args, kwargs)
            return func(*args, **kwargs)

    def _keep_numbers(self, tensors: list[Tensor]) -> None:
        """An in-place operation is coming: constants whose memory it may change keep a copy of their numbers."""
        for tensor in tensors:
            for value in self.aliases.family_values(tensor):
                if value in self.constants:
                    self.constants[value] = self.constants[value].clone()

    def _record(self, func: OpOverload, given: dict[str, Any], arguments: dict[str, Any], out: Any) -> None:
        written = [leaf for name in _written(func) for leaf in tree_leaves(given[name]) if isinstance(leaf, Tensor)]
        leaves = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        described = tuple(Value(tuple(leaf.shape), leaf.dtype) for leaf in leaves)
        results = tuple(self.new_value(value) for value in described)
        name = func._schema.name.replace("::", ".")
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        drawn = torch.Tag.nondeterministic_seeded in func.tags  # other numbers in the next pass
        constant = not drawn and not any(value in self._variable for value in refs_in(arguments))
        arguments = {key: value for key, value in arguments.items() if key not in _outs(func)}
        spot = code_place() if name in DECIDING else ""
        self.calls.append(Call(name, full_name(func), arguments, results, self.scope(), place=spot))
        viewed = _viewed(func)
        for place, (tensor, index) in enumerate(zip(leaves, results, strict=True)):
            self._note_constancy(index, tensor, constant)  # before it is written back into what it is a view of
            changed = next((w for w in written if w is tensor), None)
            if changed is None and len(written) == len(leaves) == 1:
                changed = written[0]  # a real tensor changed by a fake one: what comes back is a stand-in for it
            if changed is not None:
                self.aliases.write(changed, index)
                self.aliases.add_stand_in(tensor, changed)
            elif viewed is not None:
                if tensor is not given[viewed]:
                    step = ViewStep(name, full_name(func), arguments, described, place, viewed)
                    self.aliases.add_view(tensor, index, given[viewed], step)
            elif self.aliases.read(tensor) is None:
                self.aliases.add_root(tensor, index)
        if written and not leaves:
            self._record_silent_writes(written, constant)

    def _record_silent_writes(self, written: list[Tensor], constant: bool) -> None:
        """The operation changed arguments and returns nothing: their new values are its results."""
        call = self.calls.pop()
        results = tuple(self.new_value(Value(tuple(tensor.shape), tensor.dtype)) for tensor in written)
        self.calls.append(Call(call.name, call.overload, call.arguments, results, call.scope))
        for tensor, index in zip(written, results, strict=True):
            self._note_constancy(index, tensor, constant)
            self.aliases.write(tensor, index)

    def _note_constancy(self, index: int, tensor: Tensor, constant: bool) -> None:
        if not constant:
            self._variable.add(index)
        elif not isinstance(tensor, FakeTensor):
            self.constants[index] = tensor


def _as_bfloat16(func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the operation gives in shape and in the dtype asked for, where its shape function knows bfloat16 alone."""
    asked = next(leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    args, kwargs = tree_map_only(Tensor, lambda t: t.bfloat16() if t.is_floating_point() else t, (args, kwargs))
    return tree_map_only(Tensor, lambda t: t.to(asked), func(*args, **kwargs))


def full_name(func: OpOverload) -> str:
    """Namespace, operator and overload: `aten.add.Tensor`."""
    overload = func._schema.overload_name or "default"
    return f"{func._schema.name.replace('::', '.')}.{overload}"


def bind(func: OpOverload, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument by its name in the schema, defaults filled in."""
    bound: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif place < len(args) and not argument.kwarg_only:
            bound[argument.name] = args[place]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def _outs(func: OpOverload) -> set[str]:
    return {argument.name for argument in func._schema.arguments if argument.is_out}


def _written(func: OpOverload) -> list[str]:
    arguments = func._schema.arguments
    return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _viewed(func: OpOverload) -> str | None:
    """The argument that the results look at, for a view operation; None for all others."""
    schema = func._schema
    if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
        return next((a.name for a in schema.arguments if a.alias_info is not None), None)
    return None
