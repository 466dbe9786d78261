"""One way to run a module on numbers: in float64 (or any given precision), with weights read where they lie.

Weights come from a mapping of state-dict keys to tensors. A parameter is read from it, and widened, each time the
module's code asks for it, and is freed when the code lets it go. So a whole model computes in float64 in the memory of
its activations and of the parameters that one operation holds, whatever precision the files have and however large
they are. Because parameters are already wide where the code reads them, views of them (`weight.t()`) are ordinary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import state_tensors, ties
from rebasin_cli.trace.operations import Operations
from rebasin_cli.trace.outputs import opened
from rebasin_cli.trace.weightless import unchanged_attributes

State = Mapping[str, Tensor]
"""Tensors by state-dict key, of any precision; may be made when they are asked for."""

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}

SUMS = frozenset(
    (
        "aten.mm",
        "aten.addmm",
        "aten.bmm",
        "aten.baddbmm",
        "aten.addmv",
        "aten.mv",
        "aten.dot",
        "aten.convolution",
        "aten._scaled_dot_product_attention_math",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten.sum",
        "aten.mean",
        "aten.var",
        "aten.native_layer_norm",
        "aten.native_batch_norm",
        "aten.native_group_norm",
        "aten._native_batch_norm_legit_no_training",
        "aten._fused_rms_norm",
        "aten._softmax",
        "aten._log_softmax",
        "aten.logsumexp",
        "aten._cdist_forward",
        "aten.linalg_vector_norm",
        "aten.avg_pool2d",
        "aten._adaptive_avg_pool2d",
        "aten._trilinear",
        "aten.lstm",
        "aten.gru",
    )
)
"""Operations that sum over positions: a permutation of what they sum changes their last bits."""


class Rounding:
    """One rounding more: numbers are multiplied by 1 + eps or 1 - eps, at random but from a seed.

    `eps` is that of the precision in which the module computes, so that what moves is what a different order of
    summation may move.
    """

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        eps = torch.finfo(dtype).eps
        self._signs = 1 + eps * (torch.randint(0, 2, (1 << 16,), generator=generator).to(dtype) * 2 - 1)
        self._dtype = dtype

    def __call__(self, tensor: Tensor, *, own: bool = False) -> Tensor:
        """The tensor with every number moved by one rounding; integers and tensors of other precisions as they are.

        Args:
            own: nobody else holds the tensor's memory, so that it may be written to.
        """
        if tensor.dtype is not self._dtype or tensor.numel() == 0:
            return tensor
        flat, period = tensor.reshape(-1), self._signs.numel()
        whole = flat.numel() // period * period
        moved = flat if own else torch.empty_like(flat)
        torch.mul(flat[:whole].view(-1, period), self._signs, out=moved[:whole].view(-1, period))
        torch.mul(flat[whole:], self._signs[: flat.numel() - whole], out=moved[whole:])
        return moved.view(tensor.shape)


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
    wide = _Wide(dtype, rounding)
    args, kwargs = tree_map_only(Tensor, wide.widened, (example.args, example.kwargs))
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with unchanged_attributes(module), torch.random.fork_rng(devices=[]):
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
            made = tensor if self.dtype is None else _cast(tensor, self.dtype)
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
    """Parameters that a module also holds in a list of its own (recurrent layers do) are read once, at the start."""
    own = {id(slot) for slot in owner._parameters.values() if slot is not None}
    for name, value in list(owner.__dict__.items()):
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        if type(value) in (list, tuple) and any(id(item) in own for item in value):
            made = (reader.parameter(item) if id(item) in own else item for item in value)
            owner.__dict__[name] = type(value)(made)
        elif type(value) is dict and any(id(item) in own for item in value.values()):
            owner.__dict__[name] = {k: reader.parameter(v) if id(v) in own else v for k, v in value.items()}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(COMPLEX.get(dtype, tensor.dtype))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class _Wide(Operations):  # type: ignore[no-untyped-call]
    """Rewrites every request for a narrower floating type, and widens every narrower tensor that comes in."""

    takes_apart = False  # a convolution wants arguments of one type before it shows what it is made of

    def __init__(self, dtype: torch.dtype, rounding: Rounding | None = None) -> None:
        super().__init__()
        self.dtype, self.rounding = dtype, rounding

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        args, kwargs = tree_map(self._wide, (args, kwargs))
        result = self._computed(func, args, kwargs)
        if self.rounding is not None and func._schema.name.replace("::", ".") in SUMS:
            return tree_map_only(Tensor, self.rounding, result)
        return result

    def _computed(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dim() == 2 and args[1].dim() == 3:
            return _grouped_product(args[0], args[1], args[2] if len(args) > 2 else kwargs["offs"])
        return func(*args, **kwargs)

    def widened(self, tensor: Tensor) -> Tensor:
        if self._is_narrow(tensor.dtype):
            return tensor.to(self.dtype)
        return tensor.to(COMPLEX[self.dtype]) if self._is_narrow_complex(tensor.dtype) else tensor

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.widened(value)
        if not isinstance(value, torch.dtype):
            return value
        if self._is_narrow_complex(value):
            return COMPLEX[self.dtype]
        return self.dtype if self._is_narrow(value) else value

    def _is_narrow(self, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and dtype.itemsize < self.dtype.itemsize

    def _is_narrow_complex(self, dtype: torch.dtype) -> bool:
        return dtype.is_complex and dtype.itemsize < COMPLEX[self.dtype].itemsize


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Each matrix times its run of rows, which ends where `ends` says; PyTorch's own has no float64."""
    product = rows.new_zeros(rows.shape[0], matrices.shape[2])
    start = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        product[start:end] = rows[start:end] @ matrix
        start = end
    return product


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
