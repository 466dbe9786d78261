"""One pass over the data for many networks: every image is decoded once, and held while each network sees it.

The data are taken in chunks of as many batches as fit in a fixed amount of memory; for each chunk every network is put
in place once and run over all of it. Blending a network costs one reading of two checkpoints, which a chunk of hundreds
of images makes negligible, and only one network ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.errors import DataError, RebasinError
from rebasin_cli.interpolation.ledger import Ledger

CHUNK_BYTES = 128 * 2**20

Step = Callable[[Sequence[Batch]], Tensor]
"""The sums of one network over a chunk of batches, float64."""


class Chunks:
    """This process' share of the data, chunk by chunk of `size` batches of the whole."""

    def __init__(self, source: BatchSource, start: int, size: int, ranks: Ranks) -> None:
        self._batches: Iterator[Batch] = iter(source.batches(start, rank=ranks.rank, world=ranks.world))
        self._ahead: Batch | None = None
        self.size = size

    def until(self, stop: int) -> list[Batch]:
        """The next batches whose number is below `stop`."""
        found: list[Batch] = []
        while True:
            if self._ahead is None:
                self._ahead = next(self._batches, None)
            if self._ahead is None or self._ahead.index >= stop:
                return found
            found.append(self._ahead)
            self._ahead = None

    @property
    def exhausted(self) -> bool:
        if self._ahead is None:
            self._ahead = next(self._batches, None)
        return self._ahead is None


def chunk_size(source: BatchSource, ranks: Ranks, limit_bytes: int = CHUNK_BYTES) -> int:
    """How many batches a chunk holds, from the size of the first batch; the same in every process.

    Raises:
        DataError: there is no batch at all, or the first cannot be read.
    """
    size, error = 0, None
    if ranks.first:
        try:
            batch = next(iter(source.batches(0)), None)
            if batch is None:
                raise DataError(f"{source.description}: no samples")
            size = max(1, limit_bytes // max(1, batch.nbytes)) * ranks.world
        except RebasinError as caught:
            error = caught
    ranks.agree(error)
    return int(ranks.shared(size))


def run_pass(
    source: BatchSource,
    names: Sequence[str],
    place: Callable[[str], Step],
    ledger: Ledger,
    ranks: Ranks,
    *,
    prepare: Callable[[Sequence[Batch]], None] | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> None:
    """Bring the ledger of these networks to the end of the data.

    Args:
        place: puts the network of that name in place and returns what sums it over a chunk.
        prepare: called with each chunk before the networks see it.
        device: where the chunk is held.
        progress: told the number of batches of the whole that are done with, and the network's name.

    Raises:
        RebasinError: what reading or running raised, in every process alike.
    """
    if ledger.finished or not names:
        return
    if not ledger.chunk:
        ledger.chunk = chunk_size(source, ranks)
    start = ledger.start(tuple(names))
    chunks = Chunks(source, start, ledger.chunk, ranks)
    while True:
        stop = start - start % ledger.chunk + ledger.chunk
        batches, more = _read(chunks, stop, device, prepare, ranks)
        for name in names:
            if ledger.batches.get(name, 0) >= stop:
                continue
            ledger.add(name, _guarded(place, name, batches, ranks), stop)
            if progress is not None:
                progress(stop, name)
        if not more:
            break
        start = stop
    ledger.finished = True
    ledger.saved()


def _read(
    chunks: Chunks,
    stop: int,
    device: torch.device | None,
    prepare: Callable[[Sequence[Batch]], None] | None,
    ranks: Ranks,
) -> tuple[list[Batch], bool]:
    """The chunk's batches of this process, and whether any process has more after them."""
    batches: list[Batch] = []
    error: RebasinError | None = None
    more = False
    try:
        batches = chunks.until(stop)
        if device is not None:
            batches = [batch.to(device) for batch in batches]
        if prepare is not None:
            prepare(batches)
        more = not chunks.exhausted
    except RebasinError as caught:
        error = caught
    ranks.agree(error)
    return batches, bool(ranks.total(torch.tensor([float(more)], dtype=torch.float64)).item())


def _guarded(place: Callable[[str], Step], name: str, batches: Sequence[Batch], ranks: Ranks) -> Tensor:
    """One network's sums over the chunk, of all processes; a failure in one of them is raised in all."""
    sums: Tensor | None = None
    error: RebasinError | None = None
    try:
        sums = place(name)(batches)
    except RebasinError as caught:
        error = caught
    ranks.agree(error)
    assert sums is not None
    return ranks.total(sums)
