"""A module without its weights: parameters on the meta device from the moment they are registered.

While a constructor runs, `nn.Module.register_parameter` replaces every parameter's data by a meta tensor. `torch.empty`
does not touch its memory, so a linear layer of a gigabyte uses none, and initialising a meta tensor takes no time. The
*object* stays the same (`torch.utils.swap_tensors`), so every other reference to it, and every tie, is replaced too.
Buffers stay real, because their values (index tables, masks) are used.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import UninitializedParameter

_weakly: Any = StorageWeakRef
_swap: Any = torch.utils.swap_tensors


class _MetaTwins:
    """Meta tensors that are the same views of meta storages as the real ones of theirs, so that sharing is kept."""

    def __init__(self) -> None:
        self._storages: dict[StorageWeakRef, torch.UntypedStorage] = {}

    def twin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = _weakly(storage)  # weak: the real memory can be freed
        if reference not in self._storages:
            self._storages[reference] = torch.empty(
                storage.nbytes(), dtype=torch.uint8, device="meta"
            ).untyped_storage()
        body = torch.empty(0, dtype=tensor.dtype, device="meta")
        return body.set_(self._storages[reference], tensor.storage_offset(), tensor.size(), tensor.stride())

    def parameter(self, parameter: nn.Parameter) -> nn.Parameter:
        twin = torch.Tensor._make_subclass(type(parameter), self.twin(parameter.detach()), parameter.requires_grad)
        twin.__dict__.update(parameter.__dict__)
        return twin


def is_plain(parameter: object) -> bool:
    """An ordinary parameter with real memory: not lazy, not a tensor subclass."""
    return (
        isinstance(parameter, nn.Parameter)
        and not isinstance(parameter, UninitializedParameter)
        and type(parameter.data) is Tensor
        and parameter.layout is torch.strided
        and not parameter.is_meta
    )


@contextlib.contextmanager
def weightless_construction() -> Iterator[None]:
    """Within this context, parameters become meta tensors when they are registered. Not thread-safe."""
    twins = _MetaTwins()
    original = nn.Module.register_parameter

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and is_plain(param):
            # Fails while a view of the parameter or a weak reference to it exists; `without_weights` handles those.
            with contextlib.suppress(RuntimeError):
                _swap(param, twins.parameter(param))
        original(self, name, param)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns for every meta tensor that is initialised or loaded into
        nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = original  # type: ignore[method-assign]


def leaked(module: nn.Module) -> str | None:
    """The name of a buffer or plain tensor attribute that was computed from meta parameters, if any."""
    known = {id(parameter) for parameter in module.parameters()}
    for name, child in module.named_modules():
        for key, buffer in child.named_buffers(recurse=False):
            if buffer.is_meta:
                return f"{name}.{key}".lstrip(".")
        if ".parametrizations." in f".{name}":
            # `parametrize` skips the inverse of a parametrization where it fails, as on the values of a meta tensor;
            # the buffer that the inverse would have made is then None (`orthogonal`).
            absent = next((key for key, buffer in child._buffers.items() if buffer is None), None)
            if absent is not None:
                return f"{name}.{absent}"
        derived = _recomputed(child)
        for key, value in vars(child).items():
            if key in {"_parameters", "_buffers", "_modules"} or key in derived:
                continue
            if any(tensor.is_meta and id(tensor) not in known for tensor in _tensors_in(value)):
                return f"{name}.{key}".lstrip(".")
    return None


def _recomputed(module: nn.Module) -> set[str]:
    """Attributes that a pre-forward hook (`torch.nn.utils.weight_norm`) recomputes before every use."""
    names = (getattr(hook, "name", None) for hook in module._forward_pre_hooks.values())
    return {name for name in names if isinstance(name, str)}


def _tensors_in(value: Any, depth: int = 2) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors_in(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, depth - 1)


def without_weights(module: nn.Module, *, buffers: bool = False) -> nn.Module:
    """A copy of the module whose parameters (and buffers, on request) are on the meta device; ties are kept.

    No weight is copied: `deepcopy` finds each one's meta twin in its memo. A module without real weights is returned
    itself.
    """
    tensors: list[Tensor] = [parameter for parameter in module.parameters() if is_plain(parameter)]
    if buffers:
        tensors += [buffer for buffer in module.buffers() if not buffer.is_meta and buffer.layout is torch.strided]
    if not tensors:
        return module
    twins = _MetaTwins()
    memo: dict[int, Any] = {
        id(tensor): twins.parameter(tensor) if isinstance(tensor, nn.Parameter) else twins.twin(tensor.detach())
        for tensor in tensors
    }
    return copied(module, memo)


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a module that keeps tensors which it computed: features for a plot, a norm of its weights.

    torch refuses to copy a tensor that has a gradient function; the copy has its values alone.

    Args:
        memo: as `copy.deepcopy` takes it.
    """
    known = {} if memo is None else memo
    for owner in module.modules():
        for value in list(vars(owner).values()):
            for tensor in _tensors_in(value):
                if not tensor.is_leaf and id(tensor) not in known:
                    known[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, known)
