"""`interpolate`: evaluate the networks on the line between checkpoints, before and after alignment.

Everything that needs torch is imported where it is used, because `rebasin --help` reads the options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import split_name
from rebasin_cli.errors import CheckpointError, DataError, ModelError, NumericalError, UsageError
from rebasin_cli.options import AnyPaths, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_reports import newest_report, read_report, result_beside
from rebasin_cli.verbs.document import Result, envelope, pretty
from rebasin_cli.verbs.early_checks import check_data_options, check_inputs
from rebasin_cli.verbs.output_paths import check_outputs, optional_path
from rebasin_cli.verbs.shared_options import DATA_HELP, MODEL_HELP, DataReading, ModelInput, Seed, StateInFile, Writing

if TYPE_CHECKING:
    from rebasin_cli.data import BatchSource
    from rebasin_cli.execution.dataset_pass import RunningSums
    from rebasin_cli.execution.model_slot import Adjustment
    from rebasin_cli.interpolation.result_file import ResultFile
    from rebasin_cli.interpolation.saving import NetworkFile
    from rebasin_cli.interpolation.sweep import Barrier, Best, Sweep, SweepPoint

IDENTITY_OPTIONS = (
    *("data", "steps", "mode", "loss", "metric", "recalibrate", "recalibrate_limit", "repair", "transform"),
    *("class_order", "limit", "batch_size", "skip_corrupt", "amp", "seed"),
)
"""Options that decide the numbers of a sweep, besides the checkpoints and the model."""


@options_class
class InterpolateOptions(ModelInput, DataReading, StateInFile, Writing, Seed):
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
    save_best: OptionalPath = option(
        "Save the network with the lowest loss.", group="Output", metavar="FILE", default=None
    )
    save_all: OptionalPath = option(
        "Save all interpolated networks in this directory.", group="Output", metavar="DIR", default=None
    )
    also_written: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)
    progress: Progress | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class InterpolateResult(Result):
    """The outcome of one sweep, field for field the `data` of its JSON.

    `checkpoints` are the files along the naive curve; `a` is the first and `b` the last of them. `aligned` is B
    aligned, at the end of the matched curve, or None. `text` has perplexity and bits per byte of a language model on
    text (see `language_figures`), None for other data. `recalibration` is None, or `{"method", "data"}`. `n` counts the
    samples that every network was run on, `skipped` those that could not be read. `resumed` says that sums of an
    earlier run were used. It is not part of the JSON, so that an interrupted run ends with the same file as any other.
    """

    a: Path
    b: Path
    aligned: Path | None
    checkpoints: tuple[Path, ...]
    report: Path | None
    model: str
    model_args: Mapping[str, Any]
    data: str
    mode: str
    steps: int
    loss: str
    metric: str
    recalibration: Mapping[str, Any] | None
    seed: int
    amp: bool
    n: int
    skipped: int
    curves: Mapping[str, tuple[SweepPoint, ...]]
    barrier: Mapping[str, Barrier]
    best: Best | None
    saved: tuple[Path, ...]
    sha256: Mapping[str, str]
    run: Mapping[str, Any]
    progress: Mapping[str, Any]
    out: Path
    warnings: tuple[str, ...]
    resumed: bool
    text: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        left_out = ("warnings", "resumed")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}

    @property
    def gated_barrier(self) -> float | None:
        """The loss barrier that `--fail-above` applies to: that of the matched curve, or else of the naive one.

        None where it is not finite, and where the data have no labels.
        """
        from rebasin_cli.execution.agreement import DISTANCE

        if self.loss == DISTANCE:
            return None
        return self.barrier["matched" if "matched" in self.barrier else "naive"].loss


@dataclass(frozen=True, slots=True)
class Subjects:
    """The checkpoints of a sweep and their model, as named by the user or by an align report.

    Attributes:
        states: which state dict of each file was aligned, as (key, ema).
        sha256: of each file when it was aligned.
        input_stated: the user stated the input, here or when the files were aligned.
    """

    checkpoints: tuple[Path, ...]
    aligned: Path | None
    report: Path | None
    model: str
    model_args: Mapping[str, Any]
    inputs: tuple[str, ...]
    states: Mapping[Path, tuple[str | None, bool]] = field(default_factory=dict)
    sha256: Mapping[Path, str] = field(default_factory=dict)
    input_stated: bool = False

    @property
    def curves(self) -> dict[str, tuple[Path, ...]]:
        """The files along each curve."""
        naive = {"naive": self.checkpoints}
        return naive if self.aligned is None else {**naive, "matched": (*self.checkpoints[:-1], self.aligned)}


def find_subjects(options: InterpolateOptions) -> Subjects:
    """The checkpoints that were named, or those of an align report: the one named, or the newest here.

    Raises:
        UsageError: one checkpoint only, checkpoints and a report, or no model and no report that names one.
    """
    checkpoints, model, model_args = options.checkpoints, options.model, dict(options.model_args or {})
    stated = bool(options.inputs) or options.input_file is not None
    if checkpoints:
        if options.report is not None:
            raise UsageError("checkpoints and --report cannot both be given: the report names its own")
        if len(checkpoints) == 1:
            raise UsageError(f"{checkpoints[0]}: need at least two checkpoints", hint="or none, to use an align report")
        if model is None:
            raise UsageError("--model is missing", hint="for instance --model torchvision:resnet50")
        return Subjects(checkpoints, None, None, model, model_args, options.inputs, input_stated=stated)
    found = newest_report(Path()) if options.report is None else read_report(options.report)
    model_args, inputs = {**found.model_args, **model_args}, options.inputs or found.inputs
    named = options.key is not None or options.ema
    states = dict.fromkeys(found.states, (options.key, options.ema)) if named else found.states
    return Subjects(
        (found.a, found.b),
        found.out,
        found.path,
        model or found.model,
        model_args,
        inputs,
        states,
        found.sha256,
        input_stated=stated or found.input_stated,
    )


def default_result(subjects: Subjects) -> Path:
    """`<report's stem>-interpolation.json` beside the report; without one, named after the last checkpoint, here."""
    if subjects.report is not None:
        return result_beside(subjects.report)
    return Path(f"{split_name(subjects.checkpoints[-1])[0]}-interpolation.json")


def check_repair(options: InterpolateOptions) -> None:
    """Raise a UsageError if `repair` is given without `recalibrate`."""
    if options.repair and options.recalibrate is None:
        raise UsageError("--repair needs data to measure on", hint="pass training data with --recalibrate DATA")


def run_interpolate(options: InterpolateOptions) -> InterpolateResult:
    """Evaluate the networks on the line through checkpoints.

    Without checkpoints, both lines of an align report are evaluated: from A to B ("naive") and from A to B aligned
    ("matched"). `also_written` names files that the caller writes afterwards, by role: they are checked like outputs.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong.
    """
    subjects = find_subjects(options)
    check_repair(options)
    data = (options.data, options.recalibrate)
    check_inputs(
        subjects.checkpoints,
        model=subjects.model,
        data=data,
        input_file=options.input_file,
        class_map=options.class_map,
    )
    check_data_options(options, options.data)
    return _Run(options, subjects).run()


class _Run:
    """One sweep: check, open, measure statistics, evaluate, save, write. Each step sets what the next ones need."""

    def __init__(self, options: InterpolateOptions, subjects: Subjects) -> None:
        from rebasin_cli.data.ranks import launched
        from rebasin_cli.execution.subject import ModelChoice

        self.options, self.subjects = options, subjects
        self.choice = ModelChoice(
            subjects.model, subjects.model_args, subjects.inputs, options.input_file, options.seed
        )
        self.out = default_result(subjects) if options.out is None else options.out
        self.progress: Progress = (options.progress or Silent()) if launched()[0] == 0 else Silent()
        self.warnings: list[str] = []
        self.adjustments: dict[str, Adjustment] = {}

    def run(self) -> InterpolateResult:
        """All steps. An interrupted run keeps its sums; one that cannot succeed leaves no files."""
        self._check_outputs()
        self._open()
        self.file = self._result_file()
        try:
            sweep = self._measure()
        except (DataError, ModelError):
            self.file.withdraw()
            raise
        except BaseException:
            self.file.save()
            raise
        self._check_ends(sweep)
        return self._finish(sweep)

    def _check_ends(self, sweep: Sweep) -> None:
        """Refuse data on which the checkpoints themselves give no finite loss."""
        for name, points in sweep.curves.items():
            for point in points:
                if point.lam in (0.0, 1.0) and not point.finite:
                    self.file.withdraw()
                    path = self.subjects.curves[name][point.segment + int(point.lam)]
                    raise NumericalError(
                        f"{path}: the loss is not finite on {self.options.data}",
                        path=path,
                        hint="the data hold no NaN: check their range and --transform, the model, and --loss",
                    )

    @cached_property
    def all_networks(self) -> list[NetworkFile]:
        """The files of `--save-all`."""
        from rebasin_cli.interpolation.saving import files_of_all

        if self.options.save_all is None:
            return []
        suffix = split_name(self.subjects.checkpoints[-1])[1]
        return files_of_all(self.subjects.curves, self.options.steps, self.options.save_all, suffix)

    @property
    def checkpoint_outputs(self) -> dict[str, Path]:
        """Every checkpoint that will be written, by its role."""
        best = {} if self.options.save_best is None else {"best network": self.options.save_best}
        return best | {f"network {file.path.name}": file.path for file in self.all_networks}

    def _check_outputs(self) -> None:
        """Refuse outputs before any input is read."""
        from rebasin_cli.interpolation.result_file import check_result_file

        options, result = self.options, {"result": self.out}
        others = {**self.checkpoint_outputs, **options.also_written}
        # What only looks like a path (the name of a loader) does no harm among the inputs.
        data = (optional_path(options.data), optional_path(options.recalibrate))
        named = (self.subjects.aligned, self.subjects.report, options.input_file, *data)
        inputs = (*self.subjects.checkpoints, *(path for path in named if path is not None))
        check_outputs(result, inputs, force=True, mkdir=options.mkdir)
        check_outputs(others, inputs, force=options.force, mkdir=options.mkdir)
        check_outputs({**result, **others}, (), force=True, mkdir=options.mkdir)
        check_result_file(self.out, self._asked(), force=options.force)

    def _asked(self) -> dict[str, Any]:
        """The part of the run's identity that the command line gives."""
        subjects, options = self.subjects, self.options
        found: dict[str, Any] = {
            "checkpoints": [str(path) for path in subjects.checkpoints],
            "aligned": None if subjects.aligned is None else str(subjects.aligned),
            "model": subjects.model,
        }
        found |= {name: getattr(options, name) for name in IDENTITY_OPTIONS}
        found["class_map"] = None if options.class_map is None else str(options.class_map)
        return found if options.recalibrate else {**found, "recalibrate_limit": None}

    def _open(self) -> None:
        """Open checkpoints, model and data."""
        from rebasin_cli.data.ranks import launched, ranks_for
        from rebasin_cli.execution.device import resolve_device
        from rebasin_cli.interpolation.models import SweepModels

        options = self.options
        _, world, local = launched()
        device = resolve_device(options.device)
        if device.type == "cuda" and world > 1 and device.index is None:
            device = resolve_device(f"cuda:{local}")
        self.ranks = ranks_for(device)
        self.progress.phase("reading")
        if self.subjects.report is not None:
            self.progress.note(f"using alignment report {self.subjects.report}")
        self.models = SweepModels.open(
            self.subjects.curves,
            self.choice,
            states=self.subjects.states or dict.fromkeys(self.subjects.checkpoints, (options.key, options.ema)),
            ignore_extra=options.ignore_extra,
            mode="slerp" if options.mode == "slerp" else "lerp",
            steps=options.steps,
            device=device,
            amp=options.amp,
            progress=self.progress,
        )
        self._check_unchanged()
        outputs = {"result": self.out, **self.checkpoint_outputs}
        check_outputs(outputs, self.models.files, force=True, mkdir=options.mkdir)
        self._open_data()

    def _check_unchanged(self) -> None:
        """Refuse files that are not those that were aligned."""
        for path, expected in self.subjects.sha256.items():
            if self.models.sha256.get(str(path), expected) != expected:
                raise CheckpointError(
                    f"{path}: has changed since it was aligned (SHA-256 differs from {self.subjects.report})",
                    path=path,
                    hint="align again, or name the checkpoints",
                )

    def _open_data(self) -> None:
        from rebasin_cli.data import DataOptions, open_data
        from rebasin_cli.data.batch_sources import load_callable
        from rebasin_cli.execution.evaluation import Measure
        from rebasin_cli.execution.recalibration import batch_norms
        from rebasin_cli.interpolation.data import SweepData, classes_of, has_no_labels, sweep_view

        options = self.options
        loss, metric = (None if name is None else load_callable(name) for name in (options.loss, options.metric))
        self.measure = Measure(loss, metric)
        classes = classes_of(self.models, labelled=loss is None)
        view = sweep_view(self.models, self.choice, options.transform, classes, stated=self.subjects.input_stated)
        reading = DataOptions(
            options.limit,
            options.seed,
            options.batch_size,
            options.workers,
            options.skip_corrupt,
            class_map=options.class_map,
            class_order=options.class_order,
        )
        evaluation, statistics = open_data(options.data, reading, view), None
        labels = classes.found
        unlabelled = loss is None and has_no_labels(evaluation)
        for flag, given in (("--metric", options.metric), ("--save-best", options.save_best)):
            if unlabelled and given is not None:
                raise DataError(
                    f"{flag} needs targets, and {options.data} has none",
                    path=options.data,
                    hint="give labels, or --loss file.py:function",
                )
        if unlabelled:
            self.warnings.append(
                "the data have no labels: the networks on the line are compared with the outputs of its ends"
            )
        if options.recalibrate is not None:
            shuffled = replace(reading, limit=options.recalibrate_limit, shuffle=True)
            statistics = open_data(options.recalibrate, shuffled, view)
        self.data = SweepData(evaluation, statistics, labels, unlabelled)
        if self.models.subject.note:
            self.warnings.append(self.models.subject.note)
        self.progress.note(f"data: {evaluation.description}")
        self.warnings += evaluation.notes
        norms = batch_norms(self.models.slot.module)
        if norms and options.recalibrate is None:
            self.warnings.append(
                f"BatchNorm statistics ({len(norms)} layers) are invalid for interpolated weights: "
                "re-estimate them with --recalibrate TRAINING_DATA"
            )

    def _result_file(self) -> ResultFile:
        from rebasin_cli.interpolation.result_file import ResultFile

        self.identity = {
            **self._asked(),
            **self.models.identity(),
            **self.data.identity(),
            "files": self._python_files(),
        }
        file = ResultFile(
            self.out,
            self.identity,
            render=lambda data, error: pretty(envelope("interpolate", data, error=error)),
            force=self.options.force,
            ranks=self.ranks,
        )
        file.save_regularly()
        if file.resumed:
            done = len(file.evaluation.batches) and min(file.evaluation.batches.values())
            state = "run already complete" if file.evaluation.finished else f"evaluated up to batch {done}"
            self.progress.note(f"resuming {self.out}: {state}")
        return file

    def _python_files(self) -> dict[str, str]:
        """The user's Python files that the run depends on, with their SHA-256."""
        from rebasin_cli.data.source import file_identity

        options = self.options
        named = (
            self.subjects.model,
            options.data,
            options.recalibrate,
            options.loss,
            options.metric,
            options.transform,
        )
        files = {text.rpartition(":")[0] for text in named if text is not None}
        return {
            name: file_identity(Path(name)) for name in sorted(files) if name.endswith(".py") and Path(name).is_file()
        }

    def _measure(self) -> Sweep:
        from rebasin_cli.execution.evaluation import evaluate
        from rebasin_cli.execution.recalibration import Recalibration
        from rebasin_cli.interpolation.sweep import summarize

        slot, networks, file, data = self.models.slot, self.models.networks, self.file, self.data
        saves = self.options.save_best is not None or self.options.save_all is not None
        if data.statistics is not None and (saves or not file.evaluation.finished):
            self.progress.phase("measuring statistics")
            counter = self._counter(file.statistics, len(networks.inner), data.statistics)
            recalibration = Recalibration(
                slot, data.statistics, networks.all, repair=self.options.repair, ranks=self.ranks
            )
            self.adjustments = recalibration.run(file.statistics, counter)
        self.progress.phase("evaluating")
        sums = evaluate(
            slot,
            data.evaluation,
            networks.all,
            self.measure,
            file.evaluation,
            adjustments=self.adjustments,
            unlabelled=data.unlabelled,
            ranks=self.ranks,
            progress=self._counter(file.evaluation, len(networks.all), data.evaluation),
        )
        return summarize(networks, sums)

    def _counter(self, running: RunningSums, networks: int, source: BatchSource) -> Callable[[int, str], None]:
        """Reports how many (network, batch) pairs are done."""
        count = source.batch_count

        def report(_: int, name: str) -> None:
            bound = float("inf") if count is None else count
            done = sum(min(batches, bound) for batches in running.batches.values())
            self.progress.step(done, None if count is None else networks * count, name)

        return report

    def _finish(self, sweep: Sweep) -> InterpolateResult:
        """Save networks and write the result."""
        saved: tuple[Path, ...] = ()
        if (self.options.save_best or self.options.save_all) and self.ranks.first:
            self.progress.phase("saving")
            saved = self._save(sweep)
        if sweep.best is not None and self.options.save_best is not None:
            sweep = replace(sweep, best=replace(sweep.best, path=self.options.save_best))
        result = self._result(sweep, saved)
        self.file.complete(pretty(envelope("interpolate", result, warnings=result.warnings)))
        return result

    def _save(self, sweep: Sweep) -> tuple[Path, ...]:
        from rebasin_cli.interpolation.line import Point
        from rebasin_cli.interpolation.saving import NetworkFile, save_networks

        options, best, files = self.options, sweep.best, self.all_networks
        if options.save_best is not None and best is not None:
            files = [NetworkFile(best.curve, Point(best.segment, best.lam), options.save_best), *files]
        return save_networks(
            files, self.models, self.adjustments, seed=options.seed, force=options.force, mkdir=options.mkdir
        )

    def _result(self, sweep: Sweep, saved: tuple[Path, ...]) -> InterpolateResult:
        from rebasin_cli.execution.agreement import AGREEMENT, DISTANCE
        from rebasin_cli.interpolation.data import chance_warnings, language_figures

        options, subjects, recalibration = self.options, self.subjects, None
        if self.data.statistics is not None:
            method = "REPAIR" if options.repair else "BatchNorm, cumulative average"
            recalibration = {"method": method, "data": self.data.statistics.description}
        self.warnings += chance_warnings(sweep.curves, self.data.classes, cross_entropy=options.loss is None)
        if any(not point.finite for points in sweep.curves.values() for point in points):
            self.warnings.append("some networks on the line give values that are not finite")
        if sweep.skipped:
            self.warnings.append(f"{sweep.skipped} samples could not be read and were skipped")
        return InterpolateResult(
            a=subjects.checkpoints[0],
            b=subjects.checkpoints[-1],
            aligned=subjects.aligned,
            checkpoints=subjects.checkpoints,
            report=subjects.report,
            model=subjects.model,
            model_args=dict(self.models.subject.factory.args),
            data=self.data.evaluation.description,
            mode=options.mode,
            steps=options.steps,
            loss=DISTANCE if self.data.unlabelled else options.loss or "cross-entropy",
            metric=AGREEMENT if self.data.unlabelled else options.metric or "accuracy",
            recalibration=recalibration,
            seed=options.seed,
            amp=options.amp,
            n=sweep.n,
            skipped=sweep.skipped,
            curves=sweep.curves,
            barrier=sweep.barrier,
            best=sweep.best,
            text=language_figures(self.data, sweep) if options.loss is None else None,
            saved=saved,
            sha256=self.models.sha256,
            run=self.identity,
            progress=self.file.progress(),
            out=self.out,
            warnings=tuple(self.warnings),
            resumed=self.file.resumed,
        )


interpolate = verb(InterpolateOptions, run_interpolate)
