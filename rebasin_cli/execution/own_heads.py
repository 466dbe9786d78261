"""A fine-tuning and its bases, where the fine-tuning has a head that the bases do not have, or have in another size.

The model is built like the fine-tuning. A base is read without the tensors that it lacks; where all of a base is needed
to run it, the fine-tuning's stand in for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.errors import ModelError, few
from rebasin_cli.execution.pair import Source, file_shapes, open_sources
from rebasin_cli.execution.shared_weights import Mismatch, mismatches_of, shared_weights
from rebasin_cli.execution.subject import ModelChoice, Subject, open_subject
from rebasin_cli.execution.weights import Weights
from rebasin_cli.model.adaptation import aligned_names


@dataclass(frozen=True, slots=True)
class FineTuning:
    """A fine-tuning and networks without its head, through the names of the fine-tuning's model.

    Attributes:
        bases: in the order in which they were given.
        own: keys of the tensors that some base does not have in this size.
        sizes: those of them that a base has in another size.
    """

    finetuned: Weights
    bases: tuple[Weights, ...]
    subject: Subject
    own: tuple[str, ...]
    sizes: tuple[tuple[Checkpoint, Mismatch], ...]


def open_finetuning(
    finetuned: Source,
    bases: Sequence[Source],
    choice: ModelChoice,
    *,
    ignore_extra: bool = False,
    ignore_mismatched_sizes: bool = False,
) -> FineTuning:
    """Open the files and check keys and shapes against the model; no tensor is read.

    Args:
        ignore_mismatched_sizes: accept tensors that a base lacks or has in another size.

    Raises:
        CheckpointError: a file cannot be read safely.
        ModelError: the model cannot be built, or keys or shapes do not fit it.
    """
    tuned, *others = open_sources((finetuned, *bases))
    subject = open_subject(choice, file_shapes(tuned))
    weights = Weights.of(tuned, subject, ignore_extra=ignore_extra)
    opened: list[Weights] = []
    own: dict[str, None] = {}
    sizes: list[tuple[Checkpoint, Mismatch]] = []
    for other in others:
        try:
            opened.append(Weights.of(other, subject, ignore_extra=ignore_extra))
            continue
        except ModelError as error:
            apart = _apart(other, tuned, subject)
            if not apart or 2 * len(apart) > len(subject.shapes):
                raise
            if not ignore_mismatched_sizes:
                raise _differ(other, tuned, apart) from error
        opened.append(shared_weights(other, weights, choice, apart, subject, ignore_extra=True))
        own |= dict.fromkeys(one.key for one in apart)
        sizes += [(other, one) for one in apart if one.in_a]
    compared = tuple(key for key in subject.parameters if key not in own)
    return FineTuning(weights, tuple(opened), replace(subject, parameters=compared), tuple(own), tuple(sizes))


def _apart(base: Checkpoint, tuned: Checkpoint, subject: Subject) -> tuple[Mismatch, ...]:
    """What a base lacks of the model, with an empty shape, or has in another size."""
    named = aligned_names(subject.shapes, file_shapes(base))
    lacking = [
        Mismatch(key, (), shape)
        for key, shape in subject.shapes.items()
        if key not in named and subject.ties.get(key, key) not in named and not key.endswith("num_batches_tracked")
    ]
    return (*mismatches_of(base, tuned, subject), *lacking)


def _differ(base: Checkpoint, tuned: Checkpoint, apart: tuple[Mismatch, ...]) -> ModelError:
    listed = few([one.key for one in apart], shown=6)
    return ModelError(
        f"{base.path}: lacks tensors of {tuned.path}, or has them in another size: {listed}",
        path=base.path,
        hint="--ignore-mismatched-sizes keeps the fine-tuning's own, permuted like what they read",
        slug="shapes",
    )
