"""Records a forward pass: every ATen operation, the values it reads and returns, and the module that asked for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rebasin_cli.tracing.aliases import AliasTable, ViewStep
from rebasin_cli.tracing.code_place import code_place
from rebasin_cli.tracing.dispatch import OperationMode, Operator, operator, tensors_in
from rebasin_cli.tracing.graph import Call, ModuleCall, ModuleInfo, Ref, Value
from rebasin_cli.tracing.operations import DECIDES, has

LEAVING = "aten._local_scalar_dense"
"""The operation that hands a number to Python; `.numpy()` and `.tolist()` are recorded as calls of it."""
_LEAVING_FUNCTIONS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}

RunOperation = Callable[[OpOverload, Any, dict[str, Any], list[Tensor]], Any]
"""Runs an operation: its overload, positional and named arguments, and all tensors among them in order."""


class Recorder(OperationMode):  # type: ignore[no-untyped-call]
    """Runs each operation and records it.

    Args:
        run: runs an operation that at least one fake tensor takes part in; the others run as they are.

    Attributes:
        values, calls: the record so far.
        constants: numbers of the values that depend on neither parameters nor inputs.
        modules: tells which module is running; without it, all operations belong to the model itself.
    """

    def __init__(self, run: RunOperation | None = None) -> None:
        super().__init__()
        self._run_on_fakes = run
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.constants: dict[int, Tensor] = {}
        self._variable: set[int] = set()
        self._numbers_left = False
        self.aliases = AliasTable(self.new_value, self._emit, self.scope, self.values.__getitem__)
        self.modules: ModuleScope | None = None

    def scope(self) -> str:
        return "" if self.modules is None else self.modules.path

    def new_value(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _emit(self, call: Call) -> None:
        """Add a synthetic call; its results vary with its arguments."""
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
        """Value of a tensor; an unknown one is a constant of the user's code."""
        index = self.aliases.read(tensor)
        if index is None and self.aliases.adopt(tensor):
            index = self.aliases.read(tensor)
        if index is None:  # after numbers have left, the user's code may have made it of them
            index = self.add_leaf(tensor, constant=not isinstance(tensor, FakeTensor) and not self._numbers_left)
        return index

    def numbers_leave(self, tensor: Tensor) -> None:
        """Record that the model's code reads the numbers of a tensor, as an array or as a list."""
        value = self.value_of(tensor)
        if value in self._variable:
            self._numbers_left = True
            arguments = {"self": Ref(value)}
            place, guard = code_place()
            self.calls.append(Call(LEAVING, f"{LEAVING}.default", arguments, (), self.scope(), True, place, guard))

    def watching(self) -> TorchFunctionMode:
        """A context in which `numbers_leave` is called where the numbers of a tensor leave PyTorch."""
        return _Watching(self)

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run and record it."""
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # an attribute query, not an operation
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
        if self._run_on_fakes is None or not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        return self._run_on_fakes(func, args, kwargs, tensors)

    def _keep_numbers(self, tensors: list[Tensor]) -> None:
        """Before an in-place operation: copy the values of constants whose memory it may change."""
        for tensor in tensors:
            for value in self.aliases.values_sharing_memory(tensor):
                if value in self.constants:
                    self.constants[value] = self.constants[value].clone()

    def _record(self, form: Operator, given: dict[str, Any], arguments: dict[str, Any], out: Any) -> None:
        written = [leaf for name in form.written for leaf in tensors_in(given[name])]
        leaves = list(tensors_in(out))
        described = tuple(Value(tuple(leaf.shape), leaf.dtype) for leaf in leaves)
        results = tuple(self.new_value(value) for value in described)
        spot, guard = code_place() if has(form.name, DECIDES) else ("", False)
        call = Call(form.name, form.overload, arguments, results, self.scope(), place=spot, guard=guard)
        self.calls.append(call)
        # random numbers differ in the next pass
        constant = not form.drawn and self._variable.isdisjoint(call.inputs)
        self._numbers_left |= form.name == LEAVING and not constant
        for place, (tensor, index) in enumerate(zip(leaves, results, strict=True)):
            self._note_constancy(index, tensor, constant)  # before the change is written back to the root
            changed = next((w for w in written if w is tensor), None)
            if changed is None and len(written) == len(leaves) == 1:
                changed = written[0]  # a real tensor changed by a fake one: the result stands for it
            if changed is not None:
                self.aliases.write(changed, index)
                self.aliases.add_stand_in(tensor, changed)
            elif form.viewed is not None and isinstance(given[form.viewed], Tensor):  # may be a Python number
                if tensor is not given[form.viewed]:
                    step = ViewStep(form.name, form.overload, arguments, described, place, form.viewed)
                    self.aliases.add_view(tensor, index, given[form.viewed], step)
            elif self.aliases.read(tensor) is None:
                self.aliases.add_root(tensor, index)
        if written and not leaves:
            self._record_silent_writes(written, constant)

    def _record_silent_writes(self, written: list[Tensor], constant: bool) -> None:
        """Record an operation that changes arguments and returns nothing: their new values are its results."""
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


class _Watching(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LEAVING_FUNCTIONS and not isinstance(args[0], FakeTensor):
            self._recorder.numbers_leave(args[0])
        return func(*args, **(kwargs or {}))


def _referred(nested: Any, refs: dict[int, Ref]) -> Any:
    """The argument with every tensor replaced by its `Ref`."""
    if isinstance(nested, Tensor):
        return refs[id(nested)]
    if isinstance(nested, (tuple, list)):
        return type(nested)(_referred(item, refs) for item in nested)
    return nested


class ModuleScope:
    """Tracks which module is running, by hooks on all modules of one forward pass.

    Args:
        root: the model.
        value_of: gives the value index of a tensor, or None for a tensor that was not recorded.

    Attributes:
        failed: path of the innermost module that did not return; empty while all did.
    """

    def __init__(self, root: nn.Module, value_of: Callable[[Tensor], int | None]) -> None:
        self._names = {id(module): name for name, module in root.named_modules()}
        self._root = root
        self._value_of = value_of
        self._stack: list[tuple[str, tuple[int, ...]]] = []
        self._calls: list[ModuleCall] = []
        self._counts: Counter[str] = Counter()
        self.failed = ""

    @property
    def path(self) -> str:
        """Path of the module that is running now; empty for the model itself."""
        return self._stack[-1][0] if self._stack else ""

    @property
    def calls(self) -> tuple[ModuleCall, ...]:
        return tuple(self._calls)

    @property
    def modules(self) -> tuple[ModuleInfo, ...]:
        return tuple(
            ModuleInfo(name, type(module).__name__, self._counts[name]) for name, module in self._root.named_modules()
        )

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hooks on every module for the duration of the context."""
        handles = []
        for module in self._root.modules():
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _values(self, nested: Any) -> tuple[int, ...]:
        found = (self._value_of(leaf) for leaf in tree_leaves(nested) if isinstance(leaf, Tensor))
        return tuple(value for value in found if value is not None)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names.get(id(module), self.path)
        self._counts[name] += 1
        self._stack.append((name, self._values((args, kwargs))))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._stack:
            return
        name, inputs = self._stack.pop()
        if output is None:
            self.failed = self.failed or name
            return
        outputs = self._values(output)
        leaf = next(module.children(), None) is None
        self._calls.append(ModuleCall(name, type(module).__name__, inputs, outputs, leaf))
