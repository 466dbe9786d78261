"""`metrics`: task vectors of fine-tuned checkpoints, and metrics between every two of them.

Everything that needs torch is imported where it is used, because `rebasin --help` reads the options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rebasin_cli.data.generated_kinds import GeneratedFacts
from rebasin_cli.errors import UsageError
from rebasin_cli.matching.plan import EFFORTS
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
from rebasin_cli.progress import Progress
from rebasin_cli.task_vectors.metrics import chosen_metrics, names
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_data_options, check_inputs
from rebasin_cli.verbs.generated_inputs import GeneratedSaving, check_generated
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
from rebasin_cli.verbs.task_vector_files import TaskVectorFiles, name_files


@options_class
class MetricsOptions(ModelInput, Derivation, DataReading, StateInFile, Writing, GeneratedSaving, Seed):
    """The options of `metrics`."""

    base: AnyPath = argument("Checkpoint that was fine-tuned.", metavar="BASE", kw_only=False)
    finetuned: AnyPaths = argument(
        "Two or more fine-tuned checkpoints, each a path or LABEL=PATH. The label is the file's stem by default.",
        metavar="FINETUNED ...",
        kw_only=False,
    )
    base_of: AnyTexts = option(
        "Another base for one of the checkpoints. Repeatable.",
        group="Task vectors",
        metavar="LABEL=PATH",
        default=(),
        aliases=("--base",),
    )
    model: str | None = option(
        f"{MODEL_HELP} Needed for --align and --data; without it, tensors are compared by name.",
        group="Model",
        short="-m",
        metavar="SPEC",
        completes="model",
        default=None,
    )
    metrics: AnyTexts = option(
        "Measure this metric only. Repeatable.",
        group="Task vectors",
        metavar="NAME",
        choices=names,
        default=(),
        shown_default="all; those of activations and gradients with --data only",
    )
    align: str = option(
        "Permute each fine-tuned network with its base to match the weights of the first fine-tuned one (reference), "
        "or nothing (none).",
        group="Task vectors",
        choices=("none", "reference"),
        default="none",
    )
    perm_matching: bool = option("Short for --align reference.", group="Task vectors", default=False)
    max_passes: int | None = option(
        "Stop matching after N passes.",
        group="Task vectors",
        metavar="N",
        at_least=1,
        default=None,
        shown_default="when nothing improves",
        aliases=("--perm-matching-max-iter",),
    )
    effort: str = option(
        "Search effort of matching.",
        group="Task vectors",
        choices=EFFORTS,
        default="auto",
    )
    per_layer: bool = option("Report the metrics of every tensor too.", group="Task vectors", default=False)
    data: AnyTexts = option(
        f"{DATA_HELP} DATA is for all networks, LABEL=DATA for one. Repeatable.",
        group="Data",
        short="-d",
        metavar="[LABEL=]DATA",
        default=(),
    )
    activation_layer: str | None = option(
        "Measure the activations that this module returns.",
        group="Data",
        metavar="NAME",
        default=None,
        shown_default="what the output layer reads",
    )
    device: str = option("Device for matching and for networks on data.", group="General", default="cpu")
    out: OptionalPath = option(
        "Results file (JSON). The results of an interrupted run are continued.",
        group="Output",
        short="-o",
        metavar="FILE",
        default=None,
        shown_default="<BASE's stem>-metrics.json, or pairwise_metrics_….json with --layout pairwise",
    )
    layout: str = option(
        "Layout of the results file: the document that --json prints, or the metrics alone (pairwise).",
        group="Output",
        choices=("document", "pairwise"),
        default="document",
    )
    benchmark: str | None = option(
        "Name of the set of tasks, for the name of the file of --layout pairwise.",
        group="Output",
        metavar="NAME",
        default=None,
    )
    model_name: str | None = option(
        "Name of the model in the results.",
        group="Output",
        metavar="NAME",
        default=None,
        shown_default="that of --model, or BASE's stem",
    )
    also_written: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)
    progress: Progress | None = field(default=None, repr=False, compare=False)

    @property
    def aligns(self) -> bool:
        return self.perm_matching or self.align == "reference"


@dataclass(frozen=True, slots=True)
class AlignedNetwork:
    """A fine-tuned network that was permuted, with its base, to match the reference.

    Args:
        cosine: of its weights with the reference's, `{"before", "after"}`.
        max_in_noise_floors: the largest difference of its outputs before and after, in noise floors of rounding.
    """

    label: str
    base: Path
    moved_units: int
    units: int
    cosine: Mapping[str, float]
    max_in_noise_floors: float | None


@dataclass(frozen=True, slots=True)
class MetricsResult(Result):
    """Metrics between every two task vectors, field for field the `data` of its JSON.

    Args:
        model_name, datasets, n_datasets: the model, and the labels of the checkpoints.
        layer_wise: the metrics of every tensor are in `metrics`.
        perm_matching: task vectors are those of aligned networks.
        fallback: why alignment was asked for and not done; None otherwise.
        metrics: by name `{"matrix": rows with None but above the diagonal, "pairs": {"A__B": value}}`, with
            `"per_layer": {"A__B": {key: value}}` where asked for.
        alignment: the networks that were permuted; empty where all share the reference's base.
        tensors: how many tensors the task vectors consist of.
        left_out: tensors that not all checkpoints have in one shape.
        undetermined: tensors with a singular subspace that is not determined, as the last ones of a low rank.
        run: everything that decides the numbers.
    """

    model_name: str
    datasets: tuple[str, ...]
    n_datasets: int
    layer_wise: bool
    perm_matching: bool
    fallback: str | None
    metrics: Mapping[str, Any]
    model: str | None
    base: Path
    checkpoints: Mapping[str, Path]
    bases: Mapping[str, Path]
    align: str
    reference: str
    alignment: tuple[AlignedNetwork, ...]
    tensors: int
    left_out: tuple[str, ...]
    undetermined: tuple[str, ...]
    data: Mapping[str, str]
    generated: GeneratedFacts | None
    sha256: Mapping[str, str]
    seed: int
    run: Mapping[str, Any]
    out: Path
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        left_out = ("warnings", "resumed")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}

    def pairwise(self) -> dict[str, Any]:
        """The object of `--layout pairwise`."""
        kept = ("model_name", "datasets", "n_datasets", "layer_wise", "perm_matching", "fallback", "metrics", "sha256")
        return {name: getattr(self, name) for name in kept}

    def value(self, metric: str, pair: str) -> float | None:
        found = self.metrics[metric]["pairs"][pair]
        return None if found is None else float(found)

    @property
    def pairs(self) -> tuple[str, ...]:
        return tuple(pair_names(self.datasets))


def pair_names(labels: Sequence[str]) -> list[str]:
    """`A__B` for every two labels, in order."""
    return [f"{a}__{b}" for i, a in enumerate(labels) for b in labels[i + 1 :]]


def pairwise_name(labels: Sequence[str], benchmark: str | None, *, aligned: bool) -> str:
    """The file name of `--layout pairwise`."""
    name = benchmark or f"{len(labels)}tasks_{'_'.join(labels)}"
    return f"pairwise_metrics_{name.replace('/', '-')}{'_perm_matched' if aligned else ''}.json"


MATCHING = ("max_passes", "effort")
"""Options that say how permutations are found."""


def run_metrics(options: MetricsOptions) -> MetricsResult:
    """Measure how alike the task vectors of fine-tuned checkpoints are, pair by pair.

    A task vector is the fine-tuned network less its base. `also_written` names files that the caller writes afterwards,
    by role: they are checked like outputs.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong.
    """
    files = name_files(options.base, options.finetuned, options.base_of, options.data)
    metrics = chosen_metrics(options.metrics, data=bool(options.data))
    _check_options(options, files)
    check_inputs(
        files.all,
        model=options.model,
        data=dict.fromkeys(files.data.values()),
        input_file=options.input_file,
        rules=options.rules,
        others=(options.spec,),
        class_map=options.class_map,
    )
    check_data_options(options, options.data[0] if options.data else None)
    check_generated(options, *dict.fromkeys(files.data.values()))

    from rebasin_cli.verbs.metrics_run import MetricsRun

    return MetricsRun(options, files, metrics).run()


def _check_options(options: MetricsOptions, files: TaskVectorFiles) -> None:
    if options.model is None:
        wanting = (("--align reference", options.aligns), ("--data", bool(options.data)))
        for flag, given in wanting:
            if given:
                raise UsageError(f"{flag} needs a model", hint="give --model SPEC")
    if options.benchmark is not None and options.layout != "pairwise":
        raise UsageError("--benchmark has no effect without --layout pairwise")
    if options.activation_layer is not None and not options.data:
        raise UsageError("--activation-layer has no effect without --data")
    if not options.aligns:
        named = [*options_of(Derivation), *(one for one in options_of(MetricsOptions) if one.name in MATCHING)]
        for entry in named:
            if getattr(options, entry.name) != entry.default:
                raise UsageError(f"{entry.flag} has no effect without --align reference")


metrics = verb(MetricsOptions, run_metrics)
