"""Parameters that claim a device and a shape but own no memory, for the duration of one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def fake_mode() -> FakeTensorMode:
    """A mode whose fake tensors may meet real ones: inputs and constants stay real, their numbers are needed."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor of the same shape, strides and dtype on the CPU that owns no memory."""
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake = FakeTensor(mode, meta, torch.device("cpu"))
    fake._is_param = isinstance(tensor, nn.Parameter)  # as `nn.Parameter(fake)`, which would run an operation
    return fake


@contextmanager
def fake_state(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Every parameter, and every floating buffer of the state dict, replaced by a fake; shared ones stay shared.

    Other buffers keep their numbers: index tables and constants are read. Everything that the pass leaves behind in the
    modules' attributes (caches of masks or tables) is undone at the end.
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
    """Whatever the pass leaves behind in the modules' attributes is undone at the end."""
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
