"""What an alignment leaves to be read: its result, the report beside the output, and the files that were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.verbs.align_result import AlignResult, Change, MovedGroup, Objective
from rebasin_cli.verbs.cost import peak_rss_bytes
from rebasin_cli.verbs.document import envelope, pretty
from rebasin_cli.verbs.proof import warnings_of
from rebasin_cli.verbs.saved_permutations import SavedPermutations
from rebasin_cli.verbs.versions import versions

if TYPE_CHECKING:
    from rebasin_cli.verbs.alignment import Alignment


def compose(run: Alignment) -> AlignResult:
    """The result of a run whose steps are all done."""
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
        device=str(run.device),
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
        seconds=run.clock.seconds(),
        peak_rss_bytes=peak_rss_bytes(),
        sha256=dict(run.sha256),
        versions=versions(),
        warnings=_warnings(run),
    )


def write_beside(result: AlignResult, run: Alignment) -> None:
    """Write the report and, where asked for, the permutations and the spec; each of them whole or not at all."""
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
            run.provenance(),
        )
        write_text_atomically(files.permutations, saved.dumps() + "\n", force)
    if files.spec is not None:
        write_spec(files.spec, run, force)
    write_text_atomically(files.report, pretty(envelope("align", result, warnings=result.warnings)), force)


def write_spec(path: Path, run: Alignment, force: bool) -> None:
    write_text_atomically(path, json.dumps(run.understood.spec.to_json(), indent=1) + "\n", force)


def _moved_groups(run: Alignment) -> tuple[MovedGroup, ...]:
    moved = {
        name: sum(1 for place, unit in enumerate(perm.tolist()) if place != unit)
        for name, perm in run.match.permutations.items()
    }
    return tuple(MovedGroup(group.name, group.size, moved.get(group.name, 0)) for group in run.understood.spec.groups)


def _warnings(run: Alignment) -> tuple[str, ...]:
    """What the user should know although the run succeeded."""
    said = []
    if run.pair.subject.note:
        said.append(run.pair.subject.note)
    said += [f"no rule for {op}: what it touches keeps its order" for op in run.understood.unknown_ops]
    for weights in (run.pair.a, run.pair.b):
        extra = weights.keys_in_file.extra
        if extra:
            said.append(f"{weights.checkpoint.path}: {len(extra)} tensors that the model does not have were ignored")
    if not run.understood.spec.groups:
        said.append("nothing in this model can be reordered without changing its function")
    if not run.match.converged:
        said.append(f"the matching stopped after {run.match.passes} passes, before it converged")
    if run.function.left_out:
        said.append(f"that the function is unchanged was not checked by running it: {run.function.left_out}")
    said += warnings_of(run.soundness)
    return tuple(said)
