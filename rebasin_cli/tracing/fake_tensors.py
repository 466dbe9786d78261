"""A pass on fake tensors: parameters with a shape, a dtype and a device but no memory.

PyTorch's `FakeTensorMode` propagates shapes for every operation there is, at a tenth of a millisecond to several a
call. Networks repeat themselves, so `FakeKernels` remembers, during one pass, what an operation gave for arguments of
the same shapes; and it calls the meta kernels of the most frequent operations directly, which give the same at less
cost.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    in_kernel_invocation_manager,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from rebasin_cli.tracing.dispatch import Operator, operator
from rebasin_cli.tracing.operations import META, VIEW, has

NUMBERS_NEEDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""Raised where the model's code asks a fake tensor for its values."""

_BATCH_NORM = "aten::native_batch_norm"
_SHAPES_FOR_BFLOAT16 = ("aten::_grouped_mm",)
_CPU = torch.device("cpu")
_UNKNOWN = (
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
    torch.Tag.inplace_view,
)
"""Shapes of the arguments do not determine the results of operations with these tags."""


def fake_mode() -> FakeTensorMode:
    """A mode in which fake tensors may be combined with real ones: inputs and constants stay real for their values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor of the same shape, strides and dtype on the CPU that owns no memory."""
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake = FakeTensor(mode, meta, torch.device("cpu"))
    fake._is_param = isinstance(tensor, nn.Parameter)  # as `nn.Parameter(fake)`, which would run an operation
    return fake


