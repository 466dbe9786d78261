"""What a model is fed and what it is measured against: one batch at a time, each with its place in the whole.

A source numbers its batches; anyone may ask for those from `first` on whose number is `rank` modulo `world`. So an
interrupted pass goes on where it stood, and several processes share a pass without speaking to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rebasin_cli.errors import DataError


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
        """The batch on another device; itself where it is there already."""
        return replace(
            self,
            args=tuple(_moved(value, device) for value in self.args),
            kwargs={name: _moved(value, device) for name, value in self.kwargs.items()},
            target=_moved(self.target, device),
        )

    def rows(self, start: int, stop: int) -> Batch:
        """The samples `start … stop - 1`, for batches that do not fit a device; itself where these are all."""
        if start == 0 and stop >= self.size:
            return self
        return replace(
            self,
            args=tuple(_sliced(value, start, stop, self.size) for value in self.args),
            kwargs={name: _sliced(value, start, stop, self.size) for name, value in self.kwargs.items()},
            target=_sliced(self.target, start, stop, self.size),
            size=stop - start,
            skipped=self.skipped if start == 0 else 0,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the batch."""
        return sum(_nbytes(value) for value in (*self.args, *self.kwargs.values(), self.target))


class Source(Protocol):
    """Something that gives numbered batches, the same ones every time it is asked."""

    @property
    def description(self) -> str:
        """The data in words: what was named, how many samples, which transform."""

    @property
    def fingerprint(self) -> str:
        """Text that differs when the samples, their order or their batches differ."""

    @property
    def batch_count(self) -> int | None:
        """How many batches there are; None where only reading to the end tells."""

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches numbered `first` and up whose number is `rank` modulo `world`, in order."""


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value


def _sliced(value: Any, start: int, stop: int, size: int) -> Any:
    """Rows of everything that has one row a sample; what has not is shared."""
    if isinstance(value, Tensor):
        return value[start:stop] if value.dim() and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _sliced(item, start, stop, size) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_sliced(item, start, stop, size) for item in value)
    return value


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_nbytes(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_nbytes(item) for item in value)
    return 0


def batch_from(item: Any, index: int, origin: str) -> Batch:
    """A batch from what a user's loader yields.

    `(x, y)` and longer sequences: the last is the target, the others are positional inputs. A mapping: keyword inputs,
    with `labels`, `label`, `targets`, `target` or `y` taken out as the target; without one of these the mapping itself
    is the target, for a loss that looks into it. A single tensor: the input, without a target.

    Raises:
        DataError: none of these.
    """
    if isinstance(item, Tensor):
        return Batch(index, (item,), size=item.shape[0] if item.dim() else 1)
    if isinstance(item, Mapping):
        names = [name for name in ("labels", "label", "targets", "target", "y") if name in item]
        kwargs = {str(name): value for name, value in item.items() if name not in names[:1]}
        return Batch(index, (), kwargs, item[names[0]] if names else dict(item), size=_samples(kwargs.values()))
    if isinstance(item, (list, tuple)) and len(item) >= 2:
        return Batch(index, tuple(item[:-1]), target=item[-1], size=_samples(item))
    raise DataError(
        f"{origin}: batch {index} is a {type(item).__name__}",
        path=origin,
        hint="a loader yields (inputs, targets), a mapping of keyword inputs, or a tensor",
    )


def _samples(values: Any) -> int:
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            return int(value.shape[0])
    return 1
