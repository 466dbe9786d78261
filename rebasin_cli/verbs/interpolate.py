"""`interpolate`: evaluate the networks on the line between checkpoints, before and after alignment.

Everything that needs torch is imported where it is used, because `rebasin --help` reads the options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import split_name
from rebasin_cli.errors import CheckpointError, DataError, ModelError, NumericalError, UsageError
from rebasin_cli.options import AnyPaths, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.interpolate_result import InterpolateResult as InterpolateResult
from rebasin_cli.verbs.line_subjects import Subjects, default_result, find_subjects
from rebasin_cli.verbs.output_paths import check_outputs, optional_path
from rebasin_cli.verbs.shared_options import DATA_HELP, MODEL_HELP, ModelInput, Seed, StateInFile, Writing

if TYPE_CHECKING:
    from rebasin_cli.data import BatchSource, DataOptions
    from rebasin_cli.execution.dataset_pass import RunningSums
    from rebasin_cli.execution.model_slot import Adjustment
    from rebasin_cli.interpolation.data import SweepData
    from rebasin_cli.interpolation.result_file import ResultFile
    from rebasin_cli.interpolation.saving import NetworkFile
    from rebasin_cli.interpolation.sweep import Sweep

IDENTITY_OPTIONS = (
    *(
        "data",
        "steps",
        "mode",
        "loss",
        "metric",
        "recalibrate",
        "recalibrate_limit",
        "recalibration",
        "repair",
        "transform",
    ),
    *("limit", "batch_size", "skip_corrupt", "amp", "seed"),
)
"""Options that decide the numbers of a sweep, besides the checkpoints and the model."""


FORM_OF_SUMS = 2
"""Changes when the sums that a result file keeps are other ones, so that those of another version are not continued."""


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
        "Training data. Running statistics (BatchNorm) of every network on the line are re-estimated on it.",
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
    check_inputs(subjects.checkpoints, model=subjects.model, data=data, input_file=options.input_file)
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
                    path = self.subjects.curves[name][point.segment + int(point.lam)]  # as loaded, or as treated
                    raise NumericalError(
                        f"{path}: the loss is not finite on {self.options.data}",
                        path=path,
                        hint="look for NaN or infinite numbers in the data",
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
        return found if options.recalibrate or options.recalibration else {**found, "recalibrate_limit": None}

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
        from rebasin_cli.interpolation.data import SweepData, model_view

        options = self.options
        loss, metric = (None if name is None else load_callable(name) for name in (options.loss, options.metric))
        self.measure = Measure(loss, metric)
        view = model_view(self.models, self.choice, options.transform)
        reading = DataOptions(
            options.limit, options.seed, options.batch_size, options.workers, options.skip_corrupt, shuffle=False
        )
        self.norms = batch_norms(self.models.slot.module)
        self.statistics_samples: int | None = None
        if options.recalibrate is not None:
            statistics = None
            if self.norms or options.repair:
                shuffled = replace(reading, limit=options.recalibrate_limit, shuffle=True)
                statistics = open_data(options.recalibrate, shuffled, view)
            else:
                self.warnings.append("--recalibrate has no effect: no layer of the model has running statistics")
            self.data = SweepData(open_data(options.data, reading, view), statistics)
        elif self.norms and options.recalibration:
            self.data = self._set_apart(lambda reading: open_data(options.data, reading, view), reading)
        else:
            self.data = SweepData(open_data(options.data, reading, view), None)
            if self.norms:
                self.warnings.append(f"{self._unfit_statistics()}: re-estimate them with --recalibrate TRAINING_DATA")
        if self.data.statistics is not None or self.models.spectral_norms:
            self.models.treat_ends()
        if self.models.subject.note:
            self.warnings.append(self.models.subject.note)
        self.progress.note(f"data: {self.data.evaluation.description}")

    def _set_apart(self, open_source: Callable[[DataOptions], BatchSource], reading: DataOptions) -> SweepData:
        """The data without a part of them that gives statistics; all of them where they are too few."""
        from rebasin_cli.interpolation.data import SweepData
        from rebasin_cli.interpolation.statistics_part import set_apart

        parts = set_apart(open_source, reading, self.options.recalibrate_limit)
        if isinstance(parts, str):
            self.warnings.append(
                f"{self._unfit_statistics()}, and were not re-estimated, because {parts}; "
                "pass --recalibrate TRAINING_DATA"
            )
            return SweepData(open_source(reading), None)
        self.statistics_samples = parts.samples
        self.progress.note(
            f"running statistics ({counted_layers(self.norms)}) are re-estimated on {parts.samples} samples of "
            f"{self.options.data}, which are not evaluated; training data would be better: --recalibrate DATA "
            "(--no-recalibrate: not at all)"
        )
        return SweepData(parts.evaluation, parts.statistics)

    def _unfit_statistics(self) -> str:
        return f"running statistics ({counted_layers(self.norms)}) are invalid for interpolated weights"

    def _result_file(self) -> ResultFile:
        from rebasin_cli.interpolation.result_file import ResultFile

        self.identity = {
            **self._asked(),
            **self.models.identity(),
            **self.data.identity(),
            "files": self._python_files(),
            "sums": FORM_OF_SUMS,
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
            counter = self._counter(file.statistics, len(networks.adjusted), data.statistics)
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
            ranks=self.ranks,
            progress=self._counter(file.evaluation, len(networks.all), data.evaluation),
        )
        return summarize(networks, sums, best_by="accuracy" if self.options.best_by == "accuracy" else "loss")

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
        """Write the best network and all networks.

        Raises:
            DataError: there is no best network by the measure that was asked for.
        """
        from rebasin_cli.interpolation.line import Point
        from rebasin_cli.interpolation.saving import NetworkFile, save_networks

        options, best, files = self.options, sweep.best, self.all_networks
        if options.save_best is not None and best is None:
            raise DataError(
                f"--save-best: no network on the line has a finite loss{_and_accuracy(options.best_by)}",
                hint="--best-by accuracy needs class numbers as targets" if options.best_by == "accuracy" else None,
                slug="loss",
            )
        if options.save_best is not None and best is not None:
            files = [NetworkFile(best.curve, Point(best.segment, best.lam), options.save_best), *files]
        return save_networks(
            files, self.models, self.adjustments, seed=options.seed, force=options.force, mkdir=options.mkdir
        )

    def _result(self, sweep: Sweep, saved: tuple[Path, ...]) -> InterpolateResult:
        options, subjects, recalibration = self.options, self.subjects, None
        if self.data.statistics is not None:
            method = "REPAIR" if options.repair else "running statistics, cumulative average"
            recalibration = {"method": method, "data": self.data.statistics.description}
            if self.statistics_samples is not None:
                recalibration["data"] = f"{self.statistics_samples} samples of {options.data} that are not evaluated"
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
            loss=options.loss or "cross-entropy",
            metric=options.metric or "accuracy",
            recalibration=recalibration,
            running_statistics=len(self.norms),
            spectral_norms=self.models.spectral_norms,
            seed=options.seed,
            amp=options.amp,
            n=sweep.n,
            skipped=sweep.skipped,
            curves=sweep.curves,
            barrier=sweep.barrier,
            ends=sweep.ends,
            best=sweep.best,
            best_by=options.best_by,
            saved=saved,
            sha256=self.models.sha256,
            run=self.identity,
            progress=self.file.progress(),
            out=self.out,
            warnings=tuple(self.warnings),
            resumed=self.file.resumed,
        )


def counted_layers(layers: Mapping[str, object]) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def _and_accuracy(best_by: str) -> str:
    return " and an accuracy" if best_by == "accuracy" else ""


interpolate = verb(InterpolateOptions, run_interpolate)
