"""The steps of one sweep, in order: check, open, measure statistics, evaluate, save, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rebasin_cli.data.ranks import Ranks, launched, ranks_for
from rebasin_cli.errors import DataError, ModelError
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.interpolation.adjustment import Adjustment
from rebasin_cli.interpolation.batch_norm import batch_norms
from rebasin_cli.interpolation.evaluate import evaluate
from rebasin_cli.interpolation.ledger import Ledger
from rebasin_cli.interpolation.path import Mode
from rebasin_cli.interpolation.recalibrate import Recalibration
from rebasin_cli.interpolation.sweep import Sweep, summarize
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.interpolate_data import SweepData
from rebasin_cli.verbs.interpolate_file import ResultFile, check_result_file
from rebasin_cli.verbs.interpolate_models import LoadedModels
from rebasin_cli.verbs.interpolate_result import InterpolateResult
from rebasin_cli.verbs.interpolate_save import planned_files, save_networks
from rebasin_cli.verbs.output_paths import check_outputs, optional_path


@dataclass(frozen=True, slots=True)
class InterpolateRequest:
    """Everything the user asked for; the fields are explained at `interpolate`."""

    checkpoints: tuple[Path, ...]
    aligned: Path | None
    report: Path | None
    choice: ModelChoice
    input_stated: bool
    data: str
    steps: int
    mode: Mode
    loss: str | None
    metric: str | None
    recalibrate: str | None
    recalibrate_limit: int
    repair: bool
    transform: str | None
    limit: int | None
    batch_size: int
    workers: int
    skip_corrupt: bool
    device: str
    amp: bool
    seed: int
    key: str | None
    ema: bool
    ignore_extra: bool
    out: Path
    save_best: Path | None
    save_all: Path | None
    plot: Path | None
    force: bool
    mkdir: bool

    @property
    def curves(self) -> dict[str, tuple[Path, ...]]:
        """The files along each curve."""
        naive = {"naive": self.checkpoints}
        return naive if self.aligned is None else {**naive, "matched": (*self.checkpoints[:-1], self.aligned)}

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that is named to be read; what only looks like one (a loader's name) does no harm here."""
        read = (self.aligned, self.report, self.choice.input_file, *map(optional_path, (self.data, self.recalibrate)))
        return (*self.checkpoints, *(path for path in read if path is not None))

    def asked(self) -> dict[str, Any]:
        """What decides the numbers, as far as the command line tells."""
        return {
            "checkpoints": [str(path) for path in self.checkpoints],
            "aligned": None if self.aligned is None else str(self.aligned),
            "model": self.choice.spec,
            "data": self.data,
            "steps": self.steps,
            "mode": self.mode,
            "loss": self.loss,
            "metric": self.metric,
            "recalibrate": self.recalibrate,
            "recalibrate_limit": self.recalibrate_limit if self.recalibrate else None,
            "repair": self.repair,
            "transform": self.transform,
            "limit": self.limit,
            "batch_size": self.batch_size,
            "skip_corrupt": self.skip_corrupt,
            "amp": self.amp,
            "seed": self.seed,
        }


