"""What `align` found, verified and wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.matching.result import Criterion
from rebasin_cli.verbs.document import Result


@dataclass(frozen=True, slots=True)
class MovedGroup:
    """One axis group: its size, and how many of its units ended in another place."""

    name: str
    size: int
    moved: int


@dataclass(frozen=True, slots=True)
class Change:
    """A measure before and after the alignment."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Objective:
    """The plain objective, `sum over parameters <A, permuted B>`, before, after, and at the end of each pass.

    `per_pass` is empty where something else was maximised: see `Criterion`.
    """

    before: float
    after: float
    per_pass: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AlignResult(Result):
    """The outcome of one alignment; field for field the `data` of `rebasin align --json`.

    `cosine` and `distance` (L2) are over the model's parameters. `out`, `report` and `sha256["out"]` are None after a
    dry run. Seconds are wall-clock, by phase; `peak_rss_bytes` counts mapped file pages too.
    """

    a: Path
    b: Path
    out: Path | None
    report: Path | None
    permutations: Path | None
    spec: Path | None
    model: str
    model_args: Mapping[str, Any]
    input: str
    inputs: tuple[str, ...]
    input_file: Path | None
    method: str
    start: str
    seed: int
    device: str
    passes: int
    converged: bool
    relative_tolerance: float | None
    already_aligned: bool
    objective: Objective
    criterion: Criterion
    cosine: Change
    distance: Change
    groups: tuple[MovedGroup, ...]
    moved_units: int
    units: int
    parameters: int
    free_fraction: float | None
    unknown_ops: tuple[str, ...]
    verified: FunctionCheck
    seconds: Mapping[str, float]
    peak_rss_bytes: int | None
    sha256: Mapping[str, str | None]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]
