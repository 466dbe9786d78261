"""Do two sets of weights make one model compute the same function? Decided on sample inputs, by running it.

Both run in float64, whatever precision the files have, and their difference is measured in the noise floors of the
outputs (`noise`): a permutation reorders sums and lies within a few floors; a wrong one, however little it changes,
lies many orders of magnitude above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.execution.forward import run
from rebasin_cli.execution.noise import TOLERANCE, Comparison, Difference
from rebasin_cli.execution.sample_inputs import Samples, sample_inputs
from rebasin_cli.execution.widening import Rounding
from rebasin_cli.model.example_input import ExampleInput

LARGE = 10_000_000
UNMOVED = "no unit moved: every tensor is as it was, bit for bit"
SILENT = "all outputs are zero, so their equality shows nothing"


@dataclass(frozen=True, slots=True)
class SpecCheck:
    """The verification of the spec on randomised weights, as the report has it.

    Args:
        draws: random permutations of every group that were tried.
        max_relative_error, max_in_noise_floors, noise_floor: the largest difference that they made.
        sizes: the inputs on which they were tried.
        weights: `random`, or `varied` (the checkpoint's own, each number times one from 0.5 to 1.5).
    """

    draws: int
    max_relative_error: float
    max_in_noise_floors: float
    noise_floor: float
    sizes: tuple[str, ...]
    weights: str


@dataclass(frozen=True, slots=True)
class FunctionCheck:
    """What running both weights on the same inputs showed.

    Args:
        same: whether all differences are within the tolerance; None where nothing was run.
        max_absolute_error: the largest difference of any floating output.
        max_relative_error: the same, divided by the largest magnitude of that output of the reference.
        noise_floor: the relative noise floor of the noisiest output.
        max_in_noise_floors: the largest difference in noise floors of its output.
        argmax_agreement: share of the first output's decisions that agree; None where it makes none.
        samples: how many inputs.
        inputs: what they were.
        precision: in which both were computed.
        left_out: why nothing was run, and then the numbers are None.
        note: what else has to be known, in words.
        spec: the verification of the spec; None where there is none (two checkpoints are compared).
        without_power: groups of which some tensor could have been left behind without a visible effect.
        power_unknown: why it is not known which groups those are.
    """

    same: bool | None
    max_absolute_error: float | None
    max_relative_error: float | None
    argmax_agreement: float | None
    samples: int
    precision: str | None
    left_out: str | None = None
    note: str | None = None
    noise_floor: float | None = None
    max_in_noise_floors: float | None = None
    inputs: str | None = None
    spec: SpecCheck | None = None
    without_power: tuple[str, ...] = ()
    power_unknown: str | None = None

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
    tolerance: Tolerance | None = None,
    data: Sequence[ExampleInput] = (),
) -> FunctionCheck:
    """Run the model with both sets of weights on the example and on inputs like it, or on data.

    By default on four inputs, and on two where the model is large.

    Args:
        build_weightless: makes the module without memory for its weights.
        reference, candidate: tensors by model key, used where they lie (mapped files stay mapped).
        samples: how many inputs at most.
        seed: of the inputs and of whatever the model draws.
        tolerance: what counts as equal; by default 100 noise floors.
        data: inputs to use after the example instead of drawn ones.

    Raises:
        ModelError: the forward pass itself fails on the example.
    """
    if samples is None:
        samples = 2 if sum(tensor.numel() for tensor in reference.values()) > LARGE else 4
    limits = tolerance or Tolerance()
    module = build_weightless().eval()
    outputs: dict[int, tuple[ExampleInput, list[Tensor]]] = {}  # the input too: its identity must not be used again

    def reference_outputs(sample: ExampleInput) -> list[Tensor]:
        if id(sample) not in outputs:
            outputs[id(sample)] = sample, run(module, reference, sample, seed=seed)
        return outputs[id(sample)][1]

    def accepts(sample: ExampleInput) -> bool:
        return not any(bool(y.isnan().any()) for y in reference_outputs(sample) if y.is_floating_point())

    try:
        if data:
            chosen = Samples((example, *data[: samples - 1]), "data")
        else:
            chosen = sample_inputs(example, samples, seed, accepts)
        comparison = Comparison()
        for sample in chosen.inputs:
            y = reference_outputs(sample)
            noisy = run(module, reference, sample, seed=seed, rounding=Rounding(seed + 2))
            z = run(module, candidate, sample, seed=seed)
            comparison.add(y, noisy, z)
            limits.see(y, z)
            outputs.pop(id(sample), None)
    except ModelError:
        raise
    except Exception as error:
        if not _is_memory(error):
            raise ModelError(f"the forward pass failed: {type(error).__name__}: {_first_line(error)}") from error
        return FunctionCheck.not_run("the forward pass does not fit in memory")
    return _verdict(comparison.result(), chosen, limits)


class Tolerance:
    """What counts as equal: a number of noise floors, or `|y - z| <= atol + rtol |y|` as PyTorch has it.

    Where `rtol` or `atol` is given, it alone decides.
    """

    def __init__(self, floors: float | None = None, rtol: float | None = None, atol: float | None = None) -> None:
        self.floors = TOLERANCE if floors is None else floors
        self.elementwise = rtol is not None or atol is not None
        self.rtol, self.atol = rtol or 0.0, atol or 0.0
        self._close = True

    def see(self, reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> None:
        """The outputs for one input."""
        if self.elementwise:
            self._close = self._close and len(reference) == len(candidate)
            for y, z in zip(reference, candidate, strict=False):
                close = y.shape == z.shape and torch.allclose(z, y, rtol=self.rtol, atol=self.atol, equal_nan=True)
                self._close = self._close and bool(close)

    def allows(self, difference: Difference) -> bool:
        return difference.finite and (self._close if self.elementwise else difference.within(self.floors))


def _verdict(difference: Difference, chosen: Samples, limits: Tolerance) -> FunctionCheck:
    if not difference.finite:
        return FunctionCheck(False, None, None, None, len(chosen.inputs), "float64", inputs=chosen.describe())
    same = limits.allows(difference)
    notes = [SILENT] if same and difference.silent else []
    if chosen.kind == "example" and chosen.refused is not None:
        notes.append(f"only the example was run: the model refuses other inputs ({chosen.refused})")
    return FunctionCheck(
        same,
        difference.absolute,
        difference.relative,
        difference.argmax_agreement,
        len(chosen.inputs),
        "float64",
        note="; ".join(notes) or None,
        noise_floor=difference.noise_floor,
        max_in_noise_floors=difference.floors,
        inputs=chosen.describe(),
    )


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").split("\n", 1)[0]
