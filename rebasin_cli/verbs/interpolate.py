"""`interpolate`: what lies on the line between checkpoints, before and after alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import split_name
from rebasin_cli.errors import UsageError
from rebasin_cli.options import AnyPaths, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_reports import AlignReport, newest_report, read_report, result_beside
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.shared_options import DATA_HELP, MODEL_HELP, ModelInput, Seed, StateInFile, Writing

if TYPE_CHECKING:
    from rebasin_cli.verbs.interpolate_result import InterpolateResult


@dataclass(frozen=True, slots=True)
class Subjects:
    """What the line runs through, and the model of it."""

    checkpoints: tuple[Path, ...]
    aligned: Path | None
    report: Path | None
    model: str
    model_args: Mapping[str, Any]
    inputs: tuple[str, ...]


def find_subjects(
    checkpoints: Sequence[Path],
    report: Path | None,
    model: str | None,
    model_args: Mapping[str, Any] | None,
    inputs: Sequence[str],
) -> Subjects:
    """The checkpoints that were named, or those of an align report: the one named, or the newest here.

    Raises:
        UsageError: one checkpoint only, checkpoints beside a report, or no model where no report names one.
    """
    if checkpoints:
        if report is not None:
            raise UsageError("checkpoints and --report cannot both be given: the report names its own")
        if len(checkpoints) == 1:
            raise UsageError(f"{checkpoints[0]}: need at least two checkpoints", hint="or none, to use an align report")
        if model is None:
            raise UsageError("--model is missing", hint="for instance --model torchvision:resnet50")
        return Subjects(tuple(checkpoints), None, None, model, dict(model_args or {}), tuple(inputs))
    found: AlignReport = newest_report(Path()) if report is None else read_report(report)
    return Subjects(
        (found.a, found.b),
        found.out,
        found.path,
        model or found.model,
        {**found.model_args, **(model_args or {})},
        tuple(inputs) or found.inputs,
    )


def default_result(subjects: Subjects) -> Path:
    """`<report's stem>-interpolation.json` beside the report; without one, named after the last checkpoint, here."""
    if subjects.report is not None:
        return result_beside(subjects.report)
    return Path(f"{split_name(subjects.checkpoints[-1])[0]}-interpolation.json")


@options_class
class InterpolateOptions(ModelInput, StateInFile, Writing, Seed):
    """The options of `interpolate`."""

    checkpoints: AnyPaths = argument(
        "Two or more checkpoints of one model. Without any, those of an align report: A, B and B aligned.",
        metavar="[CHECKPOINT ...]",
        default=(),
        kw_only=False,
    )
    data: str = option(DATA_HELP, group="Data", short="-d", metavar="DATA")
    steps: int = option(
        "Number of intervals between two checkpoints. N + 1 networks are evaluated.",
        group="Interpolation",
        metavar="N",
        at_least=1,
        default=10,
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
    loss: str | None = option(
        "Loss: f(output, target).",
        group="Interpolation",
        metavar="FILE.py:FUNCTION",
        default=None,
        shown_default="cross-entropy",
    )
    metric: str | None = option(
        "Additional metric: f(output, target).", group="Interpolation", metavar="FILE.py:FUNCTION", default=None
    )
    recalibrate: str | None = option(
        "Training data. BatchNorm statistics of every interpolated network are re-estimated on it.",
        group="Data",
        metavar="DATA",
        default=None,
    )
    recalibrate_limit: int = option(
        "Number of training samples for --recalibrate.", group="Data", metavar="N", at_least=1, default=2000
    )
    repair: bool = option(
        "REPAIR: restore the activation statistics of every unit, on the data of --recalibrate.",
        group="Interpolation",
        default=False,
    )
    transform: str | None = option(
        "Image transform: resize=256,crop=224,mean=a/b/c,std=a/b/c, the name of a preset, or file.py:function.",
        group="Data",
        metavar="TEXT",
        default=None,
        shown_default="that of the model",
    )
    limit: int | None = option("Evaluate on N random samples.", group="Data", metavar="N", at_least=1, default=None)
    batch_size: int = option("Batch size.", group="Data", metavar="N", at_least=1, default=64)
    workers: int = option("Number of processes that decode images.", group="Data", metavar="N", at_least=0, default=0)
    skip_corrupt: bool = option("Skip and count images that cannot be read.", group="Data", default=False)
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
    plot: OptionalPath = option("Plot the curves: .svg, .png or .pdf.", group="Output", metavar="FILE", default=None)
    save_best: OptionalPath = option(
        "Save the network with the lowest loss.", group="Output", metavar="FILE", default=None
    )
    save_all: OptionalPath = option(
        "Save all interpolated networks in this directory.", group="Output", metavar="DIR", default=None
    )
    progress: Progress | None = field(default=None, repr=False, compare=False)


def run_interpolate(options: InterpolateOptions) -> InterpolateResult:
    """Evaluate the networks on the line through checkpoints.

    Without checkpoints, both lines of an align report are evaluated: from A to B ("naive") and from A to B aligned
    ("matched"). `plot` is only checked here: the caller draws it.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong.
    """
    subjects = find_subjects(options.checkpoints, options.report, options.model, options.model_args, options.inputs)
    if options.repair and options.recalibrate is None:
        raise UsageError(
            "--repair needs data to measure on", hint="give images of the training set with --recalibrate DATA"
        )
    check_inputs(
        subjects.checkpoints,
        model=subjects.model,
        data=(options.data, options.recalibrate),
        input_file=options.input_file,
    )

    from rebasin_cli.execution.subject import ModelChoice
    from rebasin_cli.verbs.interpolate_run import InterpolateRequest, SweepRun

    request = InterpolateRequest(
        checkpoints=subjects.checkpoints,
        aligned=subjects.aligned,
        report=subjects.report,
        choice=ModelChoice(subjects.model, subjects.model_args, subjects.inputs, options.input_file, options.seed),
        input_stated=bool(options.inputs) or options.input_file is not None,
        data=options.data,
        steps=options.steps,
        mode="slerp" if options.mode == "slerp" else "lerp",
        loss=options.loss,
        metric=options.metric,
        recalibrate=options.recalibrate,
        recalibrate_limit=options.recalibrate_limit,
        repair=options.repair,
        transform=options.transform,
        limit=options.limit,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_corrupt=options.skip_corrupt,
        device=options.device,
        amp=options.amp,
        seed=options.seed,
        key=options.key,
        ema=options.ema,
        ignore_extra=options.ignore_extra,
        out=default_result(subjects) if options.out is None else options.out,
        save_best=options.save_best,
        save_all=options.save_all,
        plot=options.plot,
        force=options.force,
        mkdir=options.mkdir,
    )
    return SweepRun(request, options.progress or Silent()).run()


interpolate = verb(InterpolateOptions, run_interpolate)
