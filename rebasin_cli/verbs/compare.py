"""`compare`: what differs between two checkpoints, seen through the permutation, and whether they share a base.

The verdicts, from the strongest; each is given only where its condition was measured (docs/comparing.md):

    same-file             every tensor is equal, bit for bit
    permuted-copy         every tensor of B, permuted, is equal to A's, bit for bit
    same-function         both compute the same outputs on sample inputs, within rounding
    fine-tuned            the units of the two are the same, in the same order, and their weights have changed
    permuted-fine-tuned   the same for units in another order
    unrelated             matched units are no more alike than those of networks trained apart
    undecided             none of these
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.plan import EFFORTS
from rebasin_cli.options import AnyPath, argument, option, options_class, options_of, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.output_paths import check_outputs
from rebasin_cli.verbs.shared_options import MODEL_HELP, Derivation, ModelInput, NetworkReading, StateOfEach, Writing

if TYPE_CHECKING:
    from rebasin_cli.execution.same_function import FunctionCheck
    from rebasin_cli.matching.common_base import UnitTest

VERDICTS = (
    "same-file",
    "same-function",
    "permuted-copy",
    "fine-tuned",
    "permuted-fine-tuned",
    "unrelated",
    "undecided",
)


@options_class
class CompareOptions(NetworkReading, StateOfEach, Writing):
    """The options of `compare`."""

    a: AnyPath = argument("First checkpoint.", metavar="A", kw_only=False)
    b: AnyPath = argument("Second checkpoint.", metavar="B", kw_only=False)
    model: str | None = option(
        MODEL_HELP,
        group="Model",
        short="-m",
        metavar="SPEC",
        completes="model",
        default=None,
        shown_default="tensors are compared by their names, and nothing is aligned",
    )
    effort: str = option("Search effort.", group="Matching", metavar="LEVEL", choices=EFFORTS, default="auto")
    device: str = option("Device for matching: cpu, cuda, cuda:1, mps.", group="Matching", default="cpu")
    ignore_mismatched_sizes: bool = option(
        "Compare what the two share where tensors such as a head have other shapes.",
        group="Checkpoint",
        default=False,
    )
    also_written: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)
    progress: Progress | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A quantity for B as it is and for B aligned to A; None where there is none."""

    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class ComparedModule:
    """The parameters of one module in A and in B.

    Attributes:
        name: of the module; empty for parameters of the model itself.
        cosine, distance: over its parameters; None where it has none, as a module with buffers alone.
        relative_distance: the distance divided by the norm of A's parameters.
        changed: whether any of its tensors differs from A's after alignment, buffers included.
        tensors: how many it has.
        equal_tensors: how many of them are equal after alignment, bit for bit.
    """

    name: str
    cosine: BeforeAfter
    distance: BeforeAfter
    relative_distance: BeforeAfter
    changed: bool
    tensors: int
    equal_tensors: int


@dataclass(frozen=True, slots=True)
class OtherShape:
    """A tensor that has another shape in B than in A."""

    key: str
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CommonBaseTests:
    """The tests of a common base: on the units in the order of the files, and matched whatever their order.

    Attributes:
        in_order, matched: None where the test was not made.
        level: the p-value up to which a test counts as significant.
        permuted_groups: groups whose units were found in another order.
    """

    in_order: UnitTest | None
    matched: UnitTest | None
    level: float
    permuted_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompareResult(Result):
    """What differs between two checkpoints, and the verdict.

    Attributes:
        p_value: of the hypothesis that the units of the two correlate by no more than the limit of the tests; None
            where no test was needed or possible.
        cosine, distance: over all parameters that both have; `after` is None where nothing was aligned.
        function: how the outputs compare; None where nothing was run.
        only_in_a, only_in_b: tensors that the other file does not have.
        other_shapes: tensors of another shape, which are not compared.
    """

    a: Path
    b: Path
    model: str | None
    verdict: str
    p_value: float | None
    cosine: BeforeAfter
    distance: BeforeAfter
    modules: tuple[ComparedModule, ...]
    tensors: int
    equal_tensors: int
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shapes: tuple[OtherShape, ...]
    moved_units: int | None
    units: int | None
    tests: CommonBaseTests | None
    function: FunctionCheck | None
    aligned_by_this_program: tuple[Path, ...]
    seed: int
    sha256: Mapping[str, str]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The data of the report."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "warnings"}


def run_compare(options: CompareOptions) -> CompareResult:
    """Compare two checkpoints tensor by tensor; with a model, after aligning B to A, and test for a common base.

    `also_written` names files that the caller writes afterwards, by role: they are checked like outputs.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong.
    """
    check_inputs(
        (options.a, options.b),
        model=options.model,
        input_file=options.input_file,
        rules=options.rules,
        others=(options.spec,),
    )
    if options.model is None:
        _refuse_without_model(options)
    outputs = {**options.also_written, **({} if options.save_spec is None else {"spec": options.save_spec})}
    check_outputs(outputs, (options.a, options.b), force=options.force, mkdir=options.mkdir)
    from rebasin_cli.verbs.comparison import compare_files, compare_networks

    listener = options.progress or Silent()
    return compare_files(options, listener) if options.model is None else compare_networks(options, listener)


def _refuse_without_model(options: CompareOptions) -> None:
    """Refuse options that say something about a model where none is given.

    Raises:
        UsageError: naming the option.
    """
    for entry in (*options_of(ModelInput), *options_of(Derivation)):
        if getattr(options, entry.name) != entry.default:
            raise UsageError(f"{entry.flag} has no effect without a model", hint="give --model")


compare = verb(CompareOptions, run_compare)
