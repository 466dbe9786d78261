"""What `interpolate` measured, field for field the `data` of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rebasin_cli.interpolation.sweep import Barrier, Best, SweepPoint


@dataclass(frozen=True, slots=True)
class InterpolateResult:
    """The outcome of one sweep.

    `checkpoints` are the files along the naive line; `a` is the first and `b` the last of them. `aligned` is B aligned,
    at the end of the matched curve, or None. `recalibration` is None, or `{"method", "data"}`. `n` counts samples
    that every network saw, `skipped` those that could not be read. `resumed` says that earlier sums were used, and is
    not part of the JSON: an interrupted run ends with the same file as one that was not.
    """

    a: Path
    b: Path
    aligned: Path | None
    checkpoints: tuple[Path, ...]
    report: Path | None
    model: str
    model_args: Mapping[str, Any]
    data: str
    mode: str
    steps: int
    loss: str
    metric: str
    recalibration: Mapping[str, Any] | None
    seed: int
    amp: bool
    n: int
    skipped: int
    curves: Mapping[str, tuple[SweepPoint, ...]]
    barrier: Mapping[str, Barrier]
    best: Best | None
    saved: tuple[Path, ...]
    sha256: Mapping[str, str]
    run: Mapping[str, Any]
    progress: Mapping[str, Any]
    out: Path
    warnings: tuple[str, ...]
    resumed: bool

    def to_json(self) -> dict[str, Any]:
        left_out = ("warnings", "resumed")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}

    @property
    def gated_barrier(self) -> float | None:
        """The loss barrier that a gate is held against: the matched curve's, or else the naive one's."""
        return self.barrier["matched" if "matched" in self.barrier else "naive"].loss
