"""Sums over batches, by network, as they grow; what a pass needs in order to go on where it stood.

Every entry holds how many batches (a prefix of the pass) its sums cover. Python's float text is exact, so sums that
went through a file are the sums that would have stayed in memory.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Ledger:
    """`sums[name]` (float64 vectors) cover the batches `0 … batches[name] - 1`; `chunk` is how many are taken at once.

    `finished` says that the pass has reached the end of the data. `save` is called after each change; `changes` counts
    them, so that who writes a long ledger writes it only when there is something new.
    """

    chunk: int = 0
    finished: bool = False
    batches: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    save: Callable[[Ledger], None] | None = None
    changes: int = 0

    def add(self, name: str, sums: Tensor, upto: int) -> None:
        """Add the sums of the batches up to (not including) `upto`."""
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        self.batches[name] = upto
        self.saved()

    def saved(self) -> None:
        self.changes += 1
        if self.save is not None:
            self.save(self)

    def start(self, names: tuple[str, ...]) -> int:
        """The first batch that some of these networks have not seen."""
        return min(self.batches.get(name, 0) for name in names) if names else 0

    def to_json(self, *, packed: bool = False) -> dict[str, Any]:
        """Plain data; `packed` writes the vectors as compressed base64, for long ones."""
        return {
            "chunk": self.chunk,
            "finished": self.finished,
            "places": {
                name: {"batches": self.batches[name], "sums": _pack(sums) if packed else sums.tolist()}
                for name, sums in self.sums.items()
            },
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Ledger:
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError for anything else."""
        places = document["places"]
        return Ledger(
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
            raise ValueError(f"sums that were not packed: {error}") from error
        return torch.from_numpy(np.frombuffer(raw, dtype="<f8").astype(np.float64))
    return torch.tensor([float(number) for number in value], dtype=torch.float64)
