"""`interpolate`: evaluate the networks on the line between checkpoints, before and after alignment.

Everything that needs torch is imported where it is used, because `rebasin --help` reads the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.errors import UsageError
from rebasin_cli.execution.lams import Lams, parse_lams
from rebasin_cli.options import AnyPaths, AnyTexts, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.early_checks import check_data_options, check_inputs
from rebasin_cli.verbs.generated_inputs import GeneratedSaving, check_generated
from rebasin_cli.verbs.interpolate_result import InterpolateResult as InterpolateResult
from rebasin_cli.verbs.interpolation import InterpolationRun
from rebasin_cli.verbs.line_subjects import find_subjects
from rebasin_cli.verbs.shared_options import DATA_HELP, MODEL_HELP, DataReading, ModelInput, Seed, StateInFile, Writing


@options_class
class InterpolateOptions(ModelInput, DataReading, StateInFile, Writing, GeneratedSaving, Seed):
    """The options of `interpolate`."""

    checkpoints: AnyPaths = argument(
        "Two or more checkpoints of one model. Without any, those of an align report: A, B and B aligned.",
        metavar="[CHECKPOINT ...]",
        default=(),
        kw_only=False,
    )
    data: str | None = option(
        f"{DATA_HELP} Without it, networks are saved and not evaluated.",
        group="Data",
        short="-d",
        metavar="DATA",
        default=None,
    )
    steps: int = option(
        "Number of intervals between two checkpoints. N + 1 networks are evaluated.",
        group="Interpolation",
        metavar="N",
        at_least=1,
        default=10,
    )
    lam: AnyTexts = option(
        "Only these networks, instead of --steps: 0 is A, 1 is B, others extrapolate. 'PATTERN=NUMBER' is for the "
        "tensors whose names match, beside one plain number for the others. Repeatable.",
        group="Interpolation",
        metavar="[PATTERN=]NUMBER",
        default=(),
    )
    report: OptionalPath = option(
        "Report of 'rebasin align'.",
        group="Interpolation",
        metavar="FILE",
        default=None,
        shown_default="the newest in the current directory",
    )
    model: str | None = option(
        MODEL_HELP,
        group="Model",
        short="-m",
        metavar="SPEC",
        completes="model",
        default=None,
        shown_default="that of the align report",
    )
    mode: str = option(
        "Linear interpolation (lerp), or spherical interpolation of parameters (slerp).",
        group="Interpolation",
        metavar="MODE",
        choices=("lerp", "slerp"),
        default="lerp",
    )
    metric: str | None = option(
        "Additional metric: f(output, target).", group="Interpolation", metavar="FILE.py:FUNCTION", default=None
    )
    recalibrate: str | None = option(
        "Training data, or generated. Running statistics (BatchNorm) of every network on the line are re-estimated on "
        "it.",
        group="Data",
        metavar="DATA",
        default=None,
        shown_default="a part of --data, which is then not evaluated",
    )
    recalibration: bool = option(
        "Interpolate running statistics (BatchNorm) like weights, instead of re-estimating them.",
        group="Data",
        flag="--no-recalibrate",
        default=True,
    )
    recalibrate_limit: int = option(
        "Number of training samples for --recalibrate.",
        group="Data",
        metavar="N",
        at_least=1,
        default=2000,
        shown_default="2000; 512 generated inputs",
    )
    ignore_mismatched_sizes: bool = option(
        "Interpolate what the checkpoints share where their heads have different sizes. Saved networks have B's head.",
        group="Checkpoint",
        default=False,
    )
    repair: bool = option(
        "REPAIR: restore the activation statistics of every unit, on the data of --recalibrate.",
        group="Interpolation",
        default=False,
    )
    device: str = option("Device for the networks: cpu, cuda, cuda:1, mps.", group="Interpolation", default="cpu")
    amp: bool = option("Run in bfloat16 where PyTorch considers it safe.", group="Interpolation", default=False)
    out: OptionalPath = option(
        "Results file (JSON). The results of an interrupted run are continued.",
        group="Output",
        short="-o",
        metavar="FILE",
        default=None,
        shown_default="<report's stem>-interpolation.json",
    )
    save: OptionalPath = option(
        "Save the network at --lam, of the curve after alignment or of the only curve.",
        group="Output",
        metavar="FILE",
        default=None,
    )
    save_best: OptionalPath = option(
        "Save the best network of the curve after alignment, or of the only curve.",
        group="Output",
        metavar="FILE",
        default=None,
    )
    best_by: str = option(
        "What the best network is best by.", group="Output", choices=("loss", "accuracy"), default="loss"
    )
    save_all: OptionalPath = option(
        "Save all interpolated networks in this directory.", group="Output", metavar="DIR", default=None
    )
    also_written: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)
    progress: Progress | None = field(default=None, repr=False, compare=False)


def check_repair(options: InterpolateOptions) -> None:
    """Raise a UsageError if `repair` is given without `recalibrate`, or that with its opposite."""
    if options.recalibrate is not None and not options.recalibration:
        raise UsageError("--recalibrate and --no-recalibrate cannot both be given")
    if options.recalibrate is None and options.recalibrate_limit != InterpolateOptions.recalibrate_limit:
        raise UsageError("--recalibrate-limit has no effect without --recalibrate DATA")
    if options.repair and options.recalibrate is None:
        raise UsageError("--repair needs data to measure on", hint="pass training data with --recalibrate DATA")


NEED_DATA = ("save_best", "loss", "metric", "limit", "out")
"""Options that say something about an evaluation."""


def check_networks(options: InterpolateOptions, lams: Lams | None) -> None:
    """Refuse options that contradict each other about which networks are evaluated or saved.

    Raises:
        UsageError: naming them.
    """
    if lams is not None and options.steps != InterpolateOptions.steps:
        raise UsageError("--lam and --steps cannot both be given: each says which networks there are")
    if options.save is not None and (lams is None or lams.single is None):
        raise UsageError(
            "--save is for one network: give one --lam",
            hint="--save-all DIR saves every network, --save-best FILE the best one",
        )
    if options.save_all is not None and lams is not None and lams.patterns:
        raise UsageError("--save-all does not save a network with --lam for some tensors: use --save FILE")
    if options.data is None:
        if options.save is None and options.save_all is None:
            raise UsageError(
                "--data is missing", hint="or save networks without evaluating them: --lam 0.5 --save FILE"
            )
        made = is_generated(options.recalibrate)  # then --limit says how many
        given = [name for name in NEED_DATA if getattr(options, name) is not None and not (made and name == "limit")]
        given += ["amp"] * options.amp
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} needs --data: without it, nothing is evaluated")


def run_interpolate(options: InterpolateOptions) -> InterpolateResult:
    """Evaluate the networks on the line through checkpoints.

    Without data, networks are saved and not evaluated: the result has no curves. Without checkpoints, both lines of an
    align report are evaluated: from A to B ("naive") and from A to B aligned ("matched"). `also_written` names files
    that the caller writes afterwards, by role: they are checked like outputs.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong.
    """
    lams = parse_lams(options.lam)
    check_repair(options)
    check_networks(options, lams)
    subjects = find_subjects(options)
    if lams is not None and len(subjects.checkpoints) > 2:
        raise UsageError(f"--lam is for a line between two checkpoints, and there are {len(subjects.checkpoints)}")
    data = (options.data, options.recalibrate)
    check_inputs(
        subjects.checkpoints,
        model=subjects.model,
        data=data,
        input_file=subjects.input_file,
        class_map=options.class_map,
    )
    check_data_options(options, options.data or options.recalibrate)
    check_generated(options, *data)
    return InterpolationRun(options, subjects, lams).run()


interpolate = verb(InterpolateOptions, run_interpolate)
