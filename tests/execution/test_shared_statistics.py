"""Statistics of activations that several processes share are those of one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebasin_cli.execution.activations import CrossCovariance


class Exchange:
    """What `all_reduce` does, among threads."""

    def __init__(self, world: int) -> None:
        self._barrier, self._sent = Barrier(world), [torch.empty(0)] * world

    def of(self, rank: int) -> Callable[[Tensor], Tensor]:
        def total(tensor: Tensor) -> Tensor:
            self._sent[rank] = tensor.clone()
            self._barrier.wait(timeout=30)
            found = torch.stack(self._sent).sum(0)
            self._barrier.wait(timeout=30)
            return found

        return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(0, 9), st.floats(-1e3, 1e3))
def test_shared_sums_are_those_of_one_process(seed: int, world: int, batches: int, offset: float) -> None:
    """Also where a process has no batch at all, and where the mean is large beside the deviation."""
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(2, 5, 2, 3, generator=generator) + offset for _ in range(batches)]
    whole = CrossCovariance("whole", 3, 2)
    for a, b in data:
        whole.add(a, b)
    parts = [CrossCovariance(f"rank {rank}", 3, 2) for rank in range(world)]
    for number, (a, b) in enumerate(data):
        parts[number % world].add(a, b)
    exchange = Exchange(world)
    with ThreadPoolExecutor(world) as pool:
        list(pool.map(lambda rank: parts[rank].share(exchange.of(rank)), range(world)))
    for part in parts:
        assert part.count == whole.count
        torch.testing.assert_close(part.covariance(), whole.covariance(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(part.correlation(), whole.correlation(), rtol=1e-6, atol=1e-9)
        assert torch.equal(part.correlation(), parts[0].correlation())


def test_further_batches_may_follow() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = torch.randn(4, 6, 1, 2, generator=generator)
    alone, shared = CrossCovariance("alone", 2), CrossCovariance("shared", 2)
    for one in (alone, shared):
        one.add(a, b)
    shared.share(lambda tensor: tensor)
    for one in (alone, shared):
        one.add(c, d)
    torch.testing.assert_close(shared.covariance(), alone.covariance())
