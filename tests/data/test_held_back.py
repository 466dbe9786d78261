"""Samples that are held back: one in four, up to a number, and never among the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from rebasin_cli.data.batch import Batch
from rebasin_cli.data.held_back import Kept, held_back


class Numbers:
    """Batches of the numbers from 0 on."""

    description = origin = fingerprint = "numbers"
    text = generated = None
    notes = ()

    def __init__(self, sizes: Sequence[int]) -> None:
        self._parts = torch.arange(sum(sizes)).split(list(sizes))

    @property
    def batch_count(self) -> int | None:
        return len(self._parts)

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for number, part in enumerate(self._parts):
            if number >= first and number % world == rank:
                yield Batch(number, (part,), size=len(part))


def samples(batches: Iterator[Batch]) -> list[int]:
    return [int(number) for batch in batches if batch.size for number in batch.args[0]]


@pytest.mark.parametrize(
    ("sizes", "most", "held"),
    [([64] * 10, 1000, 160), ([64] * 10, 50, 50), ([7], 100, 1), ([1] * 9, 100, 2), ([3], 100, 0), ([0, 5, 3], 100, 2)],
)
def test_the_two_parts_are_all_samples_and_share_none(sizes: list[int], most: int, held: int) -> None:
    judges, rest = held_back(Numbers(sizes), most)
    one, other = samples(judges.batches()), samples(rest.batches())
    assert len(one) == judges.samples == held
    assert sorted(one + other) == list(range(sum(sizes)))
    assert samples(rest.batches()) == other


def test_processes_that_share_the_rest_leave_out_the_same() -> None:
    judges, rest = held_back(Numbers((5, 9, 4, 4, 8)), 5)
    parts = [samples(rest.batches(rank=rank, world=2)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == samples(rest.batches())
    assert judges.samples == 5
    assert [batch.index for batch in judges.batches()] == list(range(judges.batch_count or 0))


def test_the_first_batches_hold_at_least_what_is_asked_for() -> None:
    assert samples(Kept.first(Numbers([4, 0, 4, 4]), 5).batches()) == list(range(8))
    assert Kept.first(Numbers([4]), 5).samples == 4
