"""One way to run a module on numbers: in float64 (or any given precision), with weights read where they lie.

Weights come from a mapping of state-dict keys to tensors. A parameter is read from it, and widened, each time the
module's code asks for it, and is freed when the code lets it go; one of more than `widening.LARGE` numbers is widened
piece by piece, where an operation uses it. So a whole model computes in float64 in the memory of its activations and of
little more, whatever precision the files have and however large they are. Because parameters are already wide where the
code reads them, views of them (`weight.t()`) are ordinary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from rebasin_cli.errors import ModelError
from rebasin_cli.execution.widening import Rounding, Wide, cast, is_large
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import state_tensors, ties
from rebasin_cli.tracing.dispatch import uncompiled
from rebasin_cli.tracing.fake_tensors import unchanged_attributes
from rebasin_cli.tracing.tracer import opened

State = Mapping[str, Tensor]
"""Tensors by state-dict key, of any precision; may be made when they are asked for."""


@torch.no_grad()
def run(
    module: nn.Module,
    state: State,
    example: ExampleInput,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    rounding: Rounding | None = None,
) -> list[Tensor]:
    """All tensors of the output, computed in `dtype` with the weights of `state`.

    Args:
        module: any module, its parameters may be on the meta device; unchanged afterwards.
        state: tensors by key; keys that it lacks keep the module's own tensors.
        example: the arguments of the call.
        seed: of whatever the module draws at random.
        rounding: perturb all weights and the results of all sums by one rounding (the noise floor is measured so).

    Raises:
        ModelError: a parameter has no numbers, neither in `state` nor in the module.
    """
    with carrying(module, state, dtype, rounding):
        return call(module, example, seed=seed, dtype=dtype, rounding=rounding)


def call(
    module: nn.Module,
    example: ExampleInput,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    rounding: Rounding | None = None,
) -> list[Tensor]:
    """All tensors of the output of a module that has its weights: everything narrower than `dtype` becomes `dtype`."""
    wide = Wide(dtype, rounding)
    args, kwargs = tree_map_only(Tensor, wide.widened, (example.args, example.kwargs))
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with unchanged_attributes(module), uncompiled(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for owner in module.modules():
                for name, buffer in owner._buffers.items():
                    if buffer is not None:
                        owner._buffers[name] = wide.widened(buffer)
            with wide:
                output = module(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)
    return [leaf for leaf in tree_leaves(opened(output)) if isinstance(leaf, Tensor)]


@contextmanager
def carrying(
    module: nn.Module, state: State, dtype: torch.dtype | None = torch.float64, rounding: Rounding | None = None
) -> Iterator[None]:
    """Within this context the module's parameters and buffers are those of `state`, in `dtype` (None: as they are).

    Buffers are copied, because a model may write into them as it runs. Tied slots read one key of `state`.
    """
    reader = _Reader(module, state, dtype, rounding)
    with unchanged_attributes(module):
        originals = [(owner, owner.__dict__["_parameters"]) for owner in module.modules()]
        try:
            for owner in module.modules():
                for name, buffer in owner._buffers.items():
                    if buffer is not None and id(buffer) in reader.keys:
                        owner._buffers[name] = reader.number(buffer).clone()
                _replace_lists(owner, reader)
                owner.__dict__["_parameters"] = _Parameters(owner._parameters, reader)
            yield
        finally:
            for owner, parameters in originals:
                owner.__dict__["_parameters"] = parameters


class _Reader:
    """What stands for each tensor of the module: its key's tensor in the state, widened and rounded where asked."""

    def __init__(self, module: nn.Module, state: State, dtype: torch.dtype | None, rounding: Rounding | None) -> None:
        shared = ties(module)
        aliases: dict[str, list[str]] = {}
        for key, first in shared.items():
            aliases.setdefault(first, []).append(key)
        self.keys: dict[int, str] = {}
        for key, tensor in state_tensors(module).items():
            first = shared.get(key, key)
            named = next((name for name in (first, *aliases.get(first, ())) if name in state), None)
            if named is not None:
                self.keys[id(tensor)] = named
        self.state, self.dtype, self.rounding = state, dtype, rounding
        self.piecewise = not torch.is_grad_enabled()  # a gradient would want the whole of it afterwards
        self.whole: set[int] = set()  # slots that are not widened in pieces

    def number(self, slot: Tensor) -> Tensor:
        key = self.keys.get(id(slot))
        with _disable_current_modes():
            tensor = slot if key is None else self.state[key]
            if tensor.is_meta:
                raise ModelError(f"a parameter of shape {tuple(slot.shape)} has no numbers in the checkpoint")
            if key is not None and tensor.shape != slot.shape:
                raise ModelError(
                    f"{key} has shape {tuple(tensor.shape)} where the model has {tuple(slot.shape)}",
                    slug="shape-mismatch",
                )
            piecewise = self.piecewise and id(slot) not in self.whole
            if self.dtype is None or (piecewise and is_large(tensor, self.dtype)):
                return tensor
            made = cast(tensor, self.dtype)
            own = made is not tensor
            del tensor  # of a state that makes its tensors, this was the only copy
            return made if self.rounding is None else self.rounding(made, own=own)

    def parameter(self, slot: Tensor) -> nn.Parameter:
        number = self.number(slot)
        if isinstance(number, nn.Parameter):
            return number
        return nn.Parameter(number, requires_grad=False)


class _Parameters(dict[str, Any]):
    """A module's dictionary of parameters whose values are made when they are read."""

    def __init__(self, slots: Mapping[str, Any], reader: _Reader) -> None:
        super().__init__(slots)
        self._reader = reader

    def __getitem__(self, name: str) -> Any:
        slot = super().__getitem__(name)
        return slot if slot is None else self._reader.parameter(slot)

    def get(self, name: str, default: Any = None) -> Any:
        return self.__getitem__(name) if name in self else default

    def values(self) -> Any:
        return (self[name] for name in self)

    def items(self) -> Any:
        return ((name, self[name]) for name in self)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


def _replace_lists(owner: nn.Module, reader: _Reader) -> None:
    """Parameters that a module also holds in a list of its own (recurrent layers do) are read once, at the start.

    They are widened as a whole, because recurrent layers compare their dtype with the input's.
    """
    own = {id(slot) for slot in owner._parameters.values() if slot is not None}
    if isinstance(owner, nn.RNNBase):
        reader.whole |= own
    for name, value in list(owner.__dict__.items()):
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        if type(value) in (list, tuple) and any(id(item) in own for item in value):
            made = (reader.parameter(item) if id(item) in own else item for item in value)
            owner.__dict__[name] = type(value)(made)
        elif type(value) is dict and any(id(item) in own for item in value.values()):
            owner.__dict__[name] = {k: reader.parameter(v) if id(v) in own else v for k, v in value.items()}


class Changed(Mapping[str, Tensor]):
    """Another state with each tensor changed as it is read; keys and order are the other's."""

    def __init__(self, state: State, change: Callable[[str, Tensor], Tensor]) -> None:
        self._state, self._change = state, change

    def __getitem__(self, key: str) -> Tensor:
        return self._change(key, self._state[key])

    def __contains__(self, key: object) -> bool:
        return key in self._state

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
