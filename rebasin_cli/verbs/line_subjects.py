"""The checkpoints that a line goes through, and their model: named by the user, or by an align report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import split_name
from rebasin_cli.errors import UsageError
from rebasin_cli.verbs.align_reports import newest_report, read_report, result_beside, states_of

if TYPE_CHECKING:
    from rebasin_cli.verbs.interpolate import InterpolateOptions


@dataclass(frozen=True, slots=True)
class Subjects:
    """The checkpoints of a sweep and their model, as named by the user or by an align report.

    Attributes:
        states: which state dict of each file was aligned, as (key, ema).
        sha256: of each file when it was aligned.
        code: SHA-256 of the Python files that the alignment depended on.
        input_stated: the user stated the input, here or when the files were aligned.
        aligned_by: the matching method; None without a report.
    """

    checkpoints: tuple[Path, ...]
    aligned: Path | None
    report: Path | None
    model: str
    model_args: Mapping[str, Any]
    inputs: tuple[str, ...]
    states: Mapping[Path, tuple[str | None, bool]] = field(default_factory=dict)
    sha256: Mapping[Path, str] = field(default_factory=dict)
    code: Mapping[Path, str] = field(default_factory=dict)
    input_file: Path | None = None
    input_stated: bool = False
    aligned_by: str | None = None

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
        states = states_of(checkpoints, options.key, options.ema)
        return Subjects(
            checkpoints,
            None,
            None,
            model,
            model_args,
            options.inputs,
            states,
            input_file=options.input_file,
            input_stated=stated,
        )
    found = newest_report(Path()) if options.report is None else read_report(options.report)
    model_args, inputs, input_file = {**found.model_args, **model_args}, options.inputs, options.input_file
    if not inputs and input_file is None:
        inputs, input_file = found.inputs, found.input_file
    named = options.key is not None or options.ema
    states = dict.fromkeys(found.states, (options.key, options.ema)) if named else dict(found.states)
    return Subjects(
        (found.a, found.b),
        found.out,
        found.path,
        model or found.model,
        model_args,
        inputs,
        states,
        found.sha256,
        found.code,
        input_file,
        stated or found.input_stated,
        found.method,
    )


def default_result(subjects: Subjects) -> Path:
    """`<report's stem>-interpolation.json` beside the report; without one, named after the last checkpoint, here."""
    if subjects.report is not None:
        return result_beside(subjects.report)
    return Path(f"{split_name(subjects.checkpoints[-1])[0]}-interpolation.json")
