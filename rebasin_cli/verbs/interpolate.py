"""`interpolate`: what lies on the line between checkpoints, before and after alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.errors import UsageError
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.interpolation.path import MODES, Mode
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_reports import AlignReport, newest_report, read_report
from rebasin_cli.verbs.interpolate_after import result_beside
from rebasin_cli.verbs.interpolate_result import InterpolateResult
from rebasin_cli.verbs.interpolate_run import InterpolateRequest, SweepRun
from rebasin_cli.verbs.output_paths import optional_path, split_name


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
    checkpoints: Sequence[str | Path],
    report: str | Path | None,
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
            raise UsageError(f"{checkpoints[0]}: one checkpoint is no line", hint="name two or more, or none")
        if model is None:
            raise UsageError("--model is missing", hint="for instance --model torchvision:resnet50")
        return Subjects(tuple(map(Path, checkpoints)), None, None, model, dict(model_args or {}), tuple(inputs))
    found: AlignReport = newest_report(Path()) if report is None else read_report(Path(report))
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


def interpolate(
    checkpoints: Sequence[str | Path] = (),
    *,
    data: str,
    steps: int = 10,
    report: str | Path | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    input_file: str | Path | None = None,
    mode: str = "lerp",
    loss: str | None = None,
    metric: str | None = None,
    recalibrate: str | None = None,
    recalibrate_limit: int = 2000,
    repair: bool = False,
    transform: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_corrupt: bool = False,
    device: str = "cpu",
    amp: bool = False,
    seed: int = 0,
    key: str | None = None,
    ema: bool = False,
    ignore_extra: bool = False,
    out: str | Path | None = None,
    save_best: str | Path | None = None,
    save_all: str | Path | None = None,
    plot: str | Path | None = None,
    force: bool = False,
    mkdir: bool = False,
    progress: Progress | None = None,
) -> InterpolateResult:
    """Evaluate `steps + 1` networks on every segment of the line through checkpoints.

    Args:
        checkpoints: two or more of one model; none for those of an align report, then both curves are evaluated: A to B
            as it was ("naive"), and A to B aligned ("matched").
        data: a folder of class folders, an `.npz` file with `x` and `y`, `torchvision:NAME@root`, or `file.py:loader`.
        report: an align report; by default the newest in the current directory.
        model, model_args, inputs, input_file: as for `align`; a report knows them.
        mode: `lerp`, or `slerp` for parameters.
        loss, metric: `file.py:function` of (output, target), see `execution.measure`.
        recalibrate: data of the training set; BatchNorm statistics of every interpolant are measured on it.
        recalibrate_limit: on how many samples, drawn from `seed`.
        repair: do REPAIR with the data of `recalibrate`.
        transform: options, a preset's name or `file.py:function`; by default the model's own.
        limit: evaluate on so many samples, drawn from `seed`.
        amp: run the forward passes in bfloat16 where PyTorch deems it safe.
        out: the result file; one of the same run is resumed.
        save_best, save_all: write the network of lowest loss to this file, every network between to this directory.
        plot: only checked here: the caller draws it.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong.
    """
    subjects = find_subjects(checkpoints, report, model, model_args, inputs)
    if mode not in MODES:
        raise UsageError(f"--mode {mode}: unknown", hint=f"modes are {', '.join(MODES)}")
    if repair and recalibrate is None:
        raise UsageError(
            "--repair needs data to measure on", hint="give images of the training set with --recalibrate DATA"
        )
    if min(batch_size, steps, recalibrate_limit) < 1 or workers < 0 or (limit is not None and limit < 1):
        raise UsageError("--steps, --batch-size, --limit and --recalibrate-limit are at least 1, --workers at least 0")
    chosen: Mode = "slerp" if mode == "slerp" else "lerp"
    request = InterpolateRequest(
        checkpoints=subjects.checkpoints,
        aligned=subjects.aligned,
        report=subjects.report,
        choice=ModelChoice(subjects.model, subjects.model_args, subjects.inputs, optional_path(input_file), seed),
        input_stated=bool(inputs) or input_file is not None,
        data=data,
        steps=steps,
        mode=chosen,
        loss=loss,
        metric=metric,
        recalibrate=recalibrate,
        recalibrate_limit=recalibrate_limit,
        repair=repair,
        transform=transform,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        skip_corrupt=skip_corrupt,
        device=device,
        amp=amp,
        seed=seed,
        key=key,
        ema=ema,
        ignore_extra=ignore_extra,
        out=default_result(subjects) if out is None else Path(out),
        save_best=optional_path(save_best),
        save_all=optional_path(save_all),
        plot=optional_path(plot),
        force=force,
        mkdir=mkdir,
    )
    return SweepRun(request, progress or Silent()).run()
