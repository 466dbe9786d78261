"""Several starts, one winner: every start runs a few passes, and the best of them run on to their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rebasin_cli.matching.polish import Polished, Run, Settings
from rebasin_cli.matching.problem import Problem
from rebasin_cli.permutation import Permutations


@dataclass(frozen=True, slots=True)
class Start:
    """Where a descent begins.

    Attributes:
        build: makes the permutations to start from; None for the identity, and for `forward`, which the descent builds.
    """

    name: str
    seed: int
    build: Callable[[], Permutations] | None = None


def contest(
    problem: Problem,
    starts: Sequence[Start],
    settings: Settings,
    *,
    heat: int | None = None,
    finalists: int = 1,
) -> list[Polished]:
    """Run descents from every start; the ends, in the order of the starts.

    The identity goes first where it takes part. If no group moves from it, no other start is
    tried: B lies in A's basin.

    Args:
        heat: passes that every start gets; then only the `finalists` best run on. None to run all to their end.
    """
    ends: dict[int, Polished] = {}
    for number, start in enumerate(starts):
        if ends and settings.out_of_time:
            break
        run = Run(problem, start.name, start.seed, settings, None if start.build is None else start.build())
        run.advance(heat if len(starts) > 1 else None)
        leads = all(run.value > other.value for other in ends.values())
        if heat is not None and finalists and number == len(starts) - 1 and leads and not settings.out_of_time:
            run.advance(None)
        ends[number] = run.finish()
        del run  # its similarities are large, and the next start makes its own
        if is_fixed(ends[number]):
            break
    ranked = sorted(ends, key=lambda number: -ends[number].value)
    for number in ranked[:finalists]:
        if not ends[number].converged and not settings.out_of_time:
            ends[number] = resume(problem, ends[number], settings)
    return [ends[number] for number in sorted(ends)]


def is_fixed(end: Polished) -> bool:
    """Is this the identity, with the proof that no single group can improve on it?"""
    return end.start == "identity" and end.converged and end.passes_that_moved == 0


def resume(problem: Problem, end: Polished, settings: Settings) -> Polished:
    """Go on to the end from where a descent was left."""
    run = Run(problem, end.start, end.seed, settings, end.arrangement.permutations(), end)
    run.advance(None)
    return run.finish()
