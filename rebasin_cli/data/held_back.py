"""A part of a data set that is held back to judge by, and the rest.

Of every four samples one is held back, up to a number: the last rows of each batch. So the two parts share no sample,
both contain what the data begin with, and no more is read than four times the samples that judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rebasin_cli.data.batch import Batch, BatchSource
from rebasin_cli.data.generated_kinds import GeneratedFacts
from rebasin_cli.data.text import TextFacts

EVERY = 4
"""One of so many samples is held back."""


def held_back(source: BatchSource, most: int) -> tuple[Kept, Rest]:
    """Divide a source in two: at most so many samples, and all others.

    Of fewer than `EVERY` samples none are held back.
    """
    cuts: list[int] = []
    held: list[Batch] = []
    seen = taken = 0
    for batch in source.batches():
        seen += batch.size
        wanted = min(seen // EVERY, most) - taken
        cuts.append(wanted)
        if wanted:
            held.append(replace(batch.rows(batch.size - wanted, batch.size), skipped=0))
            taken += wanted
        if taken >= most:
            break
    return Kept.of(source, held), Rest(source, tuple(cuts))


@dataclass(frozen=True, slots=True)
class Kept:
    """A few batches of a source, in memory and numbered anew.

    Attributes:
        source: where they are from; it says what the data are.
    """

    source: BatchSource
    kept: tuple[Batch, ...]

    @classmethod
    def of(cls, source: BatchSource, batches: Sequence[Batch]) -> Kept:
        """These batches of the source."""
        return cls(source, tuple(replace(batch, index=number) for number, batch in enumerate(batches)))

    @classmethod
    def first(cls, source: BatchSource, samples: int) -> Kept:
        """The first batches that hold samples, until they hold so many."""
        batches: list[Batch] = []
        for batch in source.batches():
            batches += [batch] if batch.size else []
            if sum(one.size for one in batches) >= samples:
                break
        return cls.of(source, batches)

    @property
    def samples(self) -> int:
        """How many they hold."""
        return sum(batch.size for batch in self.kept)

    @property
    def description(self) -> str:
        return self.source.description

    @property
    def origin(self) -> str:
        return self.source.origin

    @property
    def text(self) -> TextFacts | None:
        return self.source.text

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    @property
    def generated(self) -> GeneratedFacts | None:
        return self.source.generated

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}, {[batch.size for batch in self.kept]}"

    @property
    def batch_count(self) -> int | None:
        return len(self.kept)

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        return (batch for batch in self.kept[first:] if batch.index % world == rank)


@dataclass(frozen=True, slots=True)
class Rest:
    """A source without the last rows of its first batches; a batch of which nothing is left is empty.

    Attributes:
        cuts: how many rows of each of these batches are left out.
    """

    source: BatchSource
    cuts: tuple[int, ...]

    @property
    def description(self) -> str:
        return self.source.description

    @property
    def origin(self) -> str:
        return self.source.origin

    @property
    def text(self) -> TextFacts | None:
        return self.source.text

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    @property
    def generated(self) -> GeneratedFacts | None:
        return self.source.generated

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}, without {sum(self.cuts)}"

    @property
    def batch_count(self) -> int | None:
        return self.source.batch_count

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for batch in self.source.batches(first, rank=rank, world=world):
            cut = self.cuts[batch.index] if batch.index < len(self.cuts) else 0
            yield batch.rows(0, batch.size - cut) if cut else batch
