"""The data of a learning: a part that is held back and only judges, and the rest, which is learned on.

Whole batches are held back, the first ones of the source's shuffled order: a fifth of the samples, at most `MOST_HELD`
samples or `MOST_BATCHES` batches, whichever is more. So the two parts never share a sample. Of fewer than five batches
it is every fifth sample of each. The rest is kept in memory up to `KEPT_BYTES`, and its batches come in a new random
order in every round; what is larger is read again in the source's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.generated_source import varied
from rebasin_cli.errors import DataError

SHARE = 5
"""One sample in so many is held back."""
MOST_HELD, MOST_BATCHES = 2048, 8
KEPT_BYTES = 512 << 20


@dataclass(frozen=True)
class LearningData:
    """Both parts.

    Attributes:
        held: the batches that candidates are judged on.
        rest: the batches that are learned on, in memory; the first ones only, where `more` is given.
        more: reads the batches that follow `rest`; None where `rest` holds all.
        disjoint: no sample is in both parts; false where the data are too few to be divided.
        vary: changes a batch at random each time that it is learned on; None to learn on the samples as they are.
    """

    held: list[Batch]
    rest: list[Batch]
    more: Callable[[], Iterator[Batch]] | None = None
    disjoint: bool = True
    vary: Callable[[Batch, torch.Generator], Batch] | None = None

    @property
    def held_samples(self) -> int:
        """Number of samples that judge."""
        return sum(batch.size for batch in self.held)

    def one_round(self) -> Iterator[Batch]:
        """All batches that are learned on, once, in the source's order."""
        return iter(self.rest) if self.more is None else chain(self.rest, self.more())


def divided(source: BatchSource, fits: Callable[[Batch], bool], *, hold: bool = True) -> LearningData:
    """Divide a source in two.

    Args:
        fits: whether a batch can be used.
        hold: otherwise nothing is learned, and all that is read judges.

    Raises:
        DataError: no batch can be used.
    """
    data = _divided(source, fits, hold)
    return data if source.generated is None else replace(data, vary=varied)


def _divided(source: BatchSource, fits: Callable[[Batch], bool], hold: bool) -> LearningData:
    first, ended = _read(source, fits, None if hold else MOST_HELD)
    if not first:
        raise DataError("there is no data to learn on", hint="BatchNorm layers need batches of at least two samples")
    if not hold:
        return LearningData(_at_most(first), [])
    if ended and len(first) < SHARE:
        return _divided_rows(first, fits)
    held = _at_most(first[: len(first) // SHARE] if ended else first[:-1])
    rest = first[len(held) :]
    if ended:
        return LearningData(held, rest)
    after = rest[-1].index + 1
    return LearningData(held, rest, lambda: filter(fits, _with_samples(source.batches(after))))


def _read(source: BatchSource, fits: Callable[[Batch], bool], samples: int | None) -> tuple[list[Batch], bool]:
    """The first batches, and whether they are all: up to a number of samples, or as many as are kept in memory."""
    found: list[Batch] = []
    size = seen = 0
    for batch in filter(fits, _with_samples(source.batches())):
        found.append(batch)
        size, seen = size + batch.nbytes, seen + batch.size
        if samples is not None and seen >= samples and len(found) >= MOST_BATCHES:
            return found, False
        if size > KEPT_BYTES and len(found) > MOST_BATCHES:
            return found, False
    return found, True


def _with_samples(batches: Iterator[Batch]) -> Iterator[Batch]:
    return (batch for batch in batches if batch.size)


def _at_most(batches: Sequence[Batch]) -> list[Batch]:
    """The first ones, up to the bound."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if len(held) >= MOST_BATCHES and sum(one.size for one in held) >= MOST_HELD:
            break
    return held


def _divided_rows(batches: Sequence[Batch], fits: Callable[[Batch], bool]) -> LearningData:
    """Of each batch every fifth sample judges, or its last one: a batch that holds all data may be sorted."""
    held, rest = [], []
    for batch in batches:
        rows = torch.arange(batch.size)
        judges = (rows % SHARE == SHARE // 2) if batch.size > SHARE // 2 else rows == batch.size - 1
        held.append(batch.chosen(rows[judges]))
        rest.append(batch.chosen(rows[~judges]))
    held, rest = ([part for part in parts if part.size and fits(part)] for parts in (held, rest))
    return LearningData(held, rest) if held and rest else LearningData(list(batches), list(batches), disjoint=False)


class Stream:
    """The batches of a learning without end; its place can be saved.

    Attributes:
        round: which one is read, from 0. place: how many batches of it have been taken.
    """

    def __init__(self, data: LearningData, seed: int, round: int = 0, place: int = 0) -> None:
        self._data, self._seed, self.round, self.place = data, seed, round, place
        self._batches: Iterator[Batch] = islice(self._order(), place, None)

    def __next__(self) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            self.round, self.place = self.round + 1, 0
            self._batches = self._order()
            batch = next(self._batches, None)
            if batch is None:
                raise DataError("the data yield no batch when they are read again")
        self.place += 1
        if self._data.vary is None:
            return batch
        entropy = np.random.SeedSequence((self._seed, self.round, self.place)).generate_state(1)[0]
        return self._data.vary(batch, torch.Generator().manual_seed(int(entropy)))

    def _order(self) -> Iterator[Batch]:
        """The batches of the present round."""
        if self._data.more is not None:
            return self._data.one_round()
        rest = self._data.rest
        order = np.random.default_rng((self._seed, self.round)).permutation(len(rest))
        return (rest[number] for number in order.tolist())
