"""Turn the ends of descents into the result: the best of them, or the identity where none is better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.polish import Polished, Settings
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.matching.result import Candidate, Criterion, MatchResult, Stopped
from rebasin_cli.matching.starts.identity import START as IDENTITY
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.permutation import Permutations


def conclude(
    problem: Problem,
    ends: Sequence[Polished],
    seed: int,
    settings: Settings,
    *,
    objective: str = PLAIN,
    plain: Problem | None = None,
    stopped: Stopped | None = None,
) -> MatchResult:
    """The result of several descents: the best end, or the identity where none is better.

    Args:
        objective: which the problem maximises.
        plain: the problem of the plain objective, where it is another one.
        stopped: why a search of several phases ended.
    """
    least = settings.tolerance * problem.norms.scale
    best = max(ends, key=lambda end: end.value, default=None)
    aligned = best is None or best.value <= problem.identity + least
    if best is None or (aligned and best.value <= problem.identity):
        best = _unmoved(problem, best)
    permutations = best.arrangement.permutations()
    plain = plain or problem
    before = plain.identity
    after = best.value if plain is problem else plain.value(Arrangement(plain.families, permutations))
    scale = plain.norms.scale or 1.0
    return MatchResult(
        permutations=permutations,
        objective_before=before,
        objective_after=after,
        criterion=Criterion(objective, problem.identity, best.value),
        per_pass=best.per_pass,
        passes=len(best.per_pass),
        converged=best.converged,
        start=best.start,
        seed=seed,
        already_aligned=aligned,
        relative_tolerance=settings.tolerance,
        cosine_before=before / scale,
        cosine_after=after / scale,
        distance_before=plain.norms.distance(before),
        distance_after=plain.norms.distance(after),
        candidates=tuple(
            Candidate(end.start, end.seed, end.value, len(end.per_pass), end.converged, end.seconds) for end in ends
        ),
        moved_units=best.arrangement.moved_units,
        seconds=time.monotonic() - settings.began,
        timed_out=settings.out_of_time,
        stopped=stopped,
    )


def result_of(task: MatchTask, permutations: Permutations, *, converged: bool = True) -> MatchResult:
    """The result of a method that found these permutations by itself, with their similarity, cosine and distance.

    Args:
        permutations: int64 (size,) by group name, gather meaning; groups that are missing are not permuted.
        converged: whether the method found what it looks for; see `MatchResult`.

    Raises:
        ModelError, NumericalError: the pair does not fit the spec, or a similarity is not finite.
    """
    began = time.monotonic()
    problem = prepare(task.understood.spec, task.pair.a, task.pair.b, task.pair.subject.parameters, device=task.device)
    settings = Settings(began=began)
    identity = replace(conclude(problem, (), task.matching.seed, settings), converged=converged)
    found = evaluated(problem, identity, {**identity.permutations, **permutations})
    criterion = Criterion(PLAIN, problem.identity, found.objective_after)
    return replace(found, criterion=criterion, start=task.matching.method, seconds=time.monotonic() - began)


def evaluated(problem: Problem, result: MatchResult, permutations: Permutations) -> MatchResult:
    """The result with other permutations, and the plain objective of these; the rest is unchanged.

    Args:
        problem: of the plain objective.
    """
    arrangement = Arrangement(problem.families, permutations)
    after = problem.value(arrangement)
    return replace(
        result,
        permutations=arrangement.permutations(),
        objective_after=after,
        cosine_after=after / (problem.norms.scale or 1.0),
        distance_after=problem.norms.distance(after),
        already_aligned=arrangement.is_identity,
        moved_units=arrangement.moved_units,
    )


def _unmoved(problem: Problem, best: Polished | None) -> Polished:
    """The identity; it has converged if a descent that ended there has."""
    ended_here = best if best is not None and best.arrangement.is_identity else None
    return Polished(
        start=IDENTITY.name,
        seed=0 if best is None else best.seed,
        arrangement=Arrangement(problem.families),
        value=problem.identity,
        per_pass=() if ended_here is None else ended_here.per_pass,
        passes_that_moved=0,
        converged=ended_here is not None and ended_here.converged,
        seconds=0.0 if best is None else best.seconds,
        work=0 if best is None else best.work,
    )
