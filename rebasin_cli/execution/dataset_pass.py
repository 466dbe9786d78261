"""One pass over a data set for many networks: each sample is decoded once, and every network is run on it.

The data are read in chunks of as many batches as fit in a fixed amount of memory. For each chunk, every network is
loaded once and run over all its batches. Loading costs one read of two checkpoints, which is negligible beside a chunk
of hundreds of images, and only one network exists at a time.

Results are sums over batches. They can be written to a file and read back, so an interrupted pass can be resumed.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.errors import DataError, RebasinError, about

CHUNK_BYTES = 128 * 2**20

Step = Callable[[str, Sequence[Batch]], Tensor]
"""Loads the network of this name and returns its sums over these batches, a float64 vector."""


@dataclass
class RunningSums:
    """Sums over batches for each network, of a pass that may be unfinished.

    `sums[name]` (float64 vectors) cover the batches `0 … batches[name] - 1`. Python's float text is exact, so sums that
    were written to a file and read back equal those that stayed in memory.

    Attributes:
        chunk: the number of batches per chunk; 0 before the pass has started.
        finished: the pass has reached the end of the data.
        save: called after each change.
        changes: counts changes, so that a caller can skip writing what it has already written.
    """

    chunk: int = 0
    finished: bool = False
    batches: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    save: Callable[[RunningSums], None] | None = None
    changes: int = 0

    def add(self, name: str, sums: Tensor, upto: int) -> None:
        """Add the sums of the batches up to (not including) `upto`."""
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        self.batches[name] = upto
        self._changed()

    def finish(self) -> None:
        self.finished = True
        self._changed()

    def _changed(self) -> None:
        self.changes += 1
        if self.save is not None:
            self.save(self)

    def start(self, names: Sequence[str]) -> int:
        """The number of the first batch that at least one of these networks lacks."""
        return min(self.batches.get(name, 0) for name in names) if names else 0

    def to_json(self, *, packed: bool = False) -> dict[str, Any]:
        """Plain data; `packed` writes the vectors as compressed base64, which suits long ones."""
        return {
            "chunk": self.chunk,
            "finished": self.finished,
            "places": {
                name: {"batches": self.batches[name], "sums": _pack(sums) if packed else sums.tolist()}
                for name, sums in self.sums.items()
            },
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> RunningSums:
        """Read the result of `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        places = document["places"]
        return RunningSums(
            chunk=int(document["chunk"]),
            finished=bool(document["finished"]),
            batches={str(name): int(entry["batches"]) for name, entry in places.items()},
            sums={str(name): _unpack(entry["sums"]) for name, entry in places.items()},
        )


def _pack(sums: Tensor) -> str:
    return base64.b64encode(zlib.compress(sums.numpy().astype("<f8").tobytes(), 1)).decode("ascii")


def _unpack(value: Any) -> Tensor:
    if isinstance(value, str):
        try:
            raw = zlib.decompress(base64.b64decode(value, validate=True))
        except zlib.error as error:
            raise ValueError(f"not packed sums: {error}") from error
        return torch.from_numpy(np.frombuffer(raw, dtype="<f8").astype(np.float64))
    return torch.tensor([float(number) for number in value], dtype=torch.float64)


def run_pass(
    source: BatchSource,
    names: Sequence[str],
    step: Step,
    running: RunningSums,
    ranks: Ranks,
    *,
    prepare: Callable[[Sequence[Batch]], None] | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> None:
    """Extend the running sums of these networks to the end of the data.

    Args:
        prepare: called with each chunk before any network is run on it.
        device: where the chunk is held.
        progress: called with the number of batches that are done, of the whole data, and the network's name.

    Raises:
        RebasinError: any failure of reading or running; every process raises the same.
    """
    if running.finished or not names:
        return
    if not running.chunk:
        running.chunk = chunk_size(source, ranks)
    start = running.start(names)
    chunks = _Chunks(source, start, ranks)
    while True:
        stop = start - start % running.chunk + running.chunk
        batches, more = _read(chunks, stop, device, prepare, ranks)
        for name in names:
            if running.batches.get(name, 0) >= stop:
                continue
            running.add(name, _sums_of_all_ranks(step, name, batches, ranks, source.origin), stop)
            if progress is not None:
                progress(stop, name)
        if not more:
            break
        start = stop
    running.finish()


def chunk_size(source: BatchSource, ranks: Ranks, limit_bytes: int = CHUNK_BYTES) -> int:
    """The number of batches in a chunk, from the size of the first batch; the same in every process.

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


class _Chunks:
    """This process' share of the batches, read one chunk at a time."""

    def __init__(self, source: BatchSource, start: int, ranks: Ranks) -> None:
        self._batches: Iterator[Batch] = iter(source.batches(start, rank=ranks.rank, world=ranks.world))
        self._ahead: Batch | None = None

    def until(self, stop: int) -> list[Batch]:
        """The next batches whose number is below `stop`."""
        found: list[Batch] = []
        while not self.exhausted and self._ahead is not None and self._ahead.index < stop:
            found.append(self._ahead)
            self._ahead = None
        return found

    @property
    def exhausted(self) -> bool:
        if self._ahead is None:
            self._ahead = next(self._batches, None)
        return self._ahead is None


def _read(
    chunks: _Chunks,
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


def _sums_of_all_ranks(step: Step, name: str, batches: Sequence[Batch], ranks: Ranks, origin: str) -> Tensor:
    """One network's sums over the chunk, added over all processes; a failure in one of them is raised in all."""
    sums: Tensor | None = None
    error: RebasinError | None = None
    try:
        sums = step(name, batches)
    except DataError as caught:
        error = about(caught, origin)
    except RebasinError as caught:
        error = caught
    ranks.agree(error)
    assert sums is not None
    return ranks.total(sums)
