"""Numbered batches from anything with a length and an index: worker processes, corrupt samples, sharing among ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from rebasin_cli.data.batch import Batch, batch_from
from rebasin_cli.data.folder import Unreadable
from rebasin_cli.errors import DataError


class MapSource:
    """Batches of a map-style data set, in the order of `indices`.

    Args:
        dataset: has `len` and gives sample i, as `(inputs…, target)` or a mapping, or `Unreadable`.
        indices: which samples in which order; int64.
        skip_corrupt: leave out and count samples that cannot be read, instead of raising.
        classes: when given, integer targets must lie below it.
        origin: what the user named, for messages.
    """

    def __init__(
        self,
        dataset: Any,
        indices: np.ndarray,
        *,
        batch_size: int,
        workers: int,
        skip_corrupt: bool,
        classes: int | None,
        origin: str,
        description: str,
        identity: str,
    ) -> None:
        self._dataset = dataset
        self._indices = indices
        self._batch_size = batch_size
        self._workers = workers
        self._skip_corrupt = skip_corrupt
        self._classes = classes
        self._origin = origin
        self.description = description
        digest = hashlib.sha256(np.ascontiguousarray(indices, dtype=np.int64).tobytes()).hexdigest()[:16]
        self.fingerprint = f"{identity}|{digest}|{batch_size}"

    @property
    def batch_count(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches numbered `first` and up whose number is `rank` modulo `world`.

        Raises:
            DataError: a sample cannot be read (unless these are skipped), or a label is not a class of the model.
        """
        numbers = [number for number in range(first, self.batch_count) if number % world == rank]
        size = self._batch_size
        loader = DataLoader(
            self._dataset,
            batch_sampler=[self._indices[number * size : (number + 1) * size].tolist() for number in numbers],
            num_workers=min(self._workers, len(numbers)),
            collate_fn=_collate,
        )
        for number, (item, bad) in zip(numbers, loader, strict=True):
            if bad and not self._skip_corrupt:
                raise DataError(
                    f"{bad[0].path}: this image cannot be read: {bad[0].reason}",
                    path=bad[0].path,
                    hint="mend or remove it, or leave such images out with --skip-corrupt",
                    slug="corrupt_image",
                )
            yield self._finish(item, number, len(bad))

    def _finish(self, item: Any, number: int, skipped: int) -> Batch:
        if item is None:
            return Batch(number, (), skipped=skipped)
        batch = batch_from(item, number, self._origin)
        check_labels(batch.target, self._classes, self._origin)
        return Batch(number, batch.args, batch.kwargs, batch.target, batch.size, skipped)


def _collate(samples: Sequence[Any]) -> tuple[Any, list[Unreadable]]:
    good = [sample for sample in samples if not isinstance(sample, Unreadable)]
    bad = [sample for sample in samples if isinstance(sample, Unreadable)]
    return (default_collate(good) if good else None), bad


def check_labels(target: Any, classes: int | None, origin: str) -> None:
    """Raise DataError when an integer target is not a class number of the model."""
    if classes is None or not isinstance(target, Tensor) or target.dim() != 1 or not target.numel():
        return
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        seen = low if low < 0 else high
        raise DataError(
            f"{origin}: label {seen} found, but the model has {classes} classes (0 … {classes - 1})",
            path=origin,
            hint="check that the labels count from 0 and belong to this model",
            slug="label_range",
        )
