"""The barrier is that of the definition, and the points of a sweep are the networks themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rebasin_cli.compat.lines import LineOfModels, loader_source
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.interpolation.sweep import Sweep, SweepPoint, barrier, best, summarize
from tests.interpolation.digits import batches, trained


def sweep(models: list[nn.Module], data: list[Any], steps: int = 4) -> Sweep:
    line = LineOfModels(models, None, "lerp", steps)
    source = loader_source(data, "test")
    return summarize(line.networks, evaluate(line.slot, source, line.networks.all, Measure(), RunningSums()))


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
