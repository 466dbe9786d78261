"""Coordinate descent from several starts: each runs a few passes, and the best run on to convergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.descent import Descent
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.polish import DescentRun, Order, Polished, Settings
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.matching.result import MatchResult, OnPass
from rebasin_cli.matching.starts import STARTS, find_start
from rebasin_cli.spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class StartEntry:
    """One descent that takes part.

    Attributes:
        place: moves the descent from the identity to the start, given the seed; None to stay there.
    """

    name: str
    seed: int
    place: Callable[[Descent, int], None] | None = None


def multistart(
    problem: Problem,
    entries: Sequence[StartEntry],
    settings: Settings,
    *,
    heat: int | None = None,
    finalists: int = 1,
    thorough: bool = False,
) -> list[Polished]:
    """Run descents from every start; the ends, in the order of the starts.

    If no group moves from the identity, no further start is tried: B is at least at a local optimum.

    Args:
        heat: passes that every start gets; then only the `finalists` best run on. None to run all to convergence.
        thorough: try the further starts in that case too, and run them to convergence, so that it is known whether B is
            only at a local optimum.
    """
    ends: dict[int, Polished] = {}
    for number, entry in enumerate(entries):
        if ends and settings.out_of_time:
            break
        run = DescentRun(problem, entry.name, entry.seed, settings, place=entry.place)
        settled = any(is_fixed(end) for end in ends.values())
        run.advance(heat if len(entries) > 1 and not settled else None)
        leads = all(run.value > other.value for other in ends.values())
        if heat is not None and finalists and number == len(entries) - 1 and leads and not settings.out_of_time:
            run.advance(None)
        ends[number] = run.finish()
        del run  # its similarities are large, and the next start makes its own
        if is_fixed(ends[number]) and not thorough:
            break
    ranked = sorted(ends, key=lambda number: -ends[number].value)
    for number in ranked[:finalists]:
        if not ends[number].converged and not settings.out_of_time:
            ends[number] = resume(problem, ends[number], settings)
    return [ends[number] for number in sorted(ends)]


def is_fixed(end: Polished) -> bool:
    """Whether this is the identity, and the assignments' optimality shows that no single group can improve on it."""
    return end.from_identity and end.converged and end.passes_that_moved == 0


def resume(problem: Problem, end: Polished, settings: Settings) -> Polished:
    """Run a descent that was interrupted to convergence."""
    run = DescentRun(problem, end.start, end.seed, settings, end.arrangement.permutations(), earlier=end)
    run.advance(None)
    return run.finish()


def weight_matching(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    seed: int = 0,
    starts: Sequence[str] = ("identity", "forward"),
    order: Order = "random",
    max_passes: int | None = None,
    relative_tolerance: float = 1e-6,
    heat: int | None = 1,
    time_limit: float | None = None,
    on_pass: OnPass | None = None,
    budget: int | None = None,
    device: torch.device | str = "cpu",
) -> MatchResult:
    """Find the permutations of B's units that bring its weights closest to A's, by coordinate descents alone.

    Maximises `sum over parameters <A, B permuted>`; the best end wins, and the identity is always a candidate.

    Args:
        spec: which axes move together; checked against the tensors already.
        a, b: tensors by model key, read lazily and several times; never changed.
        parameters: the keys that count in the objective; buffers only move along.
        seed: of the visiting orders and of random starts.
        starts: names of starts that are a single descent; a name may be given several times, with a new seed each time.
        max_passes: of each start; None for no bound.
        relative_tolerance: gains below this, in units of the norms of the tensors concerned, do not count.
        heat: passes that every start gets before only the best runs on; None to run all to convergence.
        time_limit: seconds, after which the best so far is returned.
        on_pass: called after every pass.
        budget: bytes of similarities to keep between visits.
        device: where products are made; assignments are solved on the CPU.

    Raises:
        ModelError: a tensor is missing, or its shapes differ.
        NumericalError: a weight or a similarity is not finite.
        UsageError: an unknown start.
    """
    began = time.monotonic()
    entries = [_entry(name, seed + number) for number, name in enumerate(starts)]
    problem = prepare(spec, a, b, parameters, budget=budget, device=device)
    deadline = None if time_limit is None else began + time_limit
    settings = Settings(order, max_passes, relative_tolerance, deadline, began, on_pass)
    return conclude(problem, multistart(problem, entries, settings, heat=heat), seed, settings)


def _entry(name: str, seed: int) -> StartEntry:
    descend = find_start(name).descend
    if descend is None:
        known = ", ".join(start.name for start in STARTS if start.descend is not None)
        raise UsageError(f"start {name!r} is not a single descent", hint=f"those that are: {known}")
    return StartEntry(name, seed, descend.place)
