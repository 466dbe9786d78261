"""The run of `interpolate`: check, open, measure, evaluate, save and write.

Everything that needs torch is imported where it is used, because `rebasin --help` reads the options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import split_name
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.errors import CheckpointError, DataError, ModelError, NumericalError
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_reports import sha256_of
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.generated_inputs import CORRECTED, check_saving, save_inputs, saved_output, statistics_count
from rebasin_cli.verbs.interpolate_result import InterpolateResult
from rebasin_cli.verbs.line_subjects import Subjects, default_result
from rebasin_cli.verbs.output_paths import check_outputs, optional_path

if TYPE_CHECKING:
    from rebasin_cli.data import BatchSource, DataOptions
    from rebasin_cli.execution.dataset_pass import RunningSums
    from rebasin_cli.execution.lams import Lams
    from rebasin_cli.execution.model_slot import Adjustment
    from rebasin_cli.interpolation.data import SweepData
    from rebasin_cli.interpolation.result_file import ResultFile
    from rebasin_cli.interpolation.saving import NetworkFile
    from rebasin_cli.interpolation.sweep import Sweep
    from rebasin_cli.verbs.interpolate import InterpolateOptions

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
    *("class_order", "limit", "batch_size", "skip_corrupt", "amp", "seed"),
)
"""Options that decide the numbers of a sweep, besides the checkpoints and the model."""


FORM_OF_SUMS = 3
"""Changes when the sums that a result file keeps are other ones, so that those of another version are not continued."""


class InterpolationRun:
    """One sweep: check, open, measure statistics, evaluate, save, write. Each step sets what the next ones need."""

    def __init__(self, options: InterpolateOptions, subjects: Subjects, lams: Lams | None) -> None:
        from rebasin_cli.data.ranks import launched
        from rebasin_cli.execution.subject import ModelChoice

        self.options, self.subjects, self.lams = options, subjects, lams
        self.choice = ModelChoice(
            subjects.model,
            subjects.model_args,
            subjects.inputs,
            subjects.input_file,
            options.seed,
            trust_remote_code=options.trust_remote_code,
        )
        self.out = default_result(subjects) if options.out is None else options.out
        self.progress: Progress = (options.progress or Silent()) if launched()[0] == 0 else Silent()
        self.warnings: list[str] = []
        self.adjustments: dict[str, Adjustment] = {}

    def run(self) -> InterpolateResult:
        """All steps. An interrupted run keeps its sums; one that cannot succeed leaves no files."""
        self._check_outputs()
        self._open()
        if self.options.data is None:
            return self._without_data()
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
                if point.at_end and not point.finite:
                    self.file.withdraw()
                    path = self.subjects.curves[name][point.segment + int(point.lam)]  # as loaded, or as treated
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
        return files_of_all(self.subjects.curves, self.options.steps, self.options.save_all, suffix, self.lams)

    @property
    def checkpoint_outputs(self) -> dict[str, Path]:
        """Every checkpoint that will be written, by its role."""
        one = {"network": self.options.save, "best network": self.options.save_best}
        return {what: path for what, path in one.items() if path is not None} | {
            f"network {file.path.name}": file.path for file in self.all_networks
        }

    def _check_outputs(self) -> None:
        """Refuse outputs before any input is read."""
        from rebasin_cli.interpolation.result_file import check_result_file

        options, result = self.options, self._result_output
        others = {**self.checkpoint_outputs, **saved_output(options.save_generated), **options.also_written}
        # What only looks like a path (the name of a loader) does no harm among the inputs.
        data = (optional_path(options.data), optional_path(options.recalibrate))
        named = (self.subjects.aligned, self.subjects.report, self.subjects.input_file, *data)
        inputs = (*self.subjects.checkpoints, *(path for path in named if path is not None))
        check_outputs(result, inputs, force=True, mkdir=options.mkdir)
        check_outputs(others, inputs, force=options.force, mkdir=options.mkdir)
        check_outputs({**result, **others}, (), force=True, mkdir=options.mkdir)
        if result:
            check_result_file(self.out, self._asked(), force=options.force)

    @property
    def _result_output(self) -> dict[str, Path]:
        """Where the result is written; without data there is none."""
        return {} if self.options.data is None else {"result": self.out}

    def _asked(self) -> dict[str, Any]:
        """The part of the run's identity that the command line gives."""
        subjects, options = self.subjects, self.options
        found: dict[str, Any] = {
            "checkpoints": [str(path) for path in subjects.checkpoints],
            "aligned": None if subjects.aligned is None else str(subjects.aligned),
            "model": subjects.model,
            "states": {str(path): list(state) for path, state in subjects.states.items()},
        }
        found |= {name: getattr(options, name) for name in IDENTITY_OPTIONS} | {"lam": list(options.lam)}
        found["class_map"] = None if options.class_map is None else str(options.class_map)
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
            states=self.subjects.states,
            ignore_extra=options.ignore_extra,
            ignore_mismatched_sizes=options.ignore_mismatched_sizes,
            mode="slerp" if options.mode == "slerp" else "lerp",
            steps=options.steps,
            lams=self.lams,
            device=device,
            amp=options.amp,
            progress=self.progress,
        )
        self._check_heads()
        self._check_unchanged()
        outputs = {**self._result_output, **self.checkpoint_outputs}
        check_outputs(outputs, self.models.files, force=True, mkdir=options.mkdir)
        self._open_data()

    def _check_heads(self) -> None:
        """Say which tensors are not interpolated.

        Raises:
            ModelError: networks were to be evaluated, and the outputs of the ends have different sizes.
        """
        from rebasin_cli.execution.shared_weights import named

        for path, apart in self.models.mismatches.items():
            if self.options.data is not None:
                raise ModelError(
                    f"{path}: its outputs are not those of {self.subjects.checkpoints[-1]}, so no loss can be given for"
                    f" both ends of the line: {named(apart)}",
                    path=path,
                    hint="leave --data out: --lam 0.5 --save FILE saves a network with B's head",
                    slug="shapes",
                )
            self.warnings.append(
                f"not interpolated, because their sizes differ: {named(apart)}; the networks between have B's"
            )

    def _check_unchanged(self) -> None:
        """Refuse files that are not those that were aligned."""
        for path, expected in self.subjects.sha256.items():
            if self.models.sha256.get(str(path), expected) != expected:
                raise CheckpointError(
                    f"{path}: has changed since it was aligned (SHA-256 differs from {self.subjects.report})",
                    path=path,
                    hint="align again, or name the checkpoints",
                )
        for path, expected in self.subjects.code.items():
            if sha256_of(path) != expected:
                self.warnings.append(
                    f"{path} has changed since the alignment was verified with it: "
                    "if it builds another model now, align again"
                )

    def _open_data(self) -> None:
        from rebasin_cli.data import DataOptions, open_data
        from rebasin_cli.data.batch_sources import load_callable
        from rebasin_cli.execution.data_inputs import has_no_labels
        from rebasin_cli.execution.evaluation import Measure
        from rebasin_cli.execution.quantizers import quantizer_warning
        from rebasin_cli.execution.recalibration import batch_norms
        from rebasin_cli.interpolation.data import SweepData, classes_of, sweep_view

        options = self.options
        loss, metric = (None if name is None else load_callable(name) for name in (options.loss, options.metric))
        self.measure = Measure(loss, metric)
        classes = classes_of(self.models, labelled=loss is None)
        view, self.maker = sweep_view(
            self.models,
            self.choice,
            options.transform,
            classes,
            stated=self.subjects.input_stated,
            ends=self.subjects.checkpoints,
            progress=self.progress,
        )
        reading = DataOptions(
            options.limit,
            options.seed,
            options.batch_size,
            options.workers,
            options.skip_corrupt,
            class_map=options.class_map,
            class_order=options.class_order,
        )

        def evaluation() -> BatchSource | None:
            return None if options.data is None else open_data(options.data, reading, view)

        self.norms = batch_norms(self.models.slot.module)
        self.statistics_samples: int | None = None
        if options.recalibrate is not None:
            statistics = None
            if self.norms or options.repair:
                shuffled = replace(reading, limit=self._statistics_limit(), shuffle=True)
                statistics = open_data(options.recalibrate, shuffled, view)
            else:
                self.warnings.append("--recalibrate has no effect: no layer of the model has running statistics")
            self.data = SweepData(evaluation(), statistics)
        elif self.norms and options.recalibration and options.data is not None and is_generated(options.data):
            self.data = SweepData(evaluation(), open_data(options.data, replace(reading, shuffle=True), view))
            self.progress.note(
                f"running statistics ({counted_layers(self.norms)}) are re-estimated on the same inputs; training data "
                "would be better: --recalibrate DATA (--no-recalibrate: not at all)"
            )
        elif self.norms and options.recalibration and options.data is not None:
            spec = options.data
            self.data = self._set_apart(lambda reading: open_data(spec, reading, view), reading)
        else:
            self.data = SweepData(evaluation(), None)
            if self.norms:
                self.warnings.append(
                    f"{self._unfit_statistics()}: re-estimate them with --recalibrate TRAINING_DATA, or without data "
                    "with --recalibrate generated"
                )
        if self.data.statistics is not None or self.models.spectral_norms:
            self.models.treat_ends()
        said = quantizer_warning(self.models.slot.module, tuple(self.models.weights.values()))
        if said is not None:
            self.warnings.append(said)
        if self.models.subject.note:
            self.warnings.append(self.models.subject.note)
        check_saving(self.maker, options.save_generated)
        source = self.data.evaluation
        if source is not None:
            self.progress.note(f"data: {source.description}")
            self.warnings += source.notes
            if loss is None and has_no_labels(source):
                self._compare_with_ends()

    def _statistics_limit(self) -> int:
        """Samples for `--recalibrate`: of data, or how many inputs are made where there are none."""
        options = self.options
        if not is_generated(options.recalibrate):
            return options.recalibrate_limit
        usual = type(options).recalibrate_limit
        return statistics_count(options.limit, options.recalibrate_limit, usual, options.data)

    def _compare_with_ends(self) -> None:
        """The data have no labels: outputs are compared with those of the ends.

        Raises:
            DataError: something that labels are needed for was asked for.
        """
        options = self.options
        for flag, given in (("--metric", options.metric), ("--save-best", options.save_best)):
            if given is not None:
                raise DataError(
                    f"{flag} needs targets, and {options.data} has none",
                    path=options.data,
                    hint="give labels, or --loss file.py:function",
                )
        self.data = replace(self.data, unlabelled=True)
        what = "generated inputs have no labels" if is_generated(options.data) else "the data have no labels"
        self.warnings.append(f"{what}: the networks on the line are compared with the outputs of its ends")

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
            "input_file": None if self.subjects.input_file is None else sha256_of(self.subjects.input_file),
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
        from rebasin_cli.interpolation.sweep import summarize

        networks, file, source = self.models.networks, self.file, self.data.evaluation
        assert source is not None
        if self.checkpoint_outputs or not file.evaluation.finished:
            self._measure_statistics(file.statistics)
        self.progress.phase("evaluating")
        sums = evaluate(
            self.models.slot,
            source,
            networks.all,
            self.measure,
            file.evaluation,
            adjustments=self.adjustments,
            unlabelled=self.data.unlabelled,
            ranks=self.ranks,
            progress=self._counter(file.evaluation, len(networks.all), source),
        )
        return summarize(networks, sums, best_by="accuracy" if self.options.best_by == "accuracy" else "loss")

    def _measure_statistics(self, running: RunningSums) -> None:
        """Find the adjustments of all networks, where there are data for that."""
        from rebasin_cli.execution.recalibration import Recalibration

        source, networks = self.data.statistics, self.models.networks
        if source is None:
            return
        self.progress.phase("measuring statistics")
        repair, slot = self.options.repair, self.models.slot
        counter = self._counter(running, len(networks.all if source.generated else networks.adjusted), source)
        corrected = source.generated is not None
        self.adjustments = Recalibration(
            slot, source, networks.all, repair=repair, corrected=corrected, ranks=self.ranks
        ).run(running, counter)

    def _without_data(self) -> InterpolateResult:
        """Save networks that are not evaluated; their statistics are measured where there are data for those."""
        from rebasin_cli.execution.dataset_pass import RunningSums
        from rebasin_cli.interpolation.sweep import NOTHING_EVALUATED

        self._measure_statistics(RunningSums())
        self._save_generated()
        return self._result(NOTHING_EVALUATED, self._save(NOTHING_EVALUATED) if self.ranks.first else ())

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
        if self.checkpoint_outputs and self.ranks.first:
            saved = self._save(sweep)
        self._save_generated()
        if sweep.best is not None and self.options.save_best is not None:
            sweep = replace(sweep, best=replace(sweep.best, path=self.options.save_best))
        result = self._result(sweep, saved)
        self.file.complete(pretty(envelope("interpolate", result, warnings=result.warnings)))
        return result

    def _save(self, sweep: Sweep) -> tuple[Path, ...]:
        """Write the network that was asked for, the best network and all networks.

        Raises:
            DataError: there is no best network by the measure that was asked for.
        """
        from rebasin_cli.interpolation.line import Point, single_point
        from rebasin_cli.interpolation.saving import NetworkFile, rounded_to, save_networks

        self.progress.phase("saving")
        options, best, files = self.options, sweep.best, self.all_networks
        if options.save_best is not None and best is None:
            raise DataError(
                f"--save-best: no network on the line has a finite loss{_and_accuracy(options.best_by)}",
                hint="--best-by accuracy needs class numbers as targets" if options.best_by == "accuracy" else None,
                slug="loss",
            )
        if options.save_best is not None and best is not None:
            files = [NetworkFile(best.curve, Point(best.segment, best.lam, best.mixed), options.save_best), *files]
        single = None if self.lams is None else single_point(self.lams)
        if options.save is not None and single is not None:
            files = [NetworkFile(list(self.subjects.curves)[-1], single, options.save), *files]
        narrow = rounded_to(self.models, {file.curve for file in files if file.point.end is None})
        if narrow:
            self.warnings.append(
                f"interpolated networks are computed in float32 and rounded once to {' and '.join(narrow)} in their "
                "files, like B's"
            )
        return save_networks(
            files, self.models, self.adjustments, seed=options.seed, force=options.force, mkdir=options.mkdir
        )

    def _save_generated(self) -> None:
        if self.ranks.first:
            options = self.options
            save_inputs(self.maker, options.save_generated, force=options.force, mkdir=options.mkdir)

    def _result(self, sweep: Sweep, saved: tuple[Path, ...]) -> InterpolateResult:
        from rebasin_cli.execution.agreement import AGREEMENT, DISTANCE
        from rebasin_cli.interpolation.data import chance_warnings, language_figures

        options, subjects, recalibration = self.options, self.subjects, None
        file = None if options.data is None else self.file
        if self.data.statistics is not None:
            method = "REPAIR" if options.repair else "running statistics, cumulative average"
            method += CORRECTED if self.data.statistics.generated is not None else ""
            recalibration = {"method": method, "data": self.data.statistics.description}
            if self.statistics_samples is not None:
                recalibration["data"] = f"{self.statistics_samples} samples of {options.data} that are not evaluated"
        if not is_generated(options.data):
            self.warnings += chance_warnings(sweep.curves, subjects.curves, cross_entropy=options.loss is None)
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
            data=None if self.data.evaluation is None else self.data.evaluation.description,
            mode=options.mode,
            steps=options.steps,
            lam=options.lam,
            loss=DISTANCE if self.data.unlabelled else options.loss or "cross-entropy",
            metric=AGREEMENT if self.data.unlabelled else options.metric or "accuracy",
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
            inputs=subjects.inputs,
            input_file=subjects.input_file,
            aligned_by=subjects.aligned_by,
            trust_remote_code=options.trust_remote_code,
            generated=self.maker.facts,
            on_generated=self.data.evaluation is not None and self.data.evaluation.generated is not None,
            mismatched=tuple(dict.fromkeys(one.key for apart in self.models.mismatches.values() for one in apart)),
            text=language_figures(self.data, sweep) if options.loss is None else None,
            saved=saved,
            sha256=self.models.sha256,
            run={"states": self._asked()["states"]} if file is None else self.identity,
            progress={} if file is None else file.progress(),
            out=None if file is None else self.out,
            warnings=tuple(self.warnings),
            resumed=file is not None and file.resumed,
        )


def counted_layers(layers: Mapping[str, object]) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def _and_accuracy(best_by: str) -> str:
    return " and an accuracy" if best_by == "accuracy" else ""
