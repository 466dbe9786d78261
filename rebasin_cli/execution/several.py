"""Several checkpoints of one model, opened by their headers alone and held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.execution.pair import Source, check_weights, file_shapes, open_sources
from rebasin_cli.execution.subject import ModelChoice, Subject, open_subject
from rebasin_cli.execution.weights import Weights
from rebasin_cli.progress import Progress


@dataclass(frozen=True, slots=True)
class Several:
    """Checkpoints of one model through its names, in the order in which they were given."""

    weights: tuple[Weights, ...]
    subject: Subject

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
    sources: Sequence[Source], choice: ModelChoice, *, shaped_like: int = 0, ignore_extra: bool = False
) -> Several:
    """Open the files and check keys and shapes against the model; no tensor is read.

    Args:
        shaped_like: the number of the checkpoint whose number of classes the model gets.

    Raises:
        CheckpointError: a file cannot be read safely.
        ModelError: the model cannot be built, or keys or shapes do not fit it.
    """
    opened = open_sources(sources)
    subject = open_subject(choice, file_shapes(opened[shaped_like]))
    weights = tuple(Weights.of(checkpoint, subject, ignore_extra=ignore_extra) for checkpoint in opened)
    return Several(weights, subject)
