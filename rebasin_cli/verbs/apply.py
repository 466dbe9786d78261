"""`apply`: permutations that were found once, applied to another checkpoint (an EMA copy, a later epoch)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli import __version__
from rebasin_cli.errors import CheckpointError, ModelError, RebasinError
from rebasin_cli.options import AnyPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.output_paths import check_outputs
from rebasin_cli.verbs.shared_options import ModelCode, Siblings, StateInFile, Writing
from rebasin_cli.verbs.siblings import Network, Sibling, plan_siblings

if TYPE_CHECKING:
    from rebasin_cli.checkpoint.checkpoint import Checkpoint
    from rebasin_cli.execution.subject import Subject
    from rebasin_cli.execution.weights import Weights
    from rebasin_cli.verbs.saved_permutations import SavedPermutations


@dataclass(frozen=True, slots=True)
class ApplyResult(Result):
    """What was written; every tensor of it was compared with the checkpoint's, rearranged, bit for bit.

    `state` is where in the file the weights were found; None where they are the whole file.
    """

    permutations: Path
    checkpoint: Path
    out: Path
    groups: int
    moved_groups: int
    tensors: int
    state: str | None
    siblings: tuple[Sibling, ...]
    sha256: Mapping[str, str]
    provenance: Mapping[str, str]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]


@options_class
class ApplyOptions(ModelCode, StateInFile, Siblings, Writing):
    """The options of `apply`."""

    permutations: AnyPath = argument(
        "Alignment, written by 'rebasin align --save-alignment'.", metavar="ALIGNMENT", kw_only=False
    )
    checkpoint: AnyPath = argument("Checkpoint to permute. It is not modified.", metavar="CHECKPOINT", kw_only=False)
    model: str | None = option(
        "Model, for a file that only its loader can read, where the one that was aligned cannot be built again.",
        group="Model",
        short="-m",
        metavar="SPEC",
        default=None,
        completes="model",
        shown_default="the one that was aligned",
    )
    out: AnyPath = option("Output file.", group="Output", short="-o", metavar="FILE", kw_only=False)
    progress: Progress | None = field(default=None, repr=False, compare=False)


def run_apply(options: ApplyOptions) -> ApplyResult:
    """Apply saved permutations to a checkpoint of the same model and write it in its own format.

    The alignment carries all that is needed, so no model is built where the checkpoint's tensors have the names and
    shapes of the model for which the permutations were found. Where the model's loader changes them, the model that the
    alignment names is built, or `model`.

    Raises:
        RebasinError: a file cannot be used, or the output cannot be written. Then nothing was written.
    """
    check_inputs((options.checkpoint,), others=(options.permutations,))

    from rebasin_cli.checkpoint.write import bytes_needed, check_output, keeps_siblings, notes_on_output
    from rebasin_cli.execution.closeness import check_finite
    from rebasin_cli.execution.pair import check_ties
    from rebasin_cli.verbs.cost import PhaseClock
    from rebasin_cli.verbs.leftovers import find_leftovers
    from rebasin_cli.verbs.permuted_copy import Rearrangement, write_permuted
    from rebasin_cli.verbs.saved_permutations import SavedPermutations

    listener = options.progress or Silent()
    clock = PhaseClock("read", "write")
    saved_path, source_path, out_path = options.permutations, options.checkpoint, options.out
    check_outputs(
        {"output": out_path},
        [saved_path, source_path],
        force=options.force,
        mkdir=options.mkdir,
        replaceable=source_path,
    )
    listener.phase("reading")
    with clock.phase("read"):
        saved = SavedPermutations.load(saved_path)
        opened = _open(source_path, options, saved.state)
        source = _weights(opened, saved, options, listener)
        check_output(
            out_path,
            [*opened.files, saved_path],
            force=options.force,
            bytes_needed=bytes_needed(opened, out_path),
            mkdir=options.mkdir,
            like=opened,
        )
        check_ties(source, saved.ties)
        for name in source:
            buffer = bool(saved.parameters) and name not in saved.parameters
            check_finite(source[name], source.file_name(name), opened.path, infinite=buffer)
        leftovers = find_leftovers(
            {key: tuple(opened.infos[key].shape) for key in source.keys_in_file.extra}, {}, saved.spec, saved.shapes
        )
        leftovers.refuse(opened.path, tensors=len(source), strict=False, ignore_extra=options.ignore_extra)
        note = leftovers.note(opened.path)
        if note is not None:
            listener.note(note)
        rearrangement = Rearrangement(saved.spec, saved.permutations, source, saved.ties, saved.maps, saved.frame)
        moving = rearrangement.moving
        network = Network(saved.shapes, saved.ties, saved.parameters, saved.spec, moving)
        plan = plan_siblings(opened, source.keys_in_file, network)
        if not rearrangement.permutes:
            plan = plan.copies_only()
        kept = not options.drop_siblings and keeps_siblings(opened, out_path)
        plan = plan if kept else plan.without_any()
    listener.phase("writing")
    with clock.phase("write"):
        provenance = {**saved.provenance, "rebasin.version": __version__, "rebasin.sha256.source": opened.sha256()}
        digest = write_permuted(
            source,
            rearrangement,
            out_path,
            provenance=provenance,
            force=options.force,
            mkdir=options.mkdir,
            siblings=plan,
            alone=options.drop_siblings,
        )
    said = [*opened.notes, *notes_on_output(opened, out_path)]
    return ApplyResult(
        permutations=saved_path,
        checkpoint=source_path,
        out=out_path,
        groups=len(saved.permutations if saved.maps is None else saved.spec.groups),
        moved_groups=len(moving),
        tensors=len(opened.infos),
        state=".".join(opened.wrapper) if opened.wrapper else None,
        siblings=plan.siblings,
        sha256={"checkpoint": provenance["rebasin.sha256.source"], "out": digest},
        provenance=saved.provenance,
        seconds=clock.seconds(),
        warnings=(
            *said,
            *(leftovers.warnings(opened.path, ignore_extra=options.ignore_extra) if moving else ()),
            *(f"{opened.path}: {sentence}" for sentence in plan.warnings),
        ),
    )


def _weights(opened: Checkpoint, saved: SavedPermutations, options: ApplyOptions, listener: Progress) -> Weights:
    """The checkpoint's tensors by the names of the model: by names alone, or as the model's loader loads them.

    Raises:
        ModelError: they do not fit; or the loader converts files and the model that was aligned cannot be built.
    """
    from rebasin_cli.checkpoint.keys import match_keys
    from rebasin_cli.execution.weights import Weights

    if options.model is not None:
        subject = _subject(options.model, options.model_args or {}, saved, options)
        return Weights.of(opened, subject, ignore_extra=options.ignore_extra)
    by_name: ModelError | None = None
    if not saved.converted:
        try:
            return Weights(opened, match_keys(opened, saved.shapes, ties=saved.ties, ignore_extra=options.ignore_extra))
        except ModelError as error:  # perhaps a file of another layout, which the loader knows
            by_name = error
    if saved.model is None:
        raise by_name or _needs_model(options, "the alignment does not name it")
    try:
        spec = saved.model.found_from(options.permutations)
        subject = _subject(spec, {**saved.model.args, **(options.model_args or {})}, saved, options)
    except RebasinError as error:
        advice = f" ({error.hint})" if error.hint else ""
        why = f"{saved.model.spec} cannot be built: {error.message}{advice}"
        raise by_name or _needs_model(options, why) from error
    try:
        found = Weights.of(opened, subject, ignore_extra=options.ignore_extra)
    except ModelError as error:
        raise by_name or error from error
    listener.note(f"{opened.path}: loaded as {spec} loads it")
    return found


def _needs_model(options: ApplyOptions, why: str) -> ModelError:
    return ModelError(
        f"{options.permutations}: the model's loader converts what a file holds, so the model is needed; {why}",
        hint="give the model that was aligned with --model",
        slug="model-needed",
    )


def _subject(spec: str, args: Mapping[str, Any], saved: SavedPermutations, options: ApplyOptions) -> Subject:
    """The model that was aligned, without weights.

    Raises:
        ModelError: it cannot be built, or is another one.
    """
    from rebasin_cli.execution.subject import ModelChoice, open_subject

    subject = open_subject(ModelChoice(spec, dict(args), trust_remote_code=options.trust_remote_code))
    if subject.shapes != saved.shapes:
        raise ModelError(f"{spec}: not the model for which {options.permutations} was found", slug="other-model")
    return subject


def _open(path: Path, options: ApplyOptions, aligned: tuple[str | None, bool]) -> Checkpoint:
    """The state that the user names; else the one that was aligned, where this file has it; else the only one."""
    from rebasin_cli.execution.pair import Source

    if options.key is None and not options.ema and aligned != (None, False):
        with suppress(CheckpointError):
            return Source(path, *aligned).open()
    return Source(path, options.key, options.ema).open()


apply = verb(ApplyOptions, run_apply)
