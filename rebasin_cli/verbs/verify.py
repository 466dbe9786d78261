"""`verify`: do two checkpoints make a model compute the same function?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rebasin_cli.errors import NumericalError, UsageError
from rebasin_cli.options import AnyPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_reports import report_of, states_of
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.shared_options import RequiredModel, Seed, StateOfEach

if TYPE_CHECKING:
    from rebasin_cli.execution.pair import Pair
    from rebasin_cli.execution.same_function import FunctionCheck


@dataclass(frozen=True, slots=True)
class VerifyResult(Result):
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


@options_class
class VerifyOptions(RequiredModel, StateOfEach, Seed):
    """The options of `verify`."""

    a: AnyPath = argument("Checkpoint of the model. Relative errors refer to its outputs.", metavar="A", kw_only=False)
    b: AnyPath = argument("Another checkpoint of the model.", metavar="B", kw_only=False)
    samples: int = option(
        "Number of inputs. The first is the example, the others are drawn like it.",
        group="Verification",
        metavar="N",
        at_least=1,
        default=8,
    )
    tolerance: float | None = option(
        "Allowed difference in noise floors of each output.",
        group="Verification",
        metavar="N",
        at_least=0,
        default=None,
        shown_default="100",
    )
    rtol: float | None = option(
        "Allow |a - b| <= atol + R |a| instead.", group="Verification", metavar="R", at_least=0, default=None
    )
    atol: float | None = option(
        "Allow |a - b| <= D + rtol |a| instead.", group="Verification", metavar="D", at_least=0, default=None
    )
    progress: Progress | None = field(default=None, repr=False, compare=False)


def run_verify(options: VerifyOptions) -> VerifyResult:
    """Run the model with both checkpoints on the same inputs, and compare the outputs.

    Raises:
        FunctionsDiffer: the functions are not the same.
        RebasinError: a file, the model or an input cannot be used.
    """
    if options.tolerance is not None and (options.rtol is not None or options.atol is not None):
        raise UsageError("--tolerance cannot be combined with --rtol or --atol")
    check_inputs((options.a, options.b), model=options.model, input_file=options.input_file)

    from rebasin_cli.execution.first_difference import first_different_module
    from rebasin_cli.execution.pair import Source, check_all_finite, open_pair
    from rebasin_cli.execution.same_function import Tolerance, compare_functions
    from rebasin_cli.execution.subject import ModelChoice, example_for
    from rebasin_cli.verbs.cost import PhaseClock

    listener = options.progress or Silent()
    clock = PhaseClock("read", "verify")
    state_of_a, state_of_b, inputs, input_file = _as_aligned(options)
    choice = ModelChoice(options.model, dict(options.model_args or {}), inputs, input_file, options.seed)
    choice = replace(choice, trust_remote_code=options.trust_remote_code)
    listener.phase("reading")
    with clock.phase("read"):
        pair = open_pair(
            Source(options.a, *state_of_a),
            Source(options.b, *state_of_b),
            choice,
            ignore_extra=options.ignore_extra,
        )
        check_all_finite(pair, listener)
    listener.phase("verifying")
    floors, rounding = options.tolerance, None
    if (options.tolerance, options.rtol, options.atol) == (None, None, None):
        floors, rounding = _tolerance_of_rounding(options, pair)
    with clock.phase("verify"):
        check = compare_functions(
            pair.subject.factory.build_weightless,
            example_for(choice, pair.subject),
            pair.a,
            pair.b,
            samples=options.samples,
            seed=options.seed,
            tolerance=Tolerance(floors, options.rtol, options.atol),
        )
        first = None
        if check.same is False:
            first = first_different_module(
                pair.subject.factory.build_weightless(),
                pair.a,
                pair.b,
                example_for(choice, pair.subject),
                seed=options.seed,
            )
    warnings = tuple(text for text in (pair.subject.note, check.left_out, check.note, rounding) if text)
    result = VerifyResult(
        a=options.a,
        b=options.b,
        model=options.model,
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
    from rebasin_cli.execution.closeness import same_bits

    return sum(1 for key in pair.a if key in pair.b and same_bits(pair.a[key], pair.b[key]))


def _tolerance_of_rounding(options: VerifyOptions, pair: Pair) -> tuple[float | None, str | None]:
    """The tolerance in noise floors for a file whose numbers `align` has rounded, and a note that says so.

    The noise floor is that of float64; the file's own is larger by the ratio of the roundings.
    """
    import torch

    from rebasin_cli.execution.noise import TOLERANCE

    if not any(report is not None and report.rounded for report in (report_of(options.b), report_of(options.a))):
        return None, None
    kinds = {tensor.dtype for tensor in pair.b.values() if tensor.is_floating_point()}
    widest = max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float64)
    name = str(widest).removeprefix("torch.")
    return (
        TOLERANCE * torch.finfo(widest).eps / torch.finfo(torch.float64).eps,
        f"compared within the rounding of {name}: the file was aligned by maps that round its numbers",
    )


State = tuple[str | None, bool]


def _as_aligned(options: VerifyOptions) -> tuple[State, State, tuple[str, ...], Path | None]:
    """The states of A and B, and the input: what the user says, else as they were aligned, where a report says how."""
    report = report_of(options.b) or report_of(options.a)
    inputs, input_file = options.inputs, options.input_file
    if not inputs and input_file is None and report is not None:
        inputs, input_file = report.inputs, report.input_file
    if options.key_a or options.key_b or options.ema_a or options.ema_b:
        return options.state_of_a, options.state_of_b, inputs, input_file
    states = states_of((options.a, options.b), options.key, options.ema)
    return states[options.a], states[options.b], inputs, input_file


verify = verb(VerifyOptions, run_verify)
