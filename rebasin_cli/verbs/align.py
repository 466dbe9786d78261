"""`align`: match checkpoint B to checkpoint A, verify that B's function is unchanged, and write B permuted."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, cast

from rebasin_cli.matching.methods import MethodOptions, find_method, names
from rebasin_cli.matching.plan import EFFORTS
from rebasin_cli.matching.starts import STARTS
from rebasin_cli.options import AnyPath, AnyTexts, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.output_paths import OutputFiles
from rebasin_cli.verbs.shared_options import DATA_HELP, Derivation, RequiredModel, Seed, StateOfEach, Writing

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Effort
    from rebasin_cli.verbs.align_result import AlignResult

OBJECTIVES = ("plain", "matrices", "tensors", "rows")


@options_class
class AlignOptions(MethodOptions, RequiredModel, Derivation, StateOfEach, Writing, Seed):
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
    dry_run: bool = option("Run without writing files.", group="Output", default=False)
    method: str = option(
        "Matching method. See 'rebasin help methods'.",
        group="Matching",
        metavar="NAME",
        choices=names,
        default="weight",
    )
    objective: str = option(
        "Matching objective: how much each weight counts.",
        group="Matching",
        metavar="NAME",
        choices=OBJECTIVES,
        default="plain",
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
    limit: int | None = option("Use N samples of the data.", group="Data", metavar="N", at_least=1, default=None)
    batch_size: int = option("Batch size.", group="Data", metavar="N", at_least=1, default=64)
    progress: Progress | None = field(default=None, repr=False, compare=False)

    @property
    def files(self) -> OutputFiles:
        """Where the run writes."""
        return OutputFiles.plan(self.b, self.out, permutations=self.save_permutations, spec=self.save_spec)


def run_align(options: AlignOptions) -> AlignResult:
    """Match B to A, verify the result, and write B permuted with a report beside it.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong. Then nothing was written.
    """
    check_inputs(
        (options.a, options.b),
        model=options.model,
        data=(options.data,),
        input_file=options.input_file,
        rules=options.rules,
        others=(options.spec,),
    )

    from rebasin_cli.execution.pair import Source
    from rebasin_cli.execution.subject import ModelChoice
    from rebasin_cli.matching.method import Matching
    from rebasin_cli.verbs.align_among_ranks import align_among_ranks
    from rebasin_cli.verbs.align_report import AlignRequest

    request = AlignRequest(
        a=Source(options.a, *options.state_of_a),
        b=Source(options.b, *options.state_of_b),
        choice=ModelChoice(
            options.model, dict(options.model_args or {}), options.inputs, options.input_file, options.seed
        ),
        matching=Matching(
            options.method,
            cast("Effort", options.effort),
            options.starts or None,
            options.restarts,
            options.max_passes,
            options.time_limit,
            options.seed,
            options.device,
            options.data,
            options.limit,
            options.batch_size,
            options.objective,
            find_method(options.method).own_options(options),
        ),
        files=options.files,
        spec_file=options.spec,
        pins=options.pins,
        rules=options.rules,
        ignore_extra=options.ignore_extra,
        strict=options.strict,
        dry_run=options.dry_run,
        force=options.force,
        mkdir=options.mkdir,
        cache=options.cache,
    )
    return align_among_ranks(request, options.progress or Silent())


align = verb(AlignOptions, run_align)
