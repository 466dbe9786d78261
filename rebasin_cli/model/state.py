"""A module's state by key: shapes, ties, and loading tensors from a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from rebasin_cli.errors import ModelError

Shape = tuple[int, ...]


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the module's state dict, in its order; parameters as the objects themselves.

    Raises:
        ModelError: a lazy parameter has no shape yet.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, UninitializedParameter):
            raise ModelError(
                f"the parameter {key} is lazy and has no shape yet",
                hint="run the module once on a sample in the function that builds it",
                slug="lazy-parameter",
            )
        if isinstance(value, Tensor):
            tensors[key] = value
    return tensors


def state_shapes(module: nn.Module) -> dict[str, Shape]:
    """The shape of every tensor in the state dict, by key, in its order."""
    return {key: tuple(tensor.shape) for key, tensor in state_tensors(module).items()}


def parameter_keys(module: nn.Module) -> tuple[str, ...]:
    """The keys of the state dict that are parameters; of tied ones, the first only."""
    shared = ties(module)
    return tuple(
        key for key, value in state_tensors(module).items() if isinstance(value, nn.Parameter) and key not in shared
    )


def ties(module: nn.Module) -> dict[str, str]:
    """For each key whose tensor appeared before: the key under which it first did.

    Two keys are tied if they are one object, or the same view of one storage.
    """
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for key, tensor in state_tensors(module).items():
        place = _place(tensor)
        if place in first:
            tied[key] = first[place]
        else:
            first[place] = key
    return tied


def _place(tensor: Tensor) -> tuple[object, ...]:
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace the module's tensors and return the module; parameters are copied only if they are cast.

    A memory-mapped tensor stays mapped, so memory is used only for what the forward pass reads. Tied keys get one
    tensor, read under the first of them that `tensors` has. Buffers are copied, because a model may write into them and
    a mapping may be read-only; non-persistent buffers are unchanged.

    Args:
        module: with or without weights; changed in place.
        tensors: by state-dict key; further keys are ignored; read once each, in the module's order.
        dtype: cast floating-point tensors to this, else they keep the file's.

    Raises:
        ModelError: a key is missing, or a shape differs.
    """
    own = state_tensors(module)
    shared = ties(module)
    taken: dict[str, Tensor] = {}
    for key, slot in own.items():
        first = shared.get(key, key)
        if first in taken:
            taken[key] = taken[first]
            continue
        source = next((name for name in (key, *_aliases(first, shared)) if name in tensors), None)
        if source is None:
            raise ModelError(f"the tensors for the model lack the key {key}", slug="missing-key")
        taken[key] = _fitting(key, slot, tensors[source], dtype)
    homeless = [key for key, tensor in taken.items() if not _put(module, key, tensor)]
    left = [name for name, _ in module.named_parameters() if name not in taken] or homeless if homeless else []
    _tie(module, shared)
    left = [*left, *(name for name, parameter in module.named_parameters() if parameter.is_meta)]
    if left:
        raise ModelError(
            f"{left[0]} of {type(module).__name__} is under another key in its own state_dict(), and cannot be loaded",
            hint="give a callable that returns the inner module",
            slug="renamed-state",
        )
    return module


def _aliases(first: str, shared: Mapping[str, str]) -> tuple[str, ...]:
    return (first, *(key for key, origin in shared.items() if origin == first))


def _fitting(key: str, slot: Tensor, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if tensor.shape != slot.shape:
        raise ModelError(
            f"{key} has shape {tuple(tensor.shape)} where the model has {tuple(slot.shape)}", slug="shape-mismatch"
        )
    tensor = tensor.detach() if isinstance(slot, nn.Parameter) else tensor.detach().clone()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _tie(module: nn.Module, shared: Mapping[str, str]) -> None:
    """Make tied parameters one object again: loading wraps the tensor of each key separately."""
    for key, origin in shared.items():
        owner, name = _slot(module, key)
        source_owner, source_name = _slot(module, origin)
        tensor = getattr(source_owner, source_name, None)
        if owner is not None and isinstance(tensor, nn.Parameter) and name in owner._parameters:
            setattr(owner, name, tensor)  # not through _parameters: recurrent layers keep another list of them


def _put(module: nn.Module, key: str, tensor: Tensor) -> bool:
    """Put a tensor where the key says, past load hooks, which convert files; False if there is no such place."""
    owner, name = _slot(module, key)
    if owner is not None and owner._parameters.get(name) is not None:
        grad = tensor.is_floating_point() and owner._parameters[name].requires_grad  # type: ignore[union-attr]
        setattr(owner, name, nn.Parameter(tensor, requires_grad=grad))  # recurrent layers keep another list of them
    elif owner is not None and owner._buffers.get(name) is not None:
        setattr(owner, name, tensor)
    else:
        return False
    return True


def _slot(module: nn.Module, key: str) -> tuple[nn.Module | None, str]:
    path, _, name = key.rpartition(".")
    try:
        return module.get_submodule(path), name
    except AttributeError:  # a state dict hook renamed it
        return None, name
