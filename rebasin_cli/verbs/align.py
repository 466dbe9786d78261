"""`align`: match checkpoint B to checkpoint A, verify that B's function is unchanged, and write B permuted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.errors import RebasinError
from rebasin_cli.matching.method import SYMMETRIES
from rebasin_cli.matching.methods import MethodOptions, names
from rebasin_cli.matching.plan import EFFORTS
from rebasin_cli.matching.starts import STARTS
from rebasin_cli.options import AnyPath, AnyTexts, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_data_options, check_inputs
from rebasin_cli.verbs.generated_inputs import GeneratedSaving, check_generated
from rebasin_cli.verbs.output_paths import OutputFiles
from rebasin_cli.verbs.shared_options import (
    DATA_HELP,
    DataReading,
    Derivation,
    RequiredModel,
    Seed,
    Siblings,
    StateOfEach,
    Writing,
)
from rebasin_cli.verbs.siblings import Sibling

if TYPE_CHECKING:
    from rebasin_cli.data.generated_kinds import GeneratedFacts
    from rebasin_cli.execution.same_function import FunctionCheck
    from rebasin_cli.matching.chance import Chance
    from rebasin_cli.matching.result import Criterion, LearningEnd, Tried
    from rebasin_cli.permutation import Permutations

OBJECTIVES = ("plain", "matrices", "tensors", "rows")


@options_class
class AlignOptions(
    MethodOptions, RequiredModel, Derivation, DataReading, StateOfEach, Siblings, Writing, GeneratedSaving, Seed
):
    """The options of `align`."""

    a: AnyPath = argument("Reference checkpoint. It is not modified.", metavar="A", kw_only=False)
    b: AnyPath = argument("Checkpoint to permute. It is not modified.", metavar="B", kw_only=False)
    out: OptionalPath = option(
        "Output file.",
        group="Output",
        short="-o",
        metavar="FILE",
        default=None,
        shown_default="<B's stem>-aligned<suffix> beside B",
    )
    save_permutations: OptionalPath = option(
        "Save the permutations, as 'rebasin apply' reads them.",
        group="Output",
        flag="--save-alignment",
        aliases=("--save-permutations",),
        metavar="FILE",
        default=None,
    )
    ignore_mismatched_sizes: bool = option(
        "Align what A and B share where their heads have different sizes. The output has B's head.",
        group="Checkpoint",
        default=False,
    )
    dry_run: bool = option("Run without writing files.", group="Output", default=False)
    method: str | None = option(
        "Matching method. See 'rebasin help methods'.",
        group="Matching",
        metavar="NAME",
        choices=names,
        default=None,
        shown_default="weight; with --data, auto",
    )
    objective: str = option(
        "Matching objective: how much each weight counts.",
        group="Matching",
        metavar="NAME",
        choices=OBJECTIVES,
        default="plain",
    )
    symmetries: str = option(
        "What may move: units (permutation), also their signs (signed), or everything that keeps the function (all).",
        group="Matching",
        metavar="CLASS",
        choices=SYMMETRIES,
        default=SYMMETRIES[0],
    )
    effort: str = option(
        "Search effort.",
        group="Matching",
        metavar="LEVEL",
        choices=EFFORTS,
        default="auto",
    )
    starts: AnyTexts = option(
        "Start the search here instead of at the effort's own starting points. Repeatable.",
        group="Matching",
        flag="--start",
        metavar="NAME",
        choices=tuple(start.name for start in STARTS),
        default=(),
    )
    restarts: int | None = option(
        "Number of restarts.", group="Matching", metavar="N", at_least=0, default=None, shown_default="set by --effort"
    )
    max_passes: int | None = option(
        "Maximum number of passes from each start.", group="Matching", metavar="N", at_least=1, default=None
    )
    time_limit: float | None = option(
        "Time limit of the matching.", group="Matching", metavar="SECONDS", at_least=0, default=None
    )
    device: str = option("Device for matching: cpu, cuda, cuda:1, mps.", group="Matching", default="cpu")
    data: str | None = option(
        f"Inputs on which both networks run. {DATA_HELP}", group="Data", metavar="DATA", default=None
    )
    progress: Progress | None = field(default=None, repr=False, compare=False)

    @property
    def chosen_method(self) -> str:
        """The method that was named, or the default."""
        return self.method or ("weight" if self.data is None else "auto")

    @property
    def sweeps(self) -> bool:
        """Whether a sweep over data follows, which the options of data are for too."""
        return False

    @property
    def files(self) -> OutputFiles:
        """Where the run writes."""
        return OutputFiles.plan(
            self.b,
            self.out,
            permutations=self.save_permutations,
            spec=self.save_spec,
            generated=self.save_generated if is_generated(self.data) else None,
            maps=self.symmetries != SYMMETRIES[0],
        )


@dataclass(frozen=True, slots=True)
class MovedGroup:
    """One axis group: its size, and how many of its units ended in another place."""

    name: str
    size: int
    moved: int


@dataclass(frozen=True, slots=True)
class MappedGroup:
    """One axis group under a map of its class.

    Args:
        kind: what became of its units: `kept`, `permuted`, `signed`, `scaled`, `rotated`, `turned in planes` or
            `mapped linearly`.
        condition: condition number of the map; 1 for permutations, signs and rotations.
    """

    name: str
    size: int
    symmetry: str
    kind: str
    condition: float


@dataclass(frozen=True, slots=True)
class Mapped:
    """What maps of larger classes than permutations did.

    Args:
        searched: the value of `--symmetries`.
        largest_condition: of any map.
        kept_gains: norms' and layers' gains that A has nearly at zero: there B's own are kept, by key.
        limited: groups that the numbers of a network kept from more than permutations, with the reason.
        rounding_error: largest relative error of an output that rounding to the file's types makes; None where nothing
            was rounded.
        rounding_floors: the same in units of what rounding B's own numbers once more does.
    """

    searched: str
    groups: tuple[MappedGroup, ...]
    largest_condition: float
    kept_gains: Mapping[str, tuple[int, ...]]
    limited: Mapping[str, str]
    rounding_error: float | None
    rounding_floors: float | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """What of the network decides which command comes next.

    Args:
        running_statistics: number of layers that normalise by running statistics (BatchNorm).
        attention: whether it has attention heads.
        larger_classes: whether, with attention, some group allows maps that mix its units.
    """

    running_statistics: int
    attention: bool
    larger_classes: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A measure before and after the alignment."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Objective:
    """The plain objective, `sum over parameters <A, permuted B>`, before, after, and at the end of each pass.

    `per_pass` is empty where something else was maximised: see `Criterion`.
    """

    before: float
    after: float
    per_pass: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AlignResult(Result):
    """The outcome of one alignment; field for field the `data` of `rebasin align --json`.

    `chance` compares the gain of the cosine with that of chance (None: not measured). `cosine` and `distance` (L2)
    are over the model's parameters. `state` says for `a` and `b` which state dict of the file was read, as `key` and
    `ema` name it, and where it was found (`found`). `mismatched` are the tensors that have other sizes in A than in
    B. `places` has the files' paths relative to the report's directory, `code` the SHA-256 of the user's Python
    files. `out`, `report` and `sha256["out"]` are None after a dry run. `data` says how the data were read and what
    was learned from them, None without data; `generated` is about inputs that are no data; `settings` are those of the
    search; `timed_out` says that the time limit ended it, `stopped` why a search by weights ended (bound, agreement,
    margin, effort, time). `learning` has the curve of a learning, why it ended (patience, bound, time) and what its
    last tenth brought, `tried` the methods that `auto` compared on samples held back. Seconds are wall-clock, by
    phase; `peak_rss_bytes` counts mapped file pages too. `matched` has the permutations themselves, int64 index tensors
    by axis group (`new[i] = old[perm[i]]`); they are not part of the JSON.
    """

    a: Path
    b: Path
    out: Path | None
    report: Path | None
    permutations: Path | None
    spec: Path | None
    model: str
    model_args: Mapping[str, Any]
    trust_remote_code: bool
    mismatched: tuple[str, ...]
    input: str
    inputs: tuple[str, ...]
    input_file: Path | None
    state: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, str]
    code: Mapping[str, Mapping[str, str]]
    siblings: tuple[Sibling, ...]
    method: str
    data: Mapping[str, Any] | None
    generated: GeneratedFacts | None
    settings: Mapping[str, Any]
    timed_out: bool
    stopped: str | None
    learning: LearningEnd | None
    start: str
    seed: int
    device: str
    passes: int
    converged: bool
    relative_tolerance: float | None
    already_aligned: bool
    architecture: Architecture
    objective: Objective
    criterion: Criterion
    tried: tuple[Tried, ...]
    chance: Chance | None
    cosine: Change
    distance: Change
    groups: tuple[MovedGroup, ...]
    moved_units: int
    units: int
    parameters: int
    free_fraction: float | None
    unknown_ops: tuple[str, ...]
    verified: FunctionCheck
    seconds: Mapping[str, float]
    peak_rss_bytes: int | None
    sha256: Mapping[str, str | None]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]
    symmetries: Mapped | None
    matched: Permutations = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The data of the report."""
        left_out = ("matched", "warnings")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}


