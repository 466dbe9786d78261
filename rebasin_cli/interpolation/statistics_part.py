"""A part of the data to be evaluated on, set apart for the statistics of interpolated networks.

Which batches: every k-th of the data in shuffled order (a loader of the user's keeps its own), but not the last, which
can be short; k is at most 5, and larger where that would be more than the limit. The same arguments give the same part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource, DataOptions
from rebasin_cli.data.generated_kinds import GeneratedFacts

SHARES = (5, 4, 3, 2)
"""One batch in so many is set apart: the first of these that gives enough samples."""
ENOUGH = 64
"""Samples at least, for statistics and for evaluation alike: the error of a mean is then an eighth of the deviation."""
FEW_BATCHES = 10
BATCH_SIZE = 32
"""Of data that make few batches of the size asked for; also the smallest: a batch of one has no variance."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The batches that are evaluated, those that give statistics, and how many samples the latter are."""

    evaluation: BatchSource
    statistics: BatchSource
    samples: int


def set_apart(open_source: Callable[[DataOptions], BatchSource], options: DataOptions, limit: int) -> Parts | str:
    """The two parts of the data, or why there are none, in words that continue `because`.

    Args:
        open_source: opens the data as these options say.
        options: with a limit, about so many samples are left to evaluate on, where there are as many.
        limit: of the samples that give statistics.
    """
    wanted = options.limit
    if wanted is not None:
        wanted += min(limit, max(ENOUGH, wanted // (SHARES[0] - 1)))
    reading = replace(options, limit=wanted, shuffle=True, batch_size=max(BATCH_SIZE, options.batch_size))
    source = open_source(reading)
    if (source.batch_count or FEW_BATCHES) < FEW_BATCHES and reading.batch_size > BATCH_SIZE:
        source = open_source(replace(reading, batch_size=BATCH_SIZE))
    sizes, ended = _sizes(source)
    count, size = source.batch_count or len(sizes), sizes[0] if sizes else 0
    if ended and sum(sizes) < 2 * ENOUGH:
        return f"the data have only {sum(sizes)} samples, and {2 * ENOUGH} are needed to set some apart"
    endless = source.batch_count is None and not ended
    share = next((k for k in SHARES if -(-(count - 1) // k) * size >= ENOUGH), None)
    if share is None:
        return f"the data have only {count} batches of {size} samples"
    if _sorted_by_class(source):
        return "the loader's batches have one class each, and statistics of such batches are wrong: let it shuffle"
    most = -(-limit // size)
    if not endless and -(-(count - 1) // share) > most:
        share = -(-(count - 1) // most)
    chosen = most if endless else -(-(count - 1) // share)
    total = None if endless else count
    statistics = _Part(source, share, chosen, total, apart=True)
    return Parts(_Part(source, share, chosen, total, apart=False), statistics, chosen * size)


def _sizes(source: BatchSource) -> tuple[list[int], bool]:
    """The sizes of the first batches, as far as they are needed, and whether these are all.

    Of a source of known length the first is enough, unless there are few.
    """
    sizes: list[int] = []
    known = source.batch_count is not None and source.batch_count >= FEW_BATCHES
    for batch in source.batches(0):
        sizes.append(batch.size)
        if known or (len(sizes) >= FEW_BATCHES and sum(sizes[1:]) >= SHARES[0] * ENOUGH):
            return sizes, False
    return sizes, True


def _sorted_by_class(source: BatchSource) -> bool:
    """Whether some of the first batches have one class each, and not all the same."""
    classes = []
    for batch in islice(iter(source.batches(0)), 3):
        target = batch.target
        if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point() or batch.size < 2:
            return False
        found = torch.unique(target)
        if len(found) > 1:
            return False
        classes.append(int(found[0]))
    return len(classes) > 1 and len(_other_classes(source)) > 1


def _other_classes(source: BatchSource) -> set[int]:
    """The classes of batches over the whole data, as far as two are found."""
    seen: set[int] = set()
    for batch in source.batches(0):
        seen |= {int(one) for one in torch.unique(batch.target)} if isinstance(batch.target, Tensor) else set()
        if len(seen) > 1:
            break
    return seen


class _Part:
    """The batches of a source that are set apart (`apart`), or the others, numbered anew.

    Processes share them as they share the batches of the source, so that each batch is read by one process.

    Args:
        share: every batch whose number is a multiple of it is set apart, up to `chosen` of them.
        count: batches of the source; None if unknown.
    """

    def __init__(self, source: BatchSource, share: int, chosen: int, count: int | None, *, apart: bool) -> None:
        self._source, self._share, self._chosen, self._apart = source, share, chosen, apart
        self.batch_count = None if count is None else chosen if apart else count - chosen
        self.description, self.origin, self.notes = source.description, source.origin, source.notes
        self.text = source.text
        self.generated: GeneratedFacts | None = None  # of those no part is set apart
        part = "apart" if apart else "rest"
        self.fingerprint = f"{source.fingerprint}|{part}|{share}|{chosen}"

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This process' batches whose number in this part is at least `first`, in order."""
        for batch in self._source.batches(self._in_source(first), rank=rank, world=world):
            if self._apart and batch.index >= self._chosen * self._share:
                return
            if self._holds(batch.index) == self._apart:
                yield replace(batch, index=self._here(batch.index))

    def _holds(self, index: int) -> bool:
        """Whether a batch of the source is set apart."""
        return index % self._share == 0 and index < self._chosen * self._share

    def _here(self, index: int) -> int:
        """The number in this part of a batch of the source."""
        if self._apart:
            return index // self._share
        return index - min(index // self._share + 1, self._chosen)

    def _in_source(self, number: int) -> int:
        """The inverse of `_here`."""
        if self._apart:
            return number * self._share
        before = min(number // (self._share - 1) + 1, self._chosen)
        return number + before
