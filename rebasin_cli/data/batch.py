"""Batches: a model's inputs with their targets, numbered.

A source numbers its batches, and a caller asks for those from `first` on whose number is `rank` modulo `world`. So an
interrupted pass can be resumed, and several processes can share a pass without communication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

if TYPE_CHECKING:
    from rebasin_cli.data.generated_kinds import GeneratedFacts
    from rebasin_cli.data.text import TextFacts


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs for `model(*args, **kwargs)`, the target (or None), and how many samples they hold.

    `skipped` counts samples that could not be read and are left out.
    """

    index: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None
    size: int = 0
    skipped: int = 0

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; itself if it is there already."""
        return replace(
            self,
            **self._mapped(lambda tensor: tensor.to(device, non_blocking=True)),
        )

    def rows(self, start: int, stop: int) -> Batch:
        """The samples `start … stop - 1`, for batches that do not fit on a device."""
        if start == 0 and stop >= self.size:
            return self

        def rows(tensor: Tensor) -> Tensor:
            return tensor[start:stop] if tensor.dim() and tensor.shape[0] == self.size else tensor

        return replace(
            self,
            **self._mapped(rows),
            size=stop - start,
            skipped=self.skipped if start == 0 else 0,
        )

    def chosen(self, indices: Tensor) -> Batch:
        """The samples of these indices, int64 (count,), in their order."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[indices] if tensor.dim() and tensor.shape[0] == self.size else tensor

        return replace(self, **self._mapped(chosen), size=len(indices), skipped=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the batch."""
        tensors = (leaf for leaf in tree_leaves(self._tree()) if isinstance(leaf, Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _tree(self) -> dict[str, Any]:
        return {"args": self.args, "kwargs": dict(self.kwargs), "target": self.target}

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Inputs and target with every tensor changed."""
        changed: dict[str, Any] = tree_map_only(Tensor, change, self._tree())
        return changed


class BatchSource(Protocol):
    """A source of numbered batches, the same every time."""

    @property
    def description(self) -> str:
        """The data in words: their name, the number of samples, the transform."""

    @property
    def origin(self) -> str:
        """What the user named."""

    @property
    def text(self) -> TextFacts | None:
        """The length of the data in tokens and bytes, where they are text."""

    @property
    def generated(self) -> GeneratedFacts | None:
        """What is told of inputs that are no data, but were made by the networks; None for data."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed, left out or changed in reading them, a sentence each, for the user."""

    @property
    def fingerprint(self) -> str:
        """Text that differs when the samples, their order or their batches differ."""

    @property
    def batch_count(self) -> int | None:
        """The number of batches; None if it is unknown before the end."""

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches numbered `first` and up whose number is `rank` modulo `world`, in order."""
