"""`merge`: align two or more checkpoints, verify them, and make one of them.

Everything that needs torch is imported where it is used, because `rebasin --help` reads the options.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.errors import UsageError
from rebasin_cli.execution.lams import Lams, parse_lams
from rebasin_cli.matching.methods import names as matching_names
from rebasin_cli.matching.plan import EFFORTS
from rebasin_cli.merging.method import MergeMethod
from rebasin_cli.merging.methods import MergingOptions, check_options_apply, find_method, names
from rebasin_cli.options import (
    AnyPath,
    AnyPaths,
    AnyTexts,
    OptionalPath,
    argument,
    option,
    options_class,
    options_of,
    verb,
)
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_data_options, check_inputs
from rebasin_cli.verbs.generated_inputs import GeneratedSaving, check_generated, saved_output
from rebasin_cli.verbs.output_paths import check_outputs, optional_path, report_path
from rebasin_cli.verbs.shared_options import (
    DATA_HELP,
    MODEL_HELP,
    DataReading,
    Derivation,
    ModelInput,
    Seed,
    StateInFile,
    Writing,
)

if TYPE_CHECKING:
    from rebasin_cli.data.generated_kinds import GeneratedFacts
    from rebasin_cli.execution.same_function import FunctionCheck

ALIGNS = ("reference", "merge-many", "cycle-consistent", "none")
AUTO = "auto"
DTYPES = ("float64", "float32", "float16", "bfloat16")
OF_THE_FILES = ("checkpoints", "out", "recipe", "force", "mkdir", "dry_run", "save_spec", "save_generated")
"""Options that say where a run reads and writes, not what it makes."""
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


@options_class
class MergeOptions(MergingOptions, ModelInput, Derivation, DataReading, StateInFile, Writing, GeneratedSaving, Seed):
    """The options of `merge`."""

    checkpoints: AnyPaths = argument(
        "Two or more checkpoints of one model. They are not modified.",
        metavar="[CHECKPOINT ...]",
        default=(),
        kw_only=False,
    )
    out: AnyPath = option(
        "Output, in the format and layout of the first checkpoint. A recipe <OUT's stem>.json is written beside it.",
        group="Output",
        short="-o",
        metavar="FILE",
    )
    model: str | None = option(
        MODEL_HELP,
        group="Model",
        short="-m",
        metavar="SPEC",
        completes="model",
        default=None,
        shown_default="required without --recipe",
    )
    recipe: OptionalPath = option(
        "Repeat the merge of this recipe: the same inputs and options give the same bytes.",
        group="Merging",
        metavar="FILE.json",
        default=None,
    )
    method: str = option(
        "How weights are merged. See 'rebasin help merging'.",
        group="Merging",
        metavar="NAME",
        choices=names,
        default="linear",
    )
    base: OptionalPath = option(
        "Network that the checkpoints are fine-tunings of, for methods on task vectors. All are aligned to it.",
        group="Merging",
        metavar="FILE",
        default=None,
    )
    weights: str | None = option(
        "A number for each checkpoint, such as 0.7,0.3.",
        group="Merging",
        metavar="NUMBERS",
        default=None,
        shown_default="equal",
    )
    lam: AnyTexts = option(
        "For two checkpoints: 0 is the first, 1 the second. 'PATTERN=NUMBER' is for the tensors whose names match, "
        "beside one plain number for the others. Repeatable.",
        group="Merging",
        metavar="[PATTERN=]NUMBER",
        default=(),
    )
    align: str = option(
        "Who is aligned to whom: each to the reference, each to the mean of the others in turn (merge-many), all "
        "together through a common order (cycle-consistent), or nobody (none).",
        group="Alignment",
        metavar="NAME",
        choices=ALIGNS,
        default="reference",
    )
    reference: str | None = option(
        "Checkpoint whose order is kept, or auto: all pairs are aligned, and the one most similar to all others is "
        "taken.",
        group="Alignment",
        metavar="CHECKPOINT",
        default=None,
        shown_default="the base, or the first checkpoint",
    )
    match_method: str = option(
        "Matching method. Those that run the networks on --data are for --align reference.",
        group="Alignment",
        metavar="NAME",
        choices=matching_names,
        default="weight",
    )
    effort: str = option("Search effort.", group="Alignment", metavar="LEVEL", choices=EFFORTS, default="auto")
    max_passes: int | None = option(
        "Maximum number of passes from each start.", group="Alignment", metavar="N", at_least=1, default=None
    )
    time_limit: float | None = option(
        "Time limit of each search.", group="Alignment", metavar="SECONDS", at_least=0, default=None
    )
    data: str | None = option(
        f"Held-out data, on which the checkpoints and the result are evaluated. {DATA_HELP}",
        group="Data",
        short="-d",
        metavar="DATA",
        default=None,
    )
    recalibrate: str | None = option(
        "Training data, or generated. Running statistics (BatchNorm) of the result are re-estimated on it.",
        group="Data",
        metavar="DATA",
        default=None,
    )
    recalibrate_limit: int = option(
        "Number of training samples for --recalibrate.",
        group="Data",
        metavar="N",
        at_least=1,
        default=2000,
        shown_default="2000; 512 generated inputs",
    )
    repair: bool = option(
        "REPAIR: restore the activation statistics of every unit, on the data of --recalibrate.",
        group="Data",
        default=False,
    )
    device: str = option("Device: cpu, cuda, cuda:1, mps.", group="Alignment", default="cpu")
    dtype: str | None = option(
        "Dtype of the output's floating-point tensors.",
        group="Output",
        metavar="DTYPE",
        choices=DTYPES,
        default=None,
        shown_default="those of the first checkpoint",
    )
    max_shard_size: str | None = option(
        "Write shards of at most this size, such as 5GB.",
        group="Output",
        metavar="SIZE",
        default=None,
        shown_default="the shards of the first checkpoint",
    )
    dry_run: bool = option(
        "Check the inputs by their headers, and say what the merge would cost. No tensor is read, nothing is written.",
        group="Output",
        default=False,
    )
    progress: Progress | None = field(default=None, repr=False, compare=False)

    @property
    def merge_method(self) -> MergeMethod:
        return find_method(self.method)

    def given(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The options that are not at their defaults, by name, but for these."""
        return {
            entry.name: getattr(self, entry.name)
            for entry in options_of(MergeOptions)
            if entry.name not in without and getattr(self, entry.name) != entry.default
        }

    @property
    def recipe_path(self) -> Path:
        """Where the recipe is written."""
        return report_path(self.out)


