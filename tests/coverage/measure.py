"""One row of the coverage ledger: what is derived for a model, how long it takes, and what execution says."""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from rebasin_cli.execution.soundness import SoundnessCheck, verify_by_execution
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.graph import Trace
from rebasin_cli.tracing.tracer import trace_model
from tests.coverage.detector_heads import DetectorHeads, detector_input
from tests.coverage.entries import ONE_BY_ONE, Entry

GOLDEN = Path(__file__).parents[1] / "golden" / "coverage.json"
TIMES = ("trace_seconds", "derive_seconds", "error", "noise_floor", "refuted")
"""Entries that differ between machines and runs; everything else must come out as it did."""

ORDINARY = (
    "model input",
    "model output",
    "convolution kernel positions",
    "embedding rows (token ids)",
)
"""Reasons that tell nothing where another axis of the same tensor has one that does."""

LEAST_SHARE = 0.001

LARGE = 500_000_000
"""Parameters from which on a model is executed one layer at a time: four gigabytes of float64."""


@dataclass(frozen=True)
class Row:
    """What is derived, and what it took.

    `held` says why numbers keep their order: the share of all elements that no group moves, by reason. `execution` says
    what was run. `error` is the largest relative error of any output in float64 under a random element of every group,
    None where execution was left out; `noise_floor` that of perturbing every weight by one rounding, where it was
    needed; `refuted` that of the same permutations with one tensor left out of one group, for models that are executed
    one layer at a time. Seconds are of processor time.
    """

    roots: int
    families: int
    groups: int
    units: int
    parameters: int
    free_fraction: float
    weightless: bool
    unknown_ops: tuple[str, ...]
    decisions: int
    unread: int
    held: dict[str, float]
    execution: str
    error: float | None
    noise_floor: float | None
    refuted: float | None
    trace_seconds: float
    derive_seconds: float
    shortfall: str


def measure(entry: Entry, *, execute: bool = True) -> Row:
    """Trace, derive and, where that is feasible, execute.

    Raises:
        AssertionError: execution contradicts what was derived.
    """
    module = entry.weightless()
    example = entry.example(module)
    began = time.process_time()
    trace = trace_model(module, example, with_numbers=entry.build)
    traced = time.process_time()
    found = derive(trace)
    derived = time.process_time()
    check, refuted = _check(entry, found) if execute else (None, None)
    assert check is None or check.ok, f"{entry.name} is not sound: {check}"
    return Row(
        roots=found.roots,
        families=found.families,
        groups=len(found.spec.groups),
        units=found.units,
        parameters=found.parameters,
        free_fraction=round(found.free_fraction, 4),
        weightless=trace.weightless,
        unknown_ops=tuple(sorted({op.op for op in found.unknown_ops})),
        decisions=len({call.place for call in trace.weight_decisions}),
        unread=len(found.unread),
        held=_held(trace, found),
        execution=ONE_BY_ONE if found.parameters > LARGE else entry.execution,
        error=_rounded(None if check is None else check.max_relative_error),
        noise_floor=_rounded(None if check is None else check.noise_floor),
        refuted=_rounded(refuted),
        trace_seconds=round(traced - began, 2),
        derive_seconds=round(derived - traced, 2),
        shortfall=entry.shortfall,
    )


def _held(trace: Trace, found: Derivation) -> dict[str, float]:
    """Shares of elements that no group moves, by what the pinned axes of their tensors say; the smallest left out."""
    moved, counted = found.spec.sites_by_key, set[int]()
    reasons: dict[str, list[str]] = {}
    for axis in found.spec.pinned:
        if axis.key not in moved:
            reasons.setdefault(axis.key, []).append(re.sub(r" \([^()]*:\d+\)", "", axis.reason))
    elements: dict[str, int] = {}
    for key, given in reasons.items():
        value = trace.values[trace.state[key]]
        if trace.state[key] not in counted and value.dtype.is_floating_point:
            counted.add(trace.state[key])
            telling = [reason for reason in given if reason not in ORDINARY] or given
            elements[telling[0]] = elements.get(telling[0], 0) + prod(value.shape)
    shares = {reason: count / found.parameters for reason, count in sorted(elements.items(), key=lambda e: -e[1])}
    return {reason: round(share, 4) for reason, share in shares.items() if share >= LEAST_SHARE}


def _check(entry: Entry, found: Derivation) -> tuple[SoundnessCheck, float | None]:
    """What execution says, and for large models also of one tensor left behind."""
    module = entry.weightless()
    example = entry.example(module)
    if entry.heads_only:
        module, example = DetectorHeads(module), detector_input()
    check = verify_by_execution(lambda: module, example, found.spec)
    if found.parameters <= LARGE:
        return check, None
    return check, verify_by_execution(lambda: module, example, with_one_site_less(found.spec, 0)).max_relative_error


def with_one_site_less(spec: PermutationSpec, seed: int) -> PermutationSpec:
    """A wrong claim: somewhere in the model, one tensor does not follow its group."""
    place, site = random.Random(seed).choice(
        [(place, site) for place, group in enumerate(spec.groups) for site in group.sites if group.size > 1]
    )
    groups = list(spec.groups)
    groups[place] = replace(groups[place], sites=tuple(other for other in groups[place].sites if other != site))
    return replace(spec, groups=tuple(groups))


def _rounded(error: float | None) -> float | None:
    return None if error is None else float(f"{error:.1e}")


def golden() -> dict[str, dict[str, Any]]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def lasting(row: Row | dict[str, Any]) -> dict[str, Any]:
    """The part of a row that does not depend on the machine."""
    fields = asdict(row) if isinstance(row, Row) else row
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return {name: value for name, value in plain.items() if name not in TIMES}
