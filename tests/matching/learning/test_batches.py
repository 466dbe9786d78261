"""Dividing the data: what judges is never learned on, whatever form the data have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.batch_sources import IterableSource
from rebasin_cli.data.generated_kinds import GeneratedFacts
from rebasin_cli.data.generated_source import varied
from rebasin_cli.errors import DataError
from rebasin_cli.matching.learning import batches
from rebasin_cli.matching.learning.batches import LearningData, Stream, divided


def source(sizes: list[int]) -> BatchSource:
    """A loader whose samples are numbered."""
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    made = [torch.arange(start, start + size).float()[:, None] for start, size in zip(starts, sizes, strict=True)]
    return IterableSource(lambda: made, made, limit=None, seed=0, classes=None, origin="numbers")


def samples(found: Iterator[Batch] | list[Batch]) -> list[int]:
    return [int(sample) for batch in found for sample in batch.args[0].flatten()]


def anything(batch: Batch) -> bool:
    return True


@pytest.mark.parametrize("sizes", [[10] * 10, [7, 3], [50], [2], [400] * 30])
def test_no_sample_judges_and_is_learned_on(sizes: list[int]) -> None:
    data = divided(source(sizes), anything)
    held, rest = samples(data.held), samples(data.one_round())
    assert data.disjoint
    assert set(held).isdisjoint(rest)
    assert sorted(held + rest) == list(range(sum(sizes)))
    assert held
    assert rest
    assert len(held) <= max(0.3 * sum(sizes), 1)


def test_of_one_batch_that_may_be_sorted_every_fifth_sample_judges() -> None:
    assert samples(divided(source([20]), anything).held) == [2, 7, 12, 17]


def test_a_single_sample_does_both_and_none_is_refused() -> None:
    assert not divided(source([1]), anything).disjoint
    with pytest.raises(DataError, match="no data to learn on"):
        divided(source([1, 1]), lambda batch: batch.size > 1)


def test_what_is_too_large_for_memory_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "KEPT_BYTES", 100)
    monkeypatch.setattr(batches, "MOST_HELD", 20)
    data = divided(source([10] * 30), anything)
    assert data.more is not None
    held, rest = samples(data.held), samples(data.one_round())
    assert held == list(range(80))
    assert held + rest == list(range(300))
    stream = Stream(data, seed=0)
    assert samples([next(stream) for _ in range(23)]) == [*range(80, 300), *range(80, 90)]
    assert (stream.round, stream.place) == (1, 1)
    assert samples([next(Stream(data, 0, stream.round, stream.place))]) == list(range(90, 100))


def test_each_round_has_an_order_of_its_own_and_can_be_continued() -> None:
    data = LearningData([], [Batch(number, (torch.tensor([[number]]),), size=1) for number in range(12)])
    stream = Stream(data, seed=3)
    taken = samples([next(stream) for _ in range(24)])
    assert sorted(taken[:12]) == sorted(taken[12:]) == list(range(12))
    assert taken[:12] != taken[12:]
    for place in (5, 12, 17):
        again = Stream(data, 3, *divmod(place, 12))
        assert samples([next(again) for _ in range(24 - place)]) == taken[place:]


def images(generated: bool) -> BatchSource:
    """A loader of images whose pixels differ, as data or as what networks made."""
    made = [torch.rand(10, 3, 12, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
    found = IterableSource(lambda: made, made, limit=None, seed=0, classes=None, origin="images")
    if generated:
        found.generated = GeneratedFacts("leaves", 100, None, None, 0.0)
    return found


def test_generated_images_are_mirrored_and_rolled_each_time_they_are_learned_on() -> None:
    data = divided(images(True), anything)
    stream = Stream(data, seed=0)
    first, again = (torch.cat([next(stream).args[0] for _ in data.rest]) for _ in range(2))
    plain = torch.cat([batch.args[0] for batch in data.rest])
    for shown in (first, again):
        torch.testing.assert_close(shown.sum((1, 2, 3)).sort().values, plain.sum((1, 2, 3)).sort().values)
        assert not any(torch.equal(one, other) for one, other in zip(shown[:3], plain[:3], strict=True))
    assert torch.equal(data.held[0].args[0], divided(images(False), anything).held[0].args[0])
    resumed = Stream(data, 0, 0, 3)
    assert torch.equal(next(resumed).args[0], first[30:40])


def test_data_of_the_user_are_learned_on_as_they_are() -> None:
    data = divided(images(False), anything)
    known = {batch.args[0].sum().item() for batch in data.rest}
    stream = Stream(data, seed=0)
    assert {next(stream).args[0].sum().item() for _ in data.rest} == known
    assert data.vary is None


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 12), (4, 3, 2, 12)])
def test_what_is_no_image_is_not_varied(shape: tuple[int, ...]) -> None:
    batch = Batch(0, (torch.randn(shape),), size=4)
    assert varied(batch, torch.Generator().manual_seed(0)) is batch
