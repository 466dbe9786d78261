"""Do two sets of weights make one model compute the same function? Decided on sample inputs, by running it.

Reordered sums differ in their last bits, and a deep network can amplify that. So float32 is asked first, and where it
leaves a doubt float64 decides: there a true permutation agrees to about 1e-12, and a wrong one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state, state_tensors
from rebasin_cli.symmetry.verify import run_in_float64, run_widened
from rebasin_cli.trace.outputs import opened
from rebasin_cli.verbs.sample_inputs import sample_inputs

FLOAT32_CLEAR = 1e-4
FLOAT64_LIMIT = 1e-6
LARGE = 10_000_000
UNMOVED = "no unit moved: every tensor is B's own, bit for bit"
SILENT = "all outputs are zero, so that being equal proves nothing"


@dataclass(frozen=True, slots=True)
class FunctionCheck:
    """What running both weights on the same inputs showed.

    Errors are maxima over all floating outputs of all samples; the relative one divides by the largest magnitude of the
    same output of the reference. `left_out` says why nothing was run, and then the numbers are None. `note` says what
    else has to be known: outputs that are zero throughout (a head that was never trained) prove nothing by being equal.
    """

    same: bool | None
    max_absolute_error: float | None
    max_relative_error: float | None
    argmax_agreement: float | None
    samples: int
    precision: str | None
    left_out: str | None = None
    note: str | None = None

    @staticmethod
    def not_run(reason: str) -> FunctionCheck:
        return FunctionCheck(None, None, None, None, 0, None, reason)

    @staticmethod
    def nothing_moved() -> FunctionCheck:
        """Tensors that are the same bit for bit compute the same: there is nothing to run."""
        return FunctionCheck(True, 0.0, 0.0, None, 0, None, note=UNMOVED)


def compare_functions(
    build_weightless: Callable[[], nn.Module],
    example: ExampleInput,
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    *,
    samples: int | None = None,
    seed: int = 0,
) -> FunctionCheck:
    """Run the model with both sets of weights on the example and on `samples - 1` random inputs like it.

    By default on four inputs, and on two where the model is large.

    Args:
        build_weightless: makes the module without memory for its weights; called once per precision.
        reference, candidate: tensors by model key, used where they lie (mapped files stay mapped); narrower ones
            are widened operation by operation.

    Raises:
        ModelError: the forward pass itself fails.
    """
    if samples is None:
        samples = 2 if sum(tensor.numel() for tensor in reference.values()) > LARGE else 4
    inputs = list(sample_inputs(example, samples, seed))
    run = _Run(build_weightless, inputs, reference, candidate, seed)
    try:
        widest = max(_widest(reference), _widest(candidate))
        plain = _all_float32(reference) and _all_float32(candidate)
        rough = None if widest > 4 else run.compare(_in_float32 if plain else _widened_to_float32)
        if rough is not None and rough.relative <= FLOAT32_CLEAR:
            return rough.verdict(True, samples, "float32")
        fine = run.compare(run_in_float64)
        if fine is None:
            return FunctionCheck(False, None, None, None, samples, "float64")
        return fine.verdict(fine.relative <= FLOAT64_LIMIT, samples, "float64")
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise ModelError(f"the forward pass failed: {type(error).__name__}: {_first_line(error)}") from error
        return FunctionCheck.not_run("the forward pass does not fit in memory")


@dataclass(slots=True)
class _Errors:
    absolute: float = 0.0
    relative: float = 0.0
    largest: float = 0.0
    agreeing: int = 0
    decisions: int = 0

    def add(self, y: Tensor, z: Tensor) -> bool:
        """Count one pair of outputs; False where they are not finite and so cannot be compared."""
        if y.shape != z.shape:
            self.absolute = self.relative = float("inf")
            return True
        if y.numel() == 0:
            return True
        error = float((y - z).abs().max())
        scale = float(y.abs().max())
        if error != error or scale in (float("inf"), float("nan")):
            return False
        self.largest = max(self.largest, scale)
        self.absolute = max(self.absolute, error)
        self.relative = max(self.relative, error / scale if scale > 0.0 else error)
        return True

    def add_decisions(self, y: Tensor, z: Tensor) -> None:
        if y.dim() < 2 or y.shape != z.shape or y.numel() == 0:
            return
        axis = -1 if y.dim() == 3 else 1  # (batch, time, classes), else (batch, classes, …)
        if y.shape[axis] > 1:
            agree = y.argmax(axis) == z.argmax(axis)
            self.agreeing += int(agree.sum())
            self.decisions += agree.numel()

    def verdict(self, same: bool, samples: int, precision: str) -> FunctionCheck:
        agreement = self.agreeing / self.decisions if self.decisions else None
        note = SILENT if same and self.largest == 0.0 else None
        return FunctionCheck(same, self.absolute, self.relative, agreement, samples, precision, note=note)


Forward = Callable[[nn.Module, ExampleInput, int], list[Tensor]]


@dataclass(frozen=True, slots=True)
class _Run:
    """Everything that stays the same between the precisions."""

    build_weightless: Callable[[], nn.Module]
    inputs: list[ExampleInput]
    reference: Mapping[str, Tensor]
    candidate: Mapping[str, Tensor]
    seed: int

    def compare(self, forward: Forward) -> _Errors | None:
        """The errors between both functions; None where outputs are not finite."""
        module = self.build_weightless()
        outputs = self._outputs(module, self.reference, forward)
        others = self._outputs(module, self.candidate, forward)
        errors = _Errors()
        for ys, zs in zip(outputs, others, strict=True):
            if len(ys) != len(zs):
                errors.absolute = errors.relative = float("inf")
            for place, (y, z) in enumerate(zip(ys, zs, strict=False)):
                if not errors.add(y, z):
                    return None
                if place == 0:
                    errors.add_decisions(y, z)
        return errors

    def _outputs(self, module: nn.Module, tensors: Mapping[str, Tensor], forward: Forward) -> list[list[Tensor]]:
        """The floating outputs for every input. The weights are used where they lie: mapped files stay mapped."""
        own = {key: tensor for key, tensor in state_tensors(module).items() if key not in tensors}
        load_state(module, {**{key: tensor for key, tensor in own.items() if not tensor.is_meta}, **tensors})
        module.eval()
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            results = [forward(module, sample, self.seed) for sample in self.inputs]
        return [[leaf.clone() for leaf in leaves if leaf.is_floating_point()] for leaves in results]


def _in_float32(module: nn.Module, example: ExampleInput, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    output = module(*example.args, **example.kwargs)
    return [leaf for leaf in tree_leaves(opened(output)) if isinstance(leaf, Tensor)]


def _widened_to_float32(module: nn.Module, example: ExampleInput, seed: int) -> list[Tensor]:
    """For files of narrower tensors: in their own precision, reordered sums would differ too much to tell."""
    return run_widened(module, example, seed, torch.float32)


def _widest(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the widest floating numbers."""
    return max((tensor.element_size() for tensor in tensors.values() if tensor.is_floating_point()), default=0)


def _all_float32(tensors: Mapping[str, Tensor]) -> bool:
    return all(tensor.dtype == torch.float32 for tensor in tensors.values() if tensor.is_floating_point())


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