@dataclass(frozen=True, slots=True)
class MergedPoint:
    """What a network scores on the data; None means not measured or not finite."""

    path: Path
    loss: float | None
    accuracy: float | None
    top5: float | None
    n: int
    finite: bool
    loss_standard_error: float | None
    accuracy_standard_error: float | None


@dataclass(frozen=True, slots=True)
class MergeInput:
    """One checkpoint of a merge.

    Attributes:
        weight: as the method used it.
        moved_units: units whose place in the result is another than in the file.
        shares_base: its units were in one order with another checkpoint's (or the base's) already; None: not checked.
        distance: L2 over the parameters, from the aligned checkpoint to the result; None before it is written.
    """

    path: Path
    sha256: str | None
    weight: float
    moved_units: int
    shares_base: bool | None
    distance: float | None


@dataclass(frozen=True, slots=True)
class Expected:
    """What a merge would cost, from headers alone.

    Attributes:
        memory_bytes: beyond what the program itself takes.
        seconds: of the alignment, at the most; None for none.
        out_bytes: size of the output.
    """

    memory_bytes: int
    seconds: float | None
    out_bytes: int


@dataclass(frozen=True, slots=True)
class MergeResult(Result):
    """The outcome of one merge; field for field the `data` of `rebasin merge --json`.

    `cycles` is the largest number of units that a cycle of the permutations that were found does not bring back: 0
    where they go through one common order. `ends` are the checkpoints and `result` the merged network on the data,
    None without data. `verified` is the check of the checkpoint whose function changed the most, in noise floors.
    `units` counts those of the model that can be permuted. `out`, `recipe` and `sha256` are None after a dry run, which
    has `expected` instead. `running_statistics` counts layers that have any; `recalibration` is how they were
    re-estimated, None where they were not. `given` has the options that are not at their defaults, but for files.
    Without labels (`labelled` is False), the loss of a point is the distance of its outputs from those of the
    checkpoints, and its accuracy the agreement of their predictions. `generated` is about inputs that are no data.
    Seconds are wall-clock, by phase.
    """

    inputs: tuple[MergeInput, ...]
    base: Path | None
    base_sha256: str | None
    reference: Path
    align: str
    method: str
    cycles: int
    units: int
    ends: tuple[MergedPoint, ...] | None
    result: MergedPoint | None
    out: Path | None
    recipe: Path | None
    verified: FunctionCheck | None
    model: str
    model_args: Mapping[str, Any]
    settings: Mapping[str, Any]
    given: Mapping[str, Any]
    data: str | None
    recalibration: str | None
    running_statistics: int
    sha256: str | None
    expected: Expected | None
    seconds: Mapping[str, float]
    peak_rss_bytes: int | None
    warnings: tuple[str, ...]
    labelled: bool = True
    generated: GeneratedFacts | None = None

    def to_json(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "warnings"}


def parse_weights(text: str | None) -> tuple[float, ...] | None:
    """The numbers of `--weights`.

    Raises:
        UsageError: one is not a finite number.
    """
    if text is None:
        return None
    found = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            raise UsageError(
                f"--weights {text}: {part.strip()!r} is not a number", hint="for instance --weights 0.7,0.3"
            )
        found.append(number)
    return tuple(found)


