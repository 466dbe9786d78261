"""Generated inputs as numbered batches, like those of any other data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map_only, tree_unflatten

from rebasin_cli.data.batch import Batch
from rebasin_cli.data.generated_kinds import WORD, GeneratedFacts
from rebasin_cli.data.text import TextFacts

SHIFT = 3 / 32
"""Of the side of an image, by which it is rolled at most each time that it is learned on."""


def varied(batch: Batch, generator: torch.Generator) -> Batch:
    """A batch of generated images with half of them mirrored and all rolled by a few pixels; other batches as they are.

    The few inputs that are made are learned on many times. Their distribution does not change: dead leaves and noise
    have no direction along a row and no place, and inverted images were rolled while they were made.
    """
    tensors = [leaf for leaf in tree_leaves((batch.args, dict(batch.kwargs))) if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or tensors[0].dim() != 4 or min(tensors[0].shape[2:]) < 4:
        return batch
    mirrored = torch.rand(len(tensors[0]), generator=generator) < 0.5
    most = [max(1, round(SHIFT * side)) for side in tensors[0].shape[2:]]
    by = [int(torch.randint(-one, one + 1, (), generator=generator)) for one in most]

    def moved(images: Tensor) -> Tensor:
        return torch.where(mirrored[:, None, None, None], images.flip(3), images).roll(by, (2, 3))

    args, kwargs = tree_map_only(Tensor, moved, (batch.args, dict(batch.kwargs)))
    return replace(batch, args=args, kwargs=kwargs)


@dataclass(frozen=True)
class GeneratedSet:
    """Inputs that were made, all in memory on the CPU.

    Attributes:
        leaves: the arguments of a call, flattened; tensors at the places `batched` hold all samples along axis 0.
        structure: of the arguments, `(args, kwargs)`.
        target: (count, tokens), the token after each, for text; None for other inputs, which have no labels.
        classes: (count,) int64, the class that all networks give an input, `IGNORED` where they differ; None where the
            outputs do not score classes.
        text: the length of the text, where a token is a byte.
        notes: sentences for the user.
        identity: changes with everything that decides the inputs.
        unit_range: images have values in [0, 1], and are not normalised.
    """

    facts: GeneratedFacts
    leaves: tuple[Any, ...]
    batched: tuple[int, ...]
    structure: TreeSpec
    target: Tensor | None
    classes: Tensor | None
    text: TextFacts | None
    notes: tuple[str, ...]
    identity: str
    unit_range: bool = False

    def batch(self, indices: np.ndarray, number: int = 0, *, labels: bool = False) -> Batch:
        """The samples of these indices; `labels`: with the class that all networks give as the target."""
        chosen = torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))
        leaves = [leaf[chosen] if place in self.batched else leaf for place, leaf in enumerate(self.leaves)]
        args, kwargs = tree_unflatten(leaves, self.structure)
        target = self.classes if labels and self.target is None else self.target
        return Batch(number, args, kwargs, None if target is None else target[chosen], size=len(chosen))


class GeneratedSource:
    """Batches of generated inputs.

    Args:
        made: the inputs.
        indices: which of them in which order; int64.
        labels: the targets are the classes that all networks give, instead of none.
    """

    def __init__(self, made: GeneratedSet, indices: Sequence[int], batch_size: int, *, labels: bool = False) -> None:
        self.made, self._labels, self._size = made, labels, batch_size
        self._indices = np.asarray(indices, dtype=np.int64)
        self.origin = f"{WORD}:{made.facts.kind}"
        self.generated: GeneratedFacts | None = made.facts
        self.text = made.text
        self.notes = made.notes
        self.description = f"{self.origin}: {made.facts.describe()}"
        order = ",".join(map(str, self._indices))
        self.fingerprint = f"{made.identity}|{order}|{batch_size}|{labels}"

    @property
    def batch_count(self) -> int:
        return -(-len(self._indices) // self._size)

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches numbered `first` and up whose number is `rank` modulo `world`."""
        for number in range(first, self.batch_count):
            if number % world == rank:
                chosen = self._indices[number * self._size : (number + 1) * self._size]
                yield self.made.batch(chosen, number, labels=self._labels)
