"""The barrier is what DESIGN says it is, and sweeps obey the laws of sums."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError
from rebasin_cli.execution.measure import FIELDS, Measure, values
from rebasin_cli.interpolation.body import Body
from rebasin_cli.interpolation.evaluate import evaluate
from rebasin_cli.interpolation.faces import LineOfModels, loader_source
from rebasin_cli.interpolation.ledger import Ledger
from rebasin_cli.interpolation.sweep import Sweep, SweepPoint, barrier, best, summarize
from tests.interpolation.digits import batches, trained


def sweep(models: list[nn.Module], data: list[Any], steps: int = 4) -> Sweep:
    line = LineOfModels(models, None, "lerp", steps)
    return summarize(line.places, evaluate(line.body, loader_source(data, "test"), line.places, Measure(), Ledger()))


def point(lam: float, loss: float | None, accuracy: float | None = None, segment: int = 0) -> SweepPoint:
    return SweepPoint(segment, lam, loss, accuracy, None, None, 1, loss is not None)


def test_the_barrier_is_the_height_over_the_straight_line() -> None:
    row = [point(0.0, 1.0, 0.9), point(0.25, 1.5, 0.7), point(0.5, 3.0, 0.1), point(1.0, 2.0, 0.7)]
    found = barrier(row)
    assert found.loss == pytest.approx(1.5)
    assert found.accuracy == pytest.approx(0.7)


def test_a_curve_that_hangs_below_has_no_barrier() -> None:
    assert barrier([point(0.0, 1.0), point(0.5, 0.2), point(1.0, 1.0)]).loss == 0.0


def test_a_longer_line_has_its_highest_segments_barrier() -> None:
    row = [point(0, 1.0), point(0.5, 1.2), point(1, 1.0), point(0, 1.0, None, 1), point(0.5, 2.0, None, 1)]
    assert barrier([*row, point(1, 1.0, None, 1)]).loss == pytest.approx(1.0)


def test_what_is_not_finite_has_no_barrier_and_is_not_best() -> None:
    row = [point(0.0, 1.0), point(0.5, None), point(1.0, 0.5)]
    assert barrier(row).loss is None
    found = best({"naive": row})
    assert found is not None
    assert found.lam == 1.0


def test_the_line_from_a_network_to_itself_is_flat() -> None:
    network = trained("norm", 0)
    found = sweep([network, copy.deepcopy(network)], batches(1200, 1797, 100))
    assert found.barrier["line"].loss == 0.0
    assert found.barrier["line"].accuracy == 0.0
    assert len({entry.loss for entry in found.curves["line"]}) == 1


def test_the_ends_are_the_networks_themselves() -> None:
    a, b = trained("norm", 0), trained("norm", 1)
    row = sweep([a, b], batches(1200, 1797, 100)).curves["line"]
    for network, entry in ((a, row[0]), (b, row[-1])):
        with torch.no_grad():
            scores = [(network(x), y) for x, y in batches(1200, 1797, 597)]
        loss = sum(float(nn.functional.cross_entropy(s, y, reduction="sum")) for s, y in scores) / 597
        assert entry.loss == pytest.approx(loss, rel=1e-5)
        assert entry.accuracy == sum(int((s.argmax(1) == y).sum()) for s, y in scores) / 597
        assert entry.n == 597


def test_batch_size_and_order_do_not_matter() -> None:
    models = [trained("norm", 0), trained("norm", 1)]
    reference = sweep(models, batches(1200, 1797, 597))
    for data in (batches(1200, 1797, 10), batches(1200, 1797, 64), batches(1200, 1797, 64)[::-1]):
        for one, other in zip(reference.curves["line"], sweep(models, data).curves["line"], strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
            assert one.accuracy == other.accuracy
            assert one.top5 == other.top5


class Counting:
    """A source that counts how often each batch is read."""

    description = fingerprint = "counting"

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
    ledger = Ledger(chunk=3)
    evaluate(line.body, source, line.places, Measure(), ledger)
    assert source.reads == [1] * 12
    assert len(ledger.sums) == 11


def test_a_pass_that_died_anywhere_ends_with_the_same_sums() -> None:
    line = LineOfModels([trained("plain", 0), trained("plain", 1)], None, "lerp", 4)
    data = batches(1200, 1797, 50)
    whole = Ledger(chunk=3)
    evaluate(line.body, Counting(data), line.places, Measure(), whole)

    class Died(Exception):
        pass

    for after in range(1, 20):
        kept: list[Any] = []

        def save(ledger: Ledger, after: int = after, kept: list[Any] = kept) -> None:
            kept.append(ledger.to_json(packed=after % 2 == 0))
            if len(kept) == after:
                raise Died

        with pytest.raises(Died):
            evaluate(line.body, Counting(data), line.places, Measure(), Ledger(chunk=3, save=save))
        resumed = Ledger.from_json(kept[-1])
        source = Counting(data)
        evaluate(line.body, source, line.places, Measure(), resumed)
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
    body = Body(module, torch.device("cpu"))
    (x, y), *_ = batches(0, 100, 100)
    sizes = [piece.size for piece, _ in body.outputs(Batch(0, (x,), target=y, size=100))]
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