def parse_size(text: str | None) -> int | None:
    """Bytes of `--max-shard-size`: 5GB is 5 * 1000^3, 5GiB is 5 * 1024^3, as in transformers.

    Raises:
        UsageError: it is not a size.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    count = (
        0
        if match is None
        else round(
            float(match["number"])
            * (1024 if match["binary"] else 1000) ** (" KMGT".index(match["unit"].upper()) if match["unit"] else 0)
        )
    )
    if count < 1:
        raise UsageError(f"--max-shard-size {text}: not a size", hint="for instance 5GB or 500MB")
    return count


def check_request(options: MergeOptions) -> Lams | None:
    """Refuse options that contradict each other, before any file is opened.

    Raises:
        UsageError: naming them.
    """
    count, method = len(options.checkpoints), options.merge_method
    if count < 2:
        seen = f"{options.checkpoints[0]}: " if options.checkpoints else ""
        raise UsageError(f"{seen}merge needs at least two checkpoints", hint="or --recipe FILE.json to repeat a merge")
    if options.model is None:
        raise UsageError("missing option --model", hint="for instance --model torchvision:resnet50")
    check_options_apply(options, method)
    method.check(count=count, base=options.base is not None, data=options.data is not None)
    lams = parse_lams(options.lam)
    _check_lams(options, lams)
    method.weights(parse_weights(options.weights), count)
    parse_size(options.max_shard_size)
    _check_alignment(options)
    if options.repair and options.recalibrate is None:
        raise UsageError("--repair needs data to measure on", hint="pass training data with --recalibrate DATA")
    return lams


def _check_lams(options: MergeOptions, lams: Lams | None) -> None:
    if lams is None:
        return
    if len(options.checkpoints) > 2:
        raise UsageError(
            f"--lam is for two checkpoints, and {len(options.checkpoints)} are given", hint="use --weights"
        )
    if options.method not in ("linear", "slerp"):
        raise UsageError(f"--lam has no effect with --method {options.method}", hint="it belongs to linear and slerp")
    if options.weights is not None:
        raise UsageError("--lam and --weights cannot both be given: each says how the two are mixed")
    if lams.single is None:
        raise UsageError(f"--lam: one network is made, and {len(lams.numbers)} numbers are given")


def _check_alignment(options: MergeOptions) -> None:
    if options.reference is not None:
        if options.base is not None:
            raise UsageError("--reference has no effect with --base: the base keeps its order")
        if options.align == "none":
            raise UsageError("--reference has no effect with --align none")
        if options.reference == AUTO and options.align != "reference":
            raise UsageError(f"--reference auto has no effect with --align {options.align}")
        if options.reference != AUTO and not any(
            is_same_file(path, Path(options.reference)) for path in options.checkpoints
        ):
            raise UsageError(
                f"--reference {options.reference}: not one of the checkpoints", hint="name one of them, or auto"
            )
    if options.match_method != "weight":
        if options.align != "reference":
            raise UsageError(
                f"--match-method {options.match_method} is for --align reference: a mean of several networks has no"
                " activations of its own to match",
            )
        from rebasin_cli.matching.methods import Need, find_method

        if Need.DATA in find_method(options.match_method).needs and options.data is None:
            raise UsageError(f"--match-method {options.match_method} needs data", hint="give --data")


def is_same_file(path: Path, other: Path) -> bool:
    """Whether two paths name one file; those of missing files are compared as they are."""
    return path == other or (path.exists() and other.exists() and path.samefile(other))


def run_merge(options: MergeOptions) -> MergeResult:
    """Align two or more checkpoints, verify that each still computes its function, and merge them into one.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong. Then nothing was written.
    """
    expected_hashes: Mapping[Path, str] = {}
    if options.recipe is not None:
        from rebasin_cli.verbs.merge_recipe import from_recipe

        options, expected_hashes = from_recipe(options)
    lams = check_request(options)
    inputs = [*options.checkpoints, *([] if options.base is None else [options.base])]
    data = (options.data, options.recalibrate)
    check_inputs(
        inputs,
        model=options.model,
        data=data,
        input_file=options.input_file,
        rules=options.rules,
        others=(options.spec,),
        class_map=options.class_map,
    )
    check_data_options(options, options.data or options.recalibrate)
    check_generated(options, *data)
    named = (options.spec, options.input_file, options.recipe, *map(optional_path, data))
    if not options.dry_run:
        outputs = {"output": options.out, "recipe": options.recipe_path}
        if options.save_spec is not None:
            outputs["spec"] = options.save_spec
        outputs |= saved_output(options.save_generated)
        kept = [*inputs, *(path for path in named if path is not None)]
        check_outputs(outputs, kept, force=options.force, mkdir=options.mkdir)
    from rebasin_cli.verbs.merging import MergeRun

    return MergeRun(options, lams, options.progress or Silent(), expected_hashes).run()


merge = verb(MergeOptions, run_merge)
