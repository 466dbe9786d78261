"""Activation matching: pair the units whose activations correlate (Ainsworth et al. 2022, section 3.1).

Correlations are written as terms of the matching problem. A correlation matrix C between the units of A and B at a tap
is the pair of tensors (C, identity) with a site on their first axes: permuting the second by p makes their inner
product `sum_i C[i, p(i)]`, which is what activation matching maximises. So nested groups, several taps of one group,
and any mixture with the weights are solved by the same search. On synthetic inputs the result is a start for weight
matching that needs no data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.execution.activations import pair_correlations
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.plan import Effort
from rebasin_cli.matching.polish import DescentRun, Settings
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from rebasin_cli.matching.weighing import PLAIN, weigh
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site, Tap

TOLERANCE = 1e-6


PREFIX = "activations at operation "
SHARES = {"mixture": 0.2, "activations": 1.0}
"""Shares of the activations in the matchings that are compared with weight matching by the loss of their midpoint."""


def record(task: MatchTask) -> list[Tensor]:
    """The correlations at the taps of the task's model; the same in all processes, each of which runs a share.

    Raises:
        DataError, ModelError, NumericalError: a batch cannot be read or run.
    """
    return pair_correlations(task.pair, task.understood, task.inputs(), ranks=task.ranks)


def match_recorded(task: MatchTask, correlations: Sequence[Tensor], share: float) -> MatchResult:
    """`activation_matching` of the task's pair, its correlations given."""
    assert task.understood.derivation is not None
    return activation_matching(
        task.understood.spec,
        task.pair.a,
        task.pair.b,
        parameters=task.pair.subject.parameters,
        taps=task.understood.derivation.taps,
        correlations=correlations,
        share=share,
        objective=task.matching.objective,
        effort=task.matching.effort,
        seed=task.matching.seed,
        time_limit=task.matching.time_limit,
    )


def further_matchings(task: MatchTask, deadline: float | None) -> Mapping[str, Callable[[], Permutations]]:
    """Makers of matchings to compare with that of the weights; activations are recorded once for all of them.

    Empty for a model that was not traced.
    """
    if task.understood.derivation is None:
        return {}
    recorded = cache(lambda: record(task))

    def matched(share: float) -> Permutations:
        left = None if deadline is None else deadline - time.monotonic()
        limited = replace(task, matching=replace(task.matching, time_limit=left))
        return match_recorded(limited, recorded(), share).permutations

    return {name: partial(matched, share) for name, share in SHARES.items()}


def match_activations(
    spec: PermutationSpec, taps: Sequence[Tap], correlations: Sequence[Tensor], *, seed: int = 0
) -> Permutations:
    """The permutations with the largest sum of correlations of paired units; units that no tap records stay in place.

    Args:
        spec: the groups.
        taps, correlations: where activations were recorded, and the correlations there, (length, length) each.
        seed: of the visiting order, which matters only between equal sums.
    """
    return _match_alone(activations_alone(spec, taps, correlations), seed, None).permutations


def activation_matching(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    taps: Sequence[Tap],
    correlations: Sequence[Tensor],
    share: float = 1.0,
    objective: str = PLAIN,
    effort: Effort = "standard",
    seed: int = 0,
    time_limit: float | None = None,
) -> MatchResult:
    """Match by activations, or by activations and weights together.

    Args:
        spec, a, b, parameters: as for `weight_matching`; the result's objective is that of the weights.
        taps, correlations: see `match_activations`.
        objective: how the weights count: see `weighing`; the result also states the plain objective.
        share: weight of the activations; below 1 the parameters have the rest.
        effort, time_limit: of the search for a mixture.
    """
    began = time.monotonic()
    sides = weigh(objective, spec, a, b, parameters)
    if share >= 1.0:
        found = _match_alone(activations_alone(spec, taps, correlations), seed, time_limit)
    else:
        found = _match_mixture(
            mixed(spec, sides.a, sides.b, sides.keys, taps, correlations, share), effort, seed, time_limit
        )
    problem = prepare(spec, sides.a, sides.b, sides.keys)
    plain = problem if objective == PLAIN else prepare(spec, a, b, parameters)
    settings = Settings("random", None, TOLERANCE, None, began, None)
    run = DescentRun(problem, "activations", seed, settings, found.permutations)
    result = conclude(problem, [run.finish()], seed, settings, objective=objective, plain=plain)
    return replace(result, passes=found.passes, converged=found.converged, timed_out=found.timed_out)


