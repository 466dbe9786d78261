"""One pass for all networks: what is read and summed, how it is resumed, and what the measures are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.compat.lines import LineOfModels
from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.scores import FIELDS, values
from tests.interpolation.digits import batches, trained


class Counting:
    """A source that counts how often each batch is read."""

    description = fingerprint = origin = "counting"
    notes = ()
    text = None

    def __init__(self, data: list[tuple[Tensor, Tensor]]) -> None:
        self.data = data
        self.reads = [0] * len(data)
        self.batch_count = len(data)

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for number in range(first, len(self.data)):
            if number % world == rank:
                self.reads[number] += 1
                x, y = self.data[number]
                yield Batch(number, (x,), target=y, size=len(y))


def test_every_batch_is_read_once_for_all_networks() -> None:
    line = LineOfModels([trained("plain", 0), trained("plain", 1)], None, "lerp", 10)
    source = Counting(batches(1200, 1797, 50))
    running = RunningSums(chunk=3)
    evaluate(line.slot, source, line.networks.all, Measure(), running)
    assert source.reads == [1] * 12
    assert len(running.sums) == 11


def test_the_share_of_the_most_frequent_label_is_known_where_it_is_above_that_of_chance() -> None:
    line = LineOfModels([trained("plain", 0), trained("plain", 1)], None, "lerp", 1)
    for frequent in (0, 300):
        x = torch.zeros(100 + frequent, 64)
        y = torch.cat([torch.arange(100) % 10, torch.full((frequent,), 7)])
        if frequent:
            y[:10] = 7
        source = Counting([(x[:150], y[:150]), (x[150:], y[150:])] if frequent else [(x, y)])
        running = RunningSums(chunk=1)
        evaluate(line.slot, source, line.networks.all, Measure(), running)
        found = values(running.sums["checkpoint 0"])
        assert found.chance == pytest.approx(0.1)
        wanted = float((y == 7).sum()) / len(y) if frequent else None
        assert found.most_frequent == (None if wanted is None else pytest.approx(wanted))


def test_a_pass_that_died_anywhere_ends_with_the_same_sums() -> None:
    line = LineOfModels([trained("plain", 0), trained("plain", 1)], None, "lerp", 4)
    data = batches(1200, 1797, 50)
    whole = RunningSums(chunk=3)
    evaluate(line.slot, Counting(data), line.networks.all, Measure(), whole)

    class Died(Exception):
        pass

    for after in range(1, 20):
        kept: list[Any] = []

        def save(running: RunningSums, after: int = after, kept: list[Any] = kept) -> None:
            kept.append(running.to_json(packed=after % 2 == 0))
            if len(kept) == after:
                raise Died

        with pytest.raises(Died):
            evaluate(line.slot, Counting(data), line.networks.all, Measure(), RunningSums(chunk=3, save=save))
        resumed = RunningSums.from_json(kept[-1])
        source = Counting(data)
        evaluate(line.slot, source, line.networks.all, Measure(), resumed)
        assert resumed.to_json() == whole.to_json()
        assert sum(source.reads) < 12 or after < 5


def test_a_batch_too_large_for_memory_is_halved() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 20:
                raise torch.OutOfMemoryError("out of memory")
            return self.fc(x.flatten(1))

    module = Small()
    slot = ModelSlot(module, torch.device("cpu"))
    (x, y), *_ = batches(0, 100, 100)
    sizes = [piece.size for piece, _ in slot.outputs(Batch(0, (x,), target=y, size=100))]
    assert max(sizes) <= 20
    assert sum(sizes) == 100


def test_values_that_are_not_finite_say_so() -> None:
    found = values(Measure().sums(torch.full((2, 3), math.nan), Batch(0, (), target=torch.tensor([0, 1]), size=2)))
    assert (found.loss, found.finite, found.accuracy) == (None, False, 0.0)


def test_the_users_loss_and_metric_count() -> None:
    batch = Batch(0, (), target=torch.tensor([0.0, 1.0, 5.0]), size=3)
    output = torch.tensor([1.0, 1.0, 1.0])
    measure = Measure(loss=lambda o, t: (o - t) ** 2, metric=lambda o, t: (float((o - t).abs().sum()), 3))
    found = values(measure.sums(output, batch))
    assert found.loss == pytest.approx(17 / 3)
    assert found.metric == pytest.approx(5 / 3)
    assert found.accuracy is None


def test_a_regression_without_a_loss_is_told_how() -> None:
    with pytest.raises(DataError, match="cross-entropy") as caught:
        Measure().sums(torch.ones(3), Batch(0, (), target=torch.ones(3), size=3))
    assert "--loss" in str(caught.value.hint)


def test_top5_is_counted_where_there_are_more_classes() -> None:
    logits = torch.arange(7.0).repeat(2, 1)
    sums = Measure().sums(logits, Batch(0, (), target=torch.tensor([6, 0]), size=2))
    assert values(sums).top5 == 0.5
    assert values(Measure().sums(logits[:, :4], Batch(0, (), target=torch.tensor([3, 0]), size=2))).top5 is None
    assert len(sums) == len(FIELDS)