def check_align_inputs(options: AlignOptions) -> None:
    """Refuse missing inputs, without importing torch.

    Raises:
        RebasinError: of the kind of the missing input.
    """
    check_inputs(
        (options.a, options.b),
        model=options.model,
        data=(options.data,),
        input_file=options.input_file,
        rules=options.rules,
        others=(options.spec,),
        class_map=options.class_map,
    )
    if not options.sweeps:
        check_data_options(options, options.data)
        check_generated(options, options.data)


def run_align(options: AlignOptions) -> AlignResult:
    """Match B to A, verify the result, and write B permuted with a report beside it.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong. Then nothing was written.
    """
    check_align_inputs(options)
    return align_among_ranks(options, options.progress or Silent())


def align_among_ranks(options: AlignOptions, progress: Progress) -> AlignResult:
    """Run the alignment alone, or as one of several processes; every one returns the first one's result.

    Raises:
        RebasinError: in every process, where it fails in one.
    """
    from rebasin_cli.data.ranks import launched, ranks_for
    from rebasin_cli.execution.device import resolve_device
    from rebasin_cli.verbs.alignment import Alignment

    _, world, local = launched()
    if world == 1:
        return Alignment(options, progress).run()
    device = resolve_device(options.device)
    if device.type == "cuda" and device.index is None:
        device = resolve_device(f"cuda:{local}")
    ranks = ranks_for(device)
    result, error = None, None
    run = Alignment(options, progress if ranks.first else Silent(), ranks)
    try:
        if ranks.first:
            result = run.run()
        else:
            run.assist()
    except RebasinError as caught:
        if caught.agreed:
            raise
        error = caught
    ranks.agree(error)
    found: AlignResult = ranks.shared(result)
    return found


align = verb(AlignOptions, run_align)
