"""Several checkpoints of one model, opened by their headers alone and held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.pair import Source, check_weights, file_shapes, open_beside, open_sources, without
from rebasin_cli.execution.shared_weights import Mismatch, mismatches_of
from rebasin_cli.execution.subject import ModelChoice, Subject, open_subject
from rebasin_cli.execution.weights import Weights
from rebasin_cli.progress import Progress


@dataclass(frozen=True, slots=True)
class Several:
    """Checkpoints of one model through its names, in the order in which they were given.

    `mismatches`: tensors of other sizes than in the checkpoint that shapes the model, and of which checkpoint each is.
    """

    weights: tuple[Weights, ...]
    subject: Subject
    mismatches: tuple[tuple[int, Mismatch], ...] = ()

    @property
    def files(self) -> list[Path]:
        """Every file that the checkpoints consist of."""
        return [file for held in self.weights for file in held.checkpoint.files]

    def check(self, progress: Progress) -> None:
        """Read every tensor once and refuse NaN, infinities, and ties that are none.

        Raises:
            ModelError: two names of one tensor of the model have different tensors in a file.
            NumericalError: naming file, tensor and count.
        """
        check_weights(self.weights, self.subject, progress)


def open_several(
    sources: Sequence[Source],
    choice: ModelChoice,
    *,
    shaped_like: int = 0,
    ignore_extra: bool = False,
    ignore_mismatched_sizes: bool | None = None,
) -> Several:
    """Open the files and check keys and shapes against the model; no tensor is read.

    Args:
        shaped_like: the number of the checkpoint whose number of classes the model gets.
        ignore_mismatched_sizes: leave tensors of other sizes than in that checkpoint out, as `SharedWeights` does; None
            where the caller has no such option.

    Raises:
        CheckpointError: a file cannot be read safely.
        ModelError: the model cannot be built, or keys or shapes do not fit it.
    """
    opened = open_sources(sources)
    subject = open_subject(choice, file_shapes(opened[shaped_like]))

    def fitting(checkpoint: Checkpoint) -> Weights:
        try:
            return Weights.of(checkpoint, subject, ignore_extra=ignore_extra)
        except ModelError:
            if checkpoint is not opened[shaped_like]:
                mismatches_of(checkpoint, opened[shaped_like], subject)  # says it where vocabularies differ
            raise

    if ignore_mismatched_sizes is None:
        return Several(tuple(map(fitting, opened)), subject)
    hint = None if ignore_mismatched_sizes else "if only the heads differ, --ignore-mismatched-sizes takes the rest"
    first = Weights.of(opened[shaped_like], subject, ignore_extra=ignore_extra)
    found: list[tuple[Weights, tuple[Mismatch, ...]]] = [
        (first, ())
        if number == shaped_like
        else open_beside(one, first, choice, subject, ignore_extra=ignore_extra, refused=hint)
        for number, one in enumerate(opened)
    ]
    apart = tuple((number, one) for number, (_, differ) in enumerate(found) for one in differ)
    return Several(tuple(held for held, _ in found), without(subject, [one for _, one in apart]), apart)
