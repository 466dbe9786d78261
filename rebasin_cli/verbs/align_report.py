"""What an alignment was asked for, what it found, and the files that it writes beside the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.execution.pair import Pair, Source
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.soundness import SoundnessCheck
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.matching.method import Matching
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.verbs.align_result import AlignResult, Change, MovedGroup, Objective
from rebasin_cli.verbs.cost import peak_rss_bytes
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.output_paths import OutputFiles
from rebasin_cli.verbs.saved_permutations import SavedPermutations
from rebasin_cli.verbs.verification import spec_warnings
from rebasin_cli.verbs.versions import versions


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """Everything the user asked for; the fields are explained at `align`."""

    a: Source
    b: Source
    choice: ModelChoice
    matching: Matching
    files: OutputFiles
    spec_file: Path | None
    pins: tuple[str, ...]
    rules: tuple[Path, ...]
    ignore_extra: bool
    strict: bool
    dry_run: bool
    force: bool
    mkdir: bool
    cache: bool = True


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What the steps of a run found, for its result and its report.

    Attributes:
        before, after: B's closeness to A, as it was and permuted.
        function: the check that the function is unchanged; soundness: that of the spec.
        sha256: of `a`, `b` and `out`; the last is None after a dry run.
        seconds: by phase.
        provenance: the metadata of the output.
    """

    request: AlignRequest
    pair: Pair
    understood: Understanding
    match: MatchResult
    before: Closeness
    after: Closeness
    function: FunctionCheck
    soundness: SoundnessCheck
    device: str
    sha256: Mapping[str, str | None]
    seconds: Mapping[str, float]
    provenance: Mapping[str, str]


def compose(run: FinishedRun) -> AlignResult:
    """The result of a finished run."""
    request, match, understood = run.request, run.match, run.understood
    files, written = request.files, not request.dry_run
    groups = _moved_groups(run)
    return AlignResult(
        a=request.a.path,
        b=request.b.path,
        out=files.out if written else None,
        report=files.report if written else None,
        permutations=files.permutations if written else None,
        spec=files.spec if written else None,
        model=request.choice.spec,
        model_args=run.pair.subject.factory.args,
        input=understood.example.describe(),
        inputs=tuple(request.choice.inputs),
        input_file=request.choice.input_file,
        method=match.method,
        start=match.start,
        seed=match.seed,
        device=run.device,
        passes=match.passes,
        converged=match.converged,
        relative_tolerance=match.relative_tolerance,
        already_aligned=match.already_aligned,
        objective=Objective(
            match.objective_before,
            match.objective_after,
            tuple(match.per_pass) if match.criterion.name == PLAIN else (),
        ),
        criterion=match.criterion,
        cosine=Change(run.before.cosine, run.after.cosine),
        distance=Change(run.before.distance, run.after.distance),
        groups=groups,
        moved_units=sum(group.moved for group in groups),
        units=understood.spec.units,
        parameters=run.pair.subject.elements,
        free_fraction=understood.free_fraction,
        unknown_ops=understood.unknown_ops,
        verified=run.function,
        seconds=run.seconds,
        peak_rss_bytes=peak_rss_bytes(),
        sha256=run.sha256,
        versions=versions(),
        warnings=_warnings(run),
    )


def write_beside(result: AlignResult, run: FinishedRun) -> None:
    """Write the report and, where asked for, the permutations and the spec; each of them atomically."""
    files, force = run.request.files, run.request.force
    if run.request.mkdir:
        for path in files.named().values():
            path.parent.mkdir(parents=True, exist_ok=True)
    if files.permutations is not None:
        saved = SavedPermutations(
            run.match.permutations,
            run.understood.spec,
            run.pair.subject.shapes,
            run.pair.subject.ties,
            run.provenance,
        )
        write_text_atomically(files.permutations, saved.dumps() + "\n", force)
    if files.spec is not None:
        write_text_atomically(files.spec, json.dumps(run.understood.spec.to_json(), indent=1) + "\n", force)
    write_text_atomically(files.report, pretty(envelope("align", result, warnings=result.warnings)), force)


def _moved_groups(run: FinishedRun) -> tuple[MovedGroup, ...]:
    moved = {
        name: sum(1 for place, unit in enumerate(perm.tolist()) if place != unit)
        for name, perm in run.match.permutations.items()
    }
    return tuple(MovedGroup(group.name, group.size, moved.get(group.name, 0)) for group in run.understood.spec.groups)


def _warnings(run: FinishedRun) -> tuple[str, ...]:
    """Warnings about a run that succeeded."""
    said = []
    if run.pair.subject.note:
        said.append(run.pair.subject.note)
    said += [f"no rule for {op}: its axes are not permuted" for op in run.understood.unknown_ops]
    for weights in (run.pair.a, run.pair.b):
        extra = weights.keys_in_file.extra
        if extra:
            said.append(f"{weights.checkpoint.path}: {len(extra)} tensors that the model does not have were ignored")
    if not run.understood.spec.groups:
        said.append("no axis of this model can be permuted without changing its function")
    if not run.match.converged:
        passes = "1 pass" if run.match.passes == 1 else f"{run.match.passes} passes"
        said.append(f"the matching stopped after {passes} without converging")
    if run.function.left_out:
        said.append(f"the function was not verified by running the networks: {run.function.left_out}")
    said += spec_warnings(run.soundness)
    return tuple(said)