def _match_alone(terms: ActivationTerms, seed: int, time_limit: float | None) -> MatchResult:
    return weight_matching(
        terms.spec,
        terms.a,
        terms.b,
        parameters=terms.keys,
        seed=seed,
        starts=("identity",),
        time_limit=time_limit,
    )


def _match_mixture(terms: ActivationTerms, effort: Effort, seed: int, time_limit: float | None) -> MatchResult:
    return search(terms.spec, terms.a, terms.b, parameters=terms.keys, effort=effort, seed=seed, time_limit=time_limit)


@dataclass(frozen=True, slots=True)
class ActivationTerms:
    """A matching problem with activations in it.

    Args:
        spec: the groups with sites at the taps, in addition to those in the weights or instead of them.
        a, b: tensors by key.
        keys: those that make up the objective.
    """

    spec: PermutationSpec
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    keys: tuple[str, ...]


def activations_alone(spec: PermutationSpec, taps: Sequence[Tap], correlations: Sequence[Tensor]) -> ActivationTerms:
    """The problem in which only activations count; groups that no tap records keep their order."""
    sites = _tap_sites(taps)
    groups = tuple(replace(group, sites=tuple(sites.get(group.name, ()))) for group in spec.groups)
    return _terms(PermutationSpec(groups), taps, correlations, 1.0)


def mixed(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Collection[str],
    taps: Sequence[Tap],
    correlations: Sequence[Tensor],
    share: float,
) -> ActivationTerms:
    """The problem in which activations weigh `share` and weights the rest, each relative to its largest possible value.

    The weights' inner product is at most `|A| |B|`, the sum of the correlations at most the number of units at taps.

    Args:
        share: in (0, 1).
    """
    sites = _tap_sites(taps)
    groups: tuple[AxisGroup, ...] = tuple(
        replace(group, sites=(*group.sites, *sites.get(group.name, ()))) for group in spec.groups
    )
    most = _norm(a, parameters) * _norm(b, parameters)
    units = sum(tap.length for tap in taps)
    terms = _terms(PermutationSpec(groups), taps, correlations, share / (1 - share) * most / max(units, 1))
    return ActivationTerms(terms.spec, _Joined(a, terms.a), _Joined(b, terms.b), (*parameters, *terms.keys))


def _tap_sites(taps: Sequence[Tap]) -> dict[str, list[Site]]:
    sites: dict[str, list[Site]] = {}
    for tap in taps:
        for name, site in tap.sites:
            sites.setdefault(name, []).append(replace(site, key=_key(tap), axis=0))
    return sites


def _key(tap: Tap) -> str:
    return f"{PREFIX}{tap.ordinal}, {tap.operand or 'result'}, axis {tap.axis}"


def _terms(spec: PermutationSpec, taps: Sequence[Tap], correlations: Sequence[Tensor], scale: float) -> ActivationTerms:
    a = {_key(tap): (matrix * scale).float() for tap, matrix in zip(taps, correlations, strict=True)}
    b = {_key(tap): torch.eye(tap.length) for tap in taps}
    return ActivationTerms(spec, a, b, tuple(a))


def _norm(tensors: Mapping[str, Tensor], keys: Collection[str]) -> float:
    return sqrt(sum(float(tensors[key].float().square().sum()) for key in keys))


class _Joined(Mapping[str, Tensor]):
    """Two mappings read as one; a tensor is read when it is asked for."""

    def __init__(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
        self._first, self._second = first, second

    def __getitem__(self, key: str) -> Tensor:
        return self._second[key] if key in self._second else self._first[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._first
        yield from self._second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)