@contextmanager
def fake_state(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Replace every parameter, and every floating buffer of the state dict, by a fake; shared ones stay shared.

    Other buffers stay real: the values of index tables and constants are read. Changes of module attributes by the pass
    (caches of masks or tables) are undone at the end.
    """
    snapshots = [(owner, _snapshot(owner)) for owner in module.modules()]
    fakes: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                if id(parameter) not in fakes:
                    fakes[id(parameter)] = fake_like(parameter, mode)
                owner._parameters[name] = fakes[id(parameter)]  # type: ignore[assignment]
        for name, buffer in owner._buffers.items():
            if buffer is not None and is_state_buffer(owner, name, buffer):
                fakes.setdefault(id(buffer), fake_like(buffer, mode))
                owner._buffers[name] = fakes[id(buffer)]
    try:
        yield
    finally:
        for owner, snapshot in snapshots:
            _restore(owner, snapshot)


@contextmanager
def unchanged_attributes(module: nn.Module) -> Iterator[None]:
    """Changes of module attributes inside the context are undone at the end."""
    snapshots = [(owner, _snapshot(owner)) for owner in module.modules()]
    try:
        yield
    finally:
        for owner, snapshot in snapshots:
            _restore(owner, snapshot)


def is_state_buffer(owner: nn.Module, name: str, buffer: Tensor) -> bool:
    """Whether a buffer is trained state: floating point and kept in the state dict."""
    return buffer.is_floating_point() and name not in owner._non_persistent_buffers_set


_Snapshot = tuple[dict[str, object], dict[str, object], dict[str, object]]


def _snapshot(owner: nn.Module) -> _Snapshot:
    attributes = {
        name: dict(value) if type(value) is dict else list(value) if type(value) is list else value
        for name, value in owner.__dict__.items()
        if name not in ("_parameters", "_buffers")
    }
    return attributes, dict(owner._parameters), dict(owner._buffers)


def _restore(owner: nn.Module, snapshot: _Snapshot) -> None:
    attributes, parameters, buffers = snapshot
    for name in [name for name in owner.__dict__ if name not in attributes and not name.startswith("_")]:
        del owner.__dict__[name]
    for name, value in attributes.items():
        current = owner.__dict__.get(name)
        if type(value) is dict and type(current) is dict:
            current.clear()
            current.update(value)
        elif type(value) is list and type(current) is list:
            current[:] = value
        else:
            owner.__dict__[name] = value
    owner._parameters.clear()
    owner._parameters.update(parameters)  # type: ignore[arg-type]
    owner._buffers.clear()
    owner._buffers.update(buffers)  # type: ignore[arg-type]


class FakeKernels:
    """Runs operations that have at least one fake tensor among their arguments.

    Args:
        mode: of the fakes; it runs everything else. Its own cache is disabled: computing its keys costs more than most
            operations.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        mode.cache_enabled = False
        self._known: dict[Hashable, _Made | _Changed | None] = {}

    def run(self, func: OpOverload, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """The operation's result, all of whose tensors are fakes; `tensors` are those among the arguments in order."""
        form = operator(func)
        weightless = all(type(tensor) is FakeTensor for tensor in tensors)
        direct = weightless and has(form.name, META)
        if direct and has(form.name, VIEW):  # a remembered result would not share memory
            return self._directly(func, args, kwargs)
        key = _key(form, args, kwargs)
        known = self._known.get(key)
        if known is not None:
            return known.again(self._mode, tensors)
        if direct:
            out = self._directly(func, args, kwargs)
        elif weightless and form.schema == _BATCH_NORM and not form.bind(args, kwargs)["training"]:
            out = self._normalised(args[0])
        else:
            out = self._by_mode(func, args, kwargs, tensors)
        if func.namespace == "aten":
            self._known[key] = _remembered(func, out, tensors)
        return out

    def _directly(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        with in_kernel_invocation_manager(self._mode):
            out = func(*args, **kwargs)
        return self._faked(out)

    def _normalised(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """BatchNorm in eval mode: a tensor like its input, and empty batch statistics."""
        like: Tensor = self._directly(torch.ops.aten.empty_like.default, (batch,), {})
        return like, *(self._faked(torch.empty(0, dtype=like.dtype, device="meta")) for _ in range(2))

    def _by_mode(self, func: OpOverload, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        with self._mode:
            if func._schema.name in _SHAPES_FOR_BFLOAT16 and not any(t.dtype is torch.bfloat16 for t in tensors):
                return _as_bfloat16(func, args, kwargs)
            return func(*args, **kwargs)

    def _faked(self, out: Any) -> Any:
        """Meta tensors, single or in a tuple or list, as fakes; a fake changed in place is returned as it is."""
        if isinstance(out, (tuple, list)):
            return type(out)(self._faked(one) for one in out)
        return out if type(out) is FakeTensor else FakeTensor(self._mode, out, _CPU)


@dataclass(frozen=True, slots=True)
class _Made:
    """New tensors: shape, strides and dtype of each; a single one or a tuple."""

    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    single: bool

    def again(self, mode: FakeTensorMode, given: list[Tensor]) -> Any:
        made = tuple(
            FakeTensor(mode, torch.empty_strided(shape, strides, dtype=dtype, device="meta"), _CPU)
            for shape, strides, dtype in self.tensors
        )
        return made[0] if self.single else made


@dataclass(frozen=True, slots=True)
class _Changed:
    """The first tensor among the arguments, changed in place."""

    def again(self, mode: FakeTensorMode, given: list[Tensor]) -> Any:
        return given[0]


def _remembered(func: OpOverload, out: Any, given: list[Tensor]) -> _Made | _Changed | None:
    """What to return next time; None where shapes do not determine it."""
    if any(tag in func.tags for tag in _UNKNOWN):
        return None
    if func._schema.is_mutable:
        whole = out is given[0] and type(out) is FakeTensor and not _written_beside_first(func)
        return _Changed() if whole else None
    single = isinstance(out, Tensor)
    results = (out,) if single else out
    if not isinstance(results, tuple) or not all(type(one) is FakeTensor and one.constant is None for one in results):
        return None
    memories = {one.untyped_storage()._cdata for one in results}
    if len(memories) < len(results) or any(one.untyped_storage()._cdata in memories for one in given):
        return None
    if any(one.storage_offset() or one.device != _CPU or one.layout is not torch.strided for one in results):
        return None
    return _Made(tuple((one.shape, one.stride(), one.dtype) for one in results), single)


def _written_beside_first(func: OpOverload) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments[1:])


def _key(form: Operator, args: Any, kwargs: dict[str, Any]) -> Hashable:
    """Everything about a call that the shapes of its result can depend on."""
    return form.overload, _described(args), tuple((name, _described(value)) for name, value in kwargs.items())


def _described(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, type(value)
    if isinstance(value, (tuple, list)):
        return tuple(_described(item) for item in value)
    return type(value), value  # 1, 1.0 and True are equal, and give different dtypes


def _as_bfloat16(func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result in the dtype of the arguments, for operations whose shape function accepts only bfloat16."""
    asked = next(leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    args, kwargs = tree_map_only(Tensor, lambda t: t.bfloat16() if t.is_floating_point() else t, (args, kwargs))
    return tree_map_only(Tensor, lambda t: t.to(asked), func(*args, **kwargs))