class SweepRun:
    """One run; every step leaves behind what the next ones need."""

    def __init__(self, request: InterpolateRequest, progress: Progress) -> None:
        self.request = request
        self.progress = progress if launched()[0] == 0 else Silent()
        self.warnings: list[str] = []

    def run(self) -> InterpolateResult:
        """All steps. An interrupted run keeps its sums; one that cannot succeed leaves nothing behind."""
        self._check_outputs()
        _, world, local = launched()
        device = resolve_device(self.request.device)
        if device.type == "cuda" and world > 1 and device.index is None:
            device = resolve_device(f"cuda:{local}")
        self.ranks = ranks_for(device)
        self.progress.phase("reading")
        if self.request.report is not None:
            self.progress.note(f"taking the alignment that {self.request.report} reports")
        self.models = LoadedModels.open(self.request, device, self.progress)
        self._check_parts()
        self.data = SweepData.open(self.request, self.models)
        self._say_what_was_chosen()
        self.file = self._result_file(self.ranks)
        try:
            sweep = self._measure(self.file)
        except (DataError, ModelError):
            self.file.withdraw()
            raise
        except BaseException:
            self.file.keep()
            raise
        return self._finish(sweep)

    def _check_outputs(self) -> None:
        """What can be refused before a byte is read."""
        request = self.request
        others = planned_files(request)
        if request.plot is not None:
            others["plot"] = request.plot
        check_outputs({"result": request.out}, request.inputs, force=True, mkdir=request.mkdir)
        check_outputs(others, request.inputs, force=request.force, mkdir=request.mkdir)
        check_outputs({"result": request.out, **others}, (), force=True, mkdir=request.mkdir)
        check_result_file(request.out, request.asked(), force=request.force)

    def _check_parts(self) -> None:
        """The files that a checkpoint turned out to consist of are inputs too."""
        outputs = {"result": self.request.out, **planned_files(self.request)}
        parts = [file for held in self.models.weights.values() for file in held.checkpoint.files]
        check_outputs(outputs, parts, force=True, mkdir=self.request.mkdir)

    def _say_what_was_chosen(self) -> None:
        if self.models.subject.note:
            self.warnings.append(self.models.subject.note)
        self.progress.note(f"data: {self.data.evaluation.description}")
        norms = batch_norms(self.models.body.module)
        if norms and self.request.recalibrate is None:
            self.warnings.append(
                f"{len(norms)} BatchNorm layers have statistics that do not fit between the checkpoints: "
                "measure them with --recalibrate TRAINING_DATA (and --repair)"
            )

    def _result_file(self, ranks: Ranks) -> ResultFile:
        run = {**self.request.asked(), **self.models.identity(), **self.data.identity()}
        file = ResultFile(self.request.out, run, force=self.request.force, writes=ranks.first)
        states = ranks.shared((file.evaluation.to_json(), file.statistics.to_json(packed=True), file.resumed))
        file.evaluation, file.statistics = Ledger.from_json(states[0]), Ledger.from_json(states[1])
        file.resumed = bool(states[2])
        self.run_identity = run
        file.listen()
        if file.resumed:
            done = len(file.evaluation.batches) and min(file.evaluation.batches.values())
            whole = "all of its sums" if file.evaluation.finished else f"the sums up to batch {done}"
            self.progress.note(f"resuming {self.request.out}: it holds {whole}")
        return file

    def _measure(self, file: ResultFile) -> Sweep:
        saves = self.request.save_best is not None or self.request.save_all is not None
        if self.data.statistics is not None and (saves or not file.evaluation.finished):
            self.progress.phase("measuring statistics")
            self.adjustments = self.recalibration.run(
                file.statistics, self._counter(file.statistics, self.data.statistics.batch_count)
            )
        self.progress.phase("evaluating")
        sums = evaluate(
            self.models.body,
            self.data.evaluation,
            self.models.places,
            self.data.measure,
            file.evaluation,
            adjustments=self.adjustments,
            ranks=self.ranks,
            progress=self._counter(file.evaluation, self.data.evaluation.batch_count),
        )
        return summarize(self.models.places, sums)

    adjustments: dict[str, Adjustment] | None = None

    @cached_property
    def recalibration(self) -> Recalibration:
        assert self.data.statistics is not None
        return Recalibration(
            self.models.body, self.data.statistics, self.models.places, repair=self.request.repair, ranks=self.ranks
        )

    def _counter(self, ledger: Ledger, count: int | None) -> Callable[[int, str], None]:
        """Tells how many (network, batch) pairs are done."""

        def tell(stop: int, name: str) -> None:
            networks = len(self.models.places.all if ledger is self.file.evaluation else self.models.places.inner)
            bound = float("inf") if count is None else count
            done = sum(min(batches, bound) for batches in ledger.batches.values())
            self.progress.step(done, None if count is None else networks * count, name)

        return tell

    def _finish(self, sweep: Sweep) -> InterpolateResult:
        """Save networks, write the result."""
        request = self.request
        saved: tuple[Path, ...] = ()
        if (request.save_best or request.save_all) and self.ranks.first:
            self.progress.phase("saving")
            saved = save_networks(request, self.models, sweep, self.adjustments or {})
        if sweep.best is not None and request.save_best is not None:
            sweep = replace(sweep, best=replace(sweep.best, path=request.save_best))
        result = self._compose(sweep, saved)
        self.file.complete(pretty(envelope("interpolate", result, warnings=result.warnings)))
        return result

    def _compose(self, sweep: Sweep, saved: tuple[Path, ...]) -> InterpolateResult:
        request = self.request
        if any(not point.finite for points in sweep.curves.values() for point in points):
            self.warnings.append("some networks on the line give values that are not finite")
        if sweep.skipped:
            self.warnings.append(f"{sweep.skipped} samples could not be read and were left out")
        return InterpolateResult(
            a=request.checkpoints[0],
            b=request.checkpoints[-1],
            aligned=request.aligned,
            checkpoints=request.checkpoints,
            report=request.report,
            model=request.choice.spec,
            model_args=dict(self.models.subject.factory.args),
            data=self.data.evaluation.description,
            mode=request.mode,
            steps=request.steps,
            loss=request.loss or "cross-entropy",
            metric=request.metric or "accuracy",
            recalibration=self._recalibration_in_words(),
            seed=request.seed,
            amp=request.amp,
            n=sweep.n,
            skipped=sweep.skipped,
            curves=sweep.curves,
            barrier=sweep.barrier,
            best=sweep.best,
            saved=saved,
            sha256=self.models.sha256,
            run=self.run_identity,
            progress=self.file.progress(),
            out=request.out,
            warnings=tuple(self.warnings),
            resumed=self.file.resumed,
        )

    def _recalibration_in_words(self) -> dict[str, Any] | None:
        if self.data.statistics is None:
            return None
        method = "REPAIR" if self.request.repair else "BatchNorm, cumulative average"
        return {"method": method, "data": self.data.statistics.description}
