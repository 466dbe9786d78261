"""Two checkpoints of one model, opened by their headers alone and held against it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.foreign import refuse_quantized
from rebasin_cli.checkpoint.read import open_checkpoint
from rebasin_cli.checkpoint.state_dicts import JOINED, SeveralStateDicts
from rebasin_cli.errors import CheckpointError, ModelError, quoted
from rebasin_cli.execution.closeness import check_finite, same_bits
from rebasin_cli.execution.shared_weights import Mismatch, mismatches_of, shared_weights, sizes_differ
from rebasin_cli.execution.subject import ModelChoice, Subject, open_subject
from rebasin_cli.execution.weights import Weights
from rebasin_cli.model.state import parameter_keys
from rebasin_cli.progress import Progress


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint as the user names it: the file, and which of the state dicts inside it.

    Args:
        path: a file, or the directory of a sharded checkpoint.
        key: where in the file the state dict lies; None to find it.
        ema: take the exponential moving average where the file holds one.
    """

    path: Path
    key: str | None = None
    ema: bool = False

    def open(self) -> Checkpoint:
        """Open the file; several state dicts of equal rank are read as one, which has to fit the model as a whole."""
        try:
            opened = open_checkpoint(self.path, key=self.key, ema=self.ema)
        except SeveralStateDicts as several:
            opened = open_checkpoint(self.path, key=JOINED)
            opened.ambiguity = several
        refuse_quantized(opened)
        return opened

    @property
    def chosen(self) -> bool:
        """Whether one of several state dicts was asked for."""
        return self.key is not None or self.ema


def open_sources(sources: Sequence[Source]) -> list[Checkpoint]:
    """Open several files; a file of one state dict is taken whole, where another has the one that was asked for.

    `--key generator` names a part of a GAN's checkpoint; the generator's own file, compared with it, has no such part.

    Raises:
        CheckpointError: a file cannot be read safely, or has not what was asked for.
    """
    wanted = {(source.key, source.ema) for source in sources if source.chosen}
    plain = {source: _plain(source) for source in sources if len(wanted) == 1 and len(sources) > 1}
    if wanted and all(plain.get(source) is not None for source in sources if source.chosen):
        plain = {}  # none of them has it
    return [plain.get(source) or source.open() for source in sources]


def _plain(source: Source) -> Checkpoint | None:
    """The file's only state dict, if it has not what was asked for, but is one, and nothing lies beside it."""
    if not source.chosen:
        return None
    try:
        source.open()
    except CheckpointError:
        pass
    else:
        return None
    try:
        opened = open_checkpoint(source.path)
    except CheckpointError:
        return None
    return None if opened.wrapper or opened.others else opened


@dataclass(frozen=True, slots=True)
class Pair:
    """A, which is kept, and B, which is permuted, through the names of their model."""

    a: Weights
    b: Weights
    subject: Subject
    mismatches: tuple[Mismatch, ...] = ()


def open_pair(
    a: Source, b: Source, choice: ModelChoice, *, ignore_extra: bool = False, ignore_mismatched_sizes: bool = False
) -> Pair:
    """Open both files and check keys and shapes against the model; no tensor is read.

    Args:
        ignore_mismatched_sizes: leave A's tensors of other sizes than B's out, as `SharedWeights` does.

    Raises:
        CheckpointError: a file cannot be read safely.
        ModelError: the model cannot be built, or keys or shapes do not fit it.
    """
    opened_a, opened_b = open_sources((a, b))
    subject = open_subject(choice, file_shapes(opened_b))
    try:
        weights = Weights.of(opened_b, subject, ignore_extra=ignore_extra)
    except ModelError:
        if not mismatches_of(opened_a, opened_b, subject):  # A fits the model: perhaps B has another vocabulary
            mismatches_of(opened_b, opened_a, subject)
        raise
    hint = None if ignore_mismatched_sizes else "if only the heads differ, --ignore-mismatched-sizes aligns the rest"
    shared, apart = open_beside(opened_a, weights, choice, subject, ignore_extra=ignore_extra, refused=hint)
    return Pair(shared, weights, without(subject, apart), apart)


def open_beside(
    a: Checkpoint, b: Weights, choice: ModelChoice, subject: Subject, *, ignore_extra: bool, refused: str | None
) -> tuple[Weights, tuple[Mismatch, ...]]:
    """A through the names of the model that has B's shapes, and A's tensors of other sizes, for which B's stand in.

    Args:
        refused: such tensors are an error, with this hint.

    Raises:
        ModelError: A does not fit the model.
    """
    try:
        return Weights.of(a, subject, ignore_extra=ignore_extra), ()
    except ModelError as error:  # shapes are compared only now: a loader may change them
        apart = mismatches_of(a, b.checkpoint, subject)
        if not apart:
            raise
        if refused is not None:
            raise sizes_differ(a, apart, refused) from error
    return shared_weights(a, b, choice, apart, subject, ignore_extra=ignore_extra), apart


def without(subject: Subject, mismatches: Sequence[Mismatch]) -> Subject:
    """The model, of which tensors of other sizes are no parameters that are compared."""
    differ = {one.key for one in mismatches}
    return replace(subject, parameters=tuple(key for key in subject.parameters if key not in differ))


def file_shapes(checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Shape by the file's own keys."""
    return {key: tuple(info.shape) for key, info in checkpoint.infos.items()}


def check_ties(weights: Weights, ties: Mapping[str, str]) -> None:
    """Refuse a file that holds different tensors under two names of one tensor of the model.

    PyTorch would load both into the one tensor, and the last would stay.

    Args:
        ties: for each further name of a tensor of the model, its first one.

    Raises:
        ModelError: with both names and how much they differ.
    """
    path = weights.checkpoint.path
    for key, first in ties.items():
        if key not in weights or first not in weights:
            continue
        one, other = weights[first], weights[key]
        if one.data_ptr() == other.data_ptr() or same_bits(one, other):
            continue
        apart = (one.double() - other.double()).abs().max().item() if one.shape == other.shape else float("inf")
        raise ModelError(
            f"{path}: {quoted(first)} and {quoted(key)} are one tensor in the model, but the file holds two that "
            f"differ by up to {apart:.3g}",
            path=path,
            hint="build the model without the tie, or save the checkpoint from the model that has it",
            slug="untied",
        )


def check_all_finite(pair: Pair, progress: Progress) -> None:
    """Read both checkpoints once and refuse NaN, infinities, and ties that are none.

    Raises:
        ModelError: see `check_ties`.
        NumericalError: naming file, tensor and count.
    """
    check_weights((pair.a, pair.b), pair.subject, progress)


def check_weights(checkpoints: Collection[Weights], subject: Subject, progress: Progress) -> None:
    """`check_all_finite` for any number of checkpoints of one model."""
    for weights in checkpoints:
        check_ties(weights, subject.ties)
    total = sum(map(len, checkpoints))
    parameters = frozenset(parameter_keys(subject.module))
    done = 0
    for weights in checkpoints:
        for key in weights:
            name, path = weights.file_name(key), weights.checkpoint.path
            check_finite(weights[key], name, path, infinite=key not in parameters)
            done += 1
            progress.step(done, total)
