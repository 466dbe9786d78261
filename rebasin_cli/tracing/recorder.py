"""Records every ATen operation of a forward pass: values, calls, constants."""

from __future__ import annotations

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

from rebasin_cli.tracing.aliases import AliasTable, ViewStep
from rebasin_cli.tracing.code_place import code_place
from rebasin_cli.tracing.graph import DECIDING, Call, Ref, Value
from rebasin_cli.tracing.operations import Operations
from rebasin_cli.tracing.schema import Operator, operator, tensors_in
from rebasin_cli.tracing.weightless_kernels import WeightlessKernels

NUMBERS_NEEDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""Raised where the model's code asks a weightless tensor for its numbers."""


class Recorder(Operations):  # type: ignore[no-untyped-call]
    """Runs operations as they come, on fakes where one takes part, and keeps the record.

    Attributes:
        values, calls: the record so far.
        constants: numbers of the values that depend on neither parameters nor inputs.
        scope: set by whoever follows the modules; gives the path of the module that is running.
    """

    def __init__(self, mode: FakeTensorMode | None) -> None:
        super().__init__()
        self._weightless = None if mode is None else WeightlessKernels(mode)
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

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run and record it."""
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # what a tensor without memory is asked about itself is no operation
        form = operator(func)
        tensors = list(tensors_in((args, kwargs)))
        refs = {id(tensor): Ref(self.value_of(tensor)) for tensor in tensors}
        if form.mutable:
            self._keep_numbers(tensors)
        given = form.bind(args, kwargs)
        arguments = {name: _referred(value, refs) for name, value in given.items() if name not in form.outs}
        out = self._run(func, args, kwargs, tensors)
        self._record(form, given, arguments, out)
        return out

    def _run(self, func: OpOverload, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        if self._weightless is None or not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        return self._weightless.run(func, args, kwargs, tensors)

    def _keep_numbers(self, tensors: list[Tensor]) -> None:
        """An in-place operation is coming: constants whose memory it may change keep a copy of their numbers."""
        for tensor in tensors:
            for value in self.aliases.family_values(tensor):
                if value in self.constants:
                    self.constants[value] = self.constants[value].clone()

    def _record(self, form: Operator, given: dict[str, Any], arguments: dict[str, Any], out: Any) -> None:
        written = [leaf for name in form.written for leaf in tensors_in(given[name])]
        leaves = list(tensors_in(out))
        described = tuple(Value(tuple(leaf.shape), leaf.dtype) for leaf in leaves)
        results = tuple(self.new_value(value) for value in described)
        spot = code_place() if form.name in DECIDING else ""
        call = Call(form.name, form.overload, arguments, results, self.scope(), place=spot)
        self.calls.append(call)
        # what is drawn has other numbers in the next pass
        constant = not form.drawn and self._variable.isdisjoint(call.inputs)
        for place, (tensor, index) in enumerate(zip(leaves, results, strict=True)):
            self._note_constancy(index, tensor, constant)  # before it is written back into what it is a view of
            changed = next((w for w in written if w is tensor), None)
            if changed is None and len(written) == len(leaves) == 1:
                changed = written[0]  # a real tensor changed by a fake one: what comes back is a stand-in for it
            if changed is not None:
                self.aliases.write(changed, index)
                self.aliases.add_stand_in(tensor, changed)
            elif form.viewed is not None and isinstance(given[form.viewed], Tensor):  # a number may stand there
                if tensor is not given[form.viewed]:
                    step = ViewStep(form.name, form.overload, arguments, described, place, form.viewed)
                    self.aliases.add_view(tensor, index, given[form.viewed], step)
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


def _referred(nested: Any, refs: dict[int, Ref]) -> Any:
    """The argument with every tensor replaced by its `Ref`."""
    if isinstance(nested, Tensor):
        return refs[id(nested)]
    if isinstance(nested, (tuple, list)):
        return type(nested)(_referred(item, refs) for item in nested)
    return nested
