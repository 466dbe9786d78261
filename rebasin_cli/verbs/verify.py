"""`verify`: do two checkpoints make a model compute the same function?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.errors import NumericalError, UsageError
from rebasin_cli.execution.closeness import same_bits
from rebasin_cli.execution.first_difference import first_different_module
from rebasin_cli.execution.pair import Pair, Source, check_all_finite, open_pair
from rebasin_cli.execution.same_function import FunctionCheck, Tolerance, compare_functions
from rebasin_cli.execution.subject import ModelChoice, example_for
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.cost import PhaseClock
from rebasin_cli.verbs.output_paths import optional_path


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What comparing two checkpoints showed.

    Args:
        same: whether they compute the same; None where nothing was run.
        max_in_noise_floors, max_absolute_error, max_relative_error: the largest difference of any output.
        argmax_agreement: share of the first output's decisions that agree; None where it makes none.
        first_module: path of the first module whose outputs differ by more than noise, units reordered or not; None
            where the functions are the same.
        verified: the same numbers with the noise floor, the inputs and notes.
        identical_tensors: how many agree bit for bit.
    """

    a: Path
    b: Path
    model: str
    same: bool | None
    max_in_noise_floors: float | None
    max_absolute_error: float | None
    max_relative_error: float | None
    argmax_agreement: float | None
    first_module: str | None
    verified: FunctionCheck
    tensors: int
    identical_tensors: int
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]


class FunctionsDiffer(NumericalError):
    """Two checkpoints compute different functions; `result` has the numbers."""

    default_slug = "functions-differ"

    def __init__(self, result: VerifyResult) -> None:
        check = result.verified
        agreement = "" if check.argmax_agreement is None else f", argmax agreement {100 * check.argmax_agreement:.4g} %"
        seen = (
            "the outputs are not finite"
            if check.max_relative_error is None
            else (
                f"largest difference {check.max_absolute_error:.3g}, relative {check.max_relative_error:.3g}, "
                f"{check.max_in_noise_floors:.3g} noise floors{agreement}"
            )
        )
        where = "" if result.first_module is None else f"; the first module that differs is {result.first_module}"
        super().__init__(
            f"{result.a} and {result.b} do not compute the same: {seen}{where}",
            path=result.b,
            hint="allow a difference with --tolerance (in noise floors), --rtol or --atol",
        )
        self.result = result


def verify(
    a: str | Path,
    b: str | Path,
    *,
    model: str,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    input_file: str | Path | None = None,
    samples: int = 8,
    tolerance: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    key_a: str | None = None,
    key_b: str | None = None,
    ema_a: bool = False,
    ema_b: bool = False,
    ignore_extra: bool = False,
    progress: Progress | None = None,
) -> VerifyResult:
    """Run the model with both checkpoints on the same inputs.

    Args:
        a, b: checkpoints of the model; the errors are relative to A's outputs.
        tolerance: allowed difference in noise floors of each output, by default 100 (see `execution/noise.py`).
        rtol, atol: allow `|a - b| <= atol + rtol |a|` instead.
        samples: how many inputs; the first is the example, the others are drawn like it from `seed`.
        model, model_args, inputs, input_file, key_a, key_b, ema_a, ema_b, ignore_extra: as for `align`.

    Raises:
        FunctionsDiffer: the functions are not the same.
        RebasinError: a file, the model or an input cannot be used.
    """
    if tolerance is not None and (rtol is not None or atol is not None):
        raise UsageError("--tolerance cannot be combined with --rtol or --atol")
    listener = progress or Silent()
    clock = PhaseClock("read", "verify")
    choice = ModelChoice(model, dict(model_args or {}), tuple(inputs), optional_path(input_file), seed)
    listener.phase("reading")
    with clock.phase("read"):
        pair = open_pair(
            Source(Path(a), key_a, ema_a), Source(Path(b), key_b, ema_b), choice, ignore_extra=ignore_extra
        )
        check_all_finite(pair, listener)
    listener.phase("verifying")
    with clock.phase("verify"):
        check = compare_functions(
            pair.subject.factory.build_weightless,
            example_for(choice, pair.subject),
            pair.a,
            pair.b,
            samples=samples,
            seed=seed,
            tolerance=Tolerance(tolerance, rtol, atol),
        )
        first = None
        if check.same is False:
            first = first_different_module(
                pair.subject.factory.build_weightless(), pair.a, pair.b, example_for(choice, pair.subject), seed=seed
            )
    warnings = tuple(text for text in (pair.subject.note, check.left_out, check.note) if text)
    result = VerifyResult(
        a=Path(a),
        b=Path(b),
        model=model,
        same=check.same,
        max_in_noise_floors=check.max_in_noise_floors,
        max_absolute_error=check.max_absolute_error,
        max_relative_error=check.max_relative_error,
        argmax_agreement=check.argmax_agreement,
        first_module=first,
        verified=check,
        tensors=len(pair.a),
        identical_tensors=_identical(pair),
        seconds=clock.seconds(),
        warnings=warnings,
    )
    if check.same is False:
        raise FunctionsDiffer(result)
    return result


def _identical(pair: Pair) -> int:
    return sum(1 for key in pair.a if key in pair.b and same_bits(pair.a[key], pair.b[key]))
