"""The sweep that `align` is asked to run straight after it: the same files and numbers as the two verbs in turn."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rebasin_cli.errors import DataError, OutputError, UsageError
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.align_reports import result_beside
from rebasin_cli.verbs.output_paths import OutputFiles, check_outputs

if TYPE_CHECKING:  # only checks run before the alignment, and they need no torch
    from rebasin_cli.verbs.align_result import AlignResult
    from rebasin_cli.verbs.interpolate_result import InterpolateResult


@dataclass(frozen=True, slots=True)
class SweepAfter:
    """What `interpolate` is told beside the report; the fields are explained there."""

    data: str
    steps: int
    recalibrate: str | None
    repair: bool
    limit: int | None
    batch_size: int
    device: str
    seed: int
    key: str | None
    ema: bool
    ignore_extra: bool
    force: bool

    def check(self, files: OutputFiles, checkpoints: tuple[Path, Path], *, mkdir: bool) -> None:
        """Refuse before the long alignment what the sweep would refuse after it.

        Raises:
            UsageError: REPAIR without data.
            DataError: a path to data leads nowhere.
            OutputError: the sweep's result exists.
        """
        if self.repair and self.recalibrate is None:
            raise UsageError(
                "--repair needs data to measure on", hint="give images of the training set with --recalibrate DATA"
            )
        for data in (self.data, self.recalibrate):
            if data is not None and ":" not in data and not os.path.exists(data):
                raise DataError(f"{data}: no such file or directory", path=data)
        result = result_beside(files.report)
        if result.exists() and not self.force:
            raise OutputError(
                f"{result}: the result of the sweep exists",
                path=result,
                hint="choose another name with -o, or --force to overwrite it",
                slug="exists",
            )
        check_outputs({**files.named(), "result of the sweep": result}, checkpoints, force=True, mkdir=mkdir)

    def run(self, aligned: AlignResult, progress: Progress) -> InterpolateResult:
        """Both curves of the alignment that was just written.

        Raises:
            RebasinError: of the kind, and with the exit code, that fits what went wrong. The alignment stays.
        """
        from rebasin_cli.verbs.interpolate import interpolate

        assert aligned.report is not None
        return interpolate(
            report=aligned.report,
            data=self.data,
            steps=self.steps,
            model_args=aligned.model_args,
            inputs=aligned.inputs,
            input_file=aligned.input_file,
            recalibrate=self.recalibrate,
            repair=self.repair,
            limit=self.limit,
            batch_size=self.batch_size,
            device=self.device,
            seed=self.seed,
            key=self.key,
            ema=self.ema,
            ignore_extra=self.ignore_extra,
            force=self.force,
            progress=progress,
        )

    def words(self, report: Path) -> list[str]:
        """The command that does this sweep alone, to go on where this one stopped."""
        said = ["rebasin", "interpolate", "--report", str(report), "--data", self.data, "--steps", str(self.steps)]
        said += [] if self.recalibrate is None else ["--recalibrate", self.recalibrate]
        said += [] if self.limit is None else ["--limit", str(self.limit)]
        said += [] if self.key is None else ["--key", self.key]
        said += ["--batch-size", str(self.batch_size), "--device", self.device, "--seed", str(self.seed)]
        flags = {"--repair": self.repair, "--ema": self.ema, "--ignore-extra": self.ignore_extra}
        return said + [flag for flag, given in flags.items() if given]
