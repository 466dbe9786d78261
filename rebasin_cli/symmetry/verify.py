"""Proof by execution: the derived groups are permuted at random, and the model's output must not move.

Everything runs in float64 on random weights, with random norm parameters and running statistics, so that a wrong
claim shows
as an error of order one and a right one as rounding. Where the model itself amplifies rounding, the error is compared
with
its *noise floor*: how far the output moves when every weight is perturbed by one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from rebasin_cli import permutation
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state, state_tensors, ties
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.trace.operations import Operations
from rebasin_cli.trace.outputs import opened
from rebasin_cli.trace.weightless import unchanged_attributes

TOLERANCE = 1e-9
"""Largest relative error of an output that counts as rounding."""

FLOOR_FACTOR = 300.0
"""How many times its noise floor a model's error may be where that exceeds the tolerance."""


@dataclass(frozen=True, slots=True)
class SoundnessCheck:
    """What execution said.

    Args:
        max_relative_error: largest difference of any output, relative to that output's largest magnitude.
        noise_floor: the same when weights are perturbed by one rounding; None where it was not needed.
        seed: of the weights and the permutations.
        silent: the outputs hold no number but zero (a detector that finds nothing), so that nothing was shown.
    """

    max_relative_error: float
    noise_floor: float | None
    seed: int
    silent: bool = False

    @property
    def ok(self) -> bool:
        floor = 0.0 if self.noise_floor is None else FLOOR_FACTOR * self.noise_floor
        return self.max_relative_error < max(TOLERANCE, floor)


def verify_by_execution(
    build: Callable[[], nn.Module], example: ExampleInput, spec: PermutationSpec, seed: int = 0
) -> SoundnessCheck:
    """Permute every group at once and compare the outputs.

    Args:
        build: makes the model; its parameters may have no memory, they are filled here.
        example: one input.
        spec: the claim.
        seed: of weights and permutations.
    """
    module = build().eval()
    state = random_state(module, seed)
    permutations = permutation.random(spec, seed + 1)
    before = run_in_float64(load_state(module, state), example, seed)
    moved = permutation.apply(spec, permutations, state)
    after = run_in_float64(load_state(module, moved), example, seed)
    error = relative_error(before, after)
    floor = None
    if not error < TOLERANCE:
        floor = relative_error(before, run_in_float64(load_state(module, _perturbed(state, seed)), example, seed))
    return SoundnessCheck(error, floor, seed, silent=not any(bool((leaf != 0).any()) for leaf in before))


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random float64 tensors for everything trained; index tables and counters as they are.

    Matrices keep the scale of what passes through them (standard deviation sqrt(2 / fan-in)); vectors lie between 0.5
    and
    1.5 where they scale or are variances, and near 0 where they shift.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = ties(module)
    state: dict[str, Tensor] = {}
    for key, tensor in state_tensors(module).items():
        if key in shared:
            state[key] = state[shared[key]]
        elif not tensor.is_floating_point():
            state[key] = tensor.detach()
        else:
            state[key] = random_tensor(key, tuple(tensor.shape), generator)
    return state


def random_tensor(
    key: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Numbers for one tensor of the state, of the scale that its name and its shape ask for (`random_state`)."""
    name = key.rpartition(".")[2]
    if len(shape) > 1:
        fan_in = prod(shape[1:])
        return torch.randn(shape, generator=generator, dtype=dtype) * sqrt(2.0 / max(fan_in, 1))
    if "var" in name or ("bias" not in name and "mean" not in name):
        return torch.rand(shape, generator=generator, dtype=dtype) + 0.5
    return torch.randn(shape, generator=generator, dtype=dtype) * 0.1


def _perturbed(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: perturbed(tensor, generator) if tensor.is_floating_point() else tensor for key, tensor in state.items()
    }


def perturbed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Every number of a float64 tensor moved up or down by one unit in its last place."""
    sign = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return tensor * (1 + torch.finfo(torch.float64).eps * sign)


def run_in_float64(module: nn.Module, example: ExampleInput, seed: int) -> list[Tensor]:
    """All tensors of the output, computed in float64 throughout, whatever precisions the model asks for."""
    return run_widened(module, example, seed, torch.float64)


def run_widened(module: nn.Module, example: ExampleInput, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """All tensors of the output, with everything narrower than `dtype` computed in it, operation by operation.

    Weights are widened where an operation reads them and stay narrow where they lie. What the pass leaves behind in the
    module (a cache of biases, made from these weights) does not outlive it.
    """
    wide = _Wide(dtype)
    args, kwargs = tree_map_only(Tensor, wide.widened, (example.args, example.kwargs))
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(seed)
    try:
        with unchanged_attributes(module), torch.no_grad(), wide:
            for owner in module.modules():
                for name, buffer in owner._buffers.items():
                    if buffer is not None:
                        owner._buffers[name] = wide.widened(buffer)
            output = module(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)
    return [leaf for leaf in tree_leaves(opened(output)) if isinstance(leaf, Tensor)]


def relative_error(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Largest difference of any tensor, relative to that tensor's largest magnitude; infinite where one is not
    finite.
    """
    worst = 0.0
    for left, right in zip(before, after, strict=True):
        if left.shape != right.shape:
            return float("inf")
        if not left.is_floating_point():
            worst = max(worst, float("inf") if not torch.equal(left, right) else 0.0)
        elif left.numel():
            scale = float(left.abs().max()) or 1.0
            difference = float((left - right).abs().max()) / scale
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


class _Wide(Operations):  # type: ignore[no-untyped-call]
    """Rewrites every request for a narrower floating type, and widens every narrower tensor that comes in."""

    takes_apart = False  # a convolution wants arguments of one type before it shows what it is made of

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        args, kwargs = tree_map(self._wide, (args, kwargs))
        if func is torch.ops.aten._grouped_mm.default and args[0].dim() == 2 and args[1].dim() == 3:
            return _grouped_product(args[0], args[1], args[2] if len(args) > 2 else kwargs["offs"])
        return func(*args, **kwargs)

    def widened(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self._is_narrow(tensor.dtype) else tensor

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.widened(value)
        return self.dtype if isinstance(value, torch.dtype) and self._is_narrow(value) else value

    def _is_narrow(self, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and dtype.itemsize < self.dtype.itemsize


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Each matrix times its run of rows, which ends where `ends` says; PyTorch's own has no float64."""
    product = rows.new_zeros(rows.shape[0], matrices.shape[2])
    start = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        product[start:end] = rows[start:end] @ matrix
        start = end
    return product
