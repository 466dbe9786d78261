"""Activation matching: pair the units that are alike in what the weights after them read (Ainsworth et al. 2022, 3.1).

How alike they are is written as terms of the matching problem. A matrix C between the units of A and B at a tap is the
pair of tensors (C, identity) with a site on their first axes: permuting the second by p makes their inner product
`sum_i C[i, p(i)]`, which is what activation matching maximises. So nested groups, several taps of one group, and any
mixture with the weights are solved by the same search. On synthetic inputs the result is a start for weight matching
that needs no data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.execution.activations import Likeness, pair_likenesses
from rebasin_cli.execution.synthetic_inputs import is_image, natural_noise, white_noise
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.plan import Effort
from rebasin_cli.matching.polish import DescentRun, Settings
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from rebasin_cli.matching.weighing import PLAIN, weigh
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site, Tap

TOLERANCE = 1e-6
PREFIX = "activations at operation "
DEFAULT: Likeness = "covariance"
MIXTURE = 0.2
SHARES = {"activation": 1.0, "mixture": MIXTURE}
"""Shares of the activations in the matchings that are compared with weight matching by the loss of their midpoint."""
ENOUGH = 2048
"""Samples after which a start and an automatic choice record no more; the mean over more changes little."""

Inputs = Callable[[], Iterable[ExampleInput]]


def sources(task: MatchTask, most: int | None = None) -> dict[str, Inputs]:
    """What activations can be recorded on, by name: noise, noise like images where the model takes one, and the data.

    The last one is the best that there is.

    Args:
        most: of the data, no batch is begun once so many samples have been read.
    """
    example, seed = task.understood.example, task.matching.seed
    found: dict[str, Inputs] = {"noise": partial(white_noise, example, seed)}
    if is_image(example):
        found["natural noise"] = partial(natural_noise, example, seed)
    if task.matching.data is not None:
        found["data"] = partial(_of_data, task, most)
    return found


def _of_data(task: MatchTask, most: int | None) -> Iterator[ExampleInput]:
    seen = 0
    for batch in task.batches():
        yield ExampleInput(batch.args, dict(batch.kwargs))
        seen += batch.size
        if most is not None and seen >= most:
            return


def record(
    task: MatchTask, kind: Likeness = DEFAULT, deadline: float | None = None, most: int | None = None
) -> list[Tensor]:
    """How alike the units are at the taps of the task's model, on the best inputs that there are.

    The same in all processes, each of which reads its own share of the data.

    Raises:
        DataError, ModelError, NumericalError: a batch cannot be read or run.
    """
    inputs = list(sources(task, most).values())[-1]
    return pair_likenesses(task.pair, task.understood, inputs(), kind, ranks=task.ranks, deadline=deadline)


def match_recorded(task: MatchTask, likenesses: Sequence[Tensor], share: float, deadline: float | None) -> MatchResult:
    """`activation_matching` of the task's pair, given what was recorded."""
    assert task.understood.derivation is not None
    return activation_matching(
        task.understood.spec,
        task.pair.a,
        task.pair.b,
        parameters=task.pair.subject.parameters,
        taps=task.understood.derivation.taps,
        likenesses=likenesses,
        share=share,
        objective=task.matching.objective,
        effort=task.matching.effort,
        seed=task.matching.seed,
        time_limit=None if deadline is None else max(0.0, deadline - time.monotonic()),
    )


def further_matchings(task: MatchTask, deadline: float | None) -> Mapping[str, Callable[[], Permutations]]:
    """Makers of matchings to compare with that of the weights; activations are recorded once for all of them.

    Empty for a model that was not traced.
    """
    if task.understood.derivation is None:
        return {}
    recorded = cache(lambda: record(task, deadline=deadline, most=ENOUGH))

    def matched(share: float) -> Permutations:
        return match_recorded(task, recorded(), share, deadline).permutations

    return {name: partial(matched, share) for name, share in SHARES.items()}


def match_activations(
    spec: PermutationSpec, taps: Sequence[Tap], likenesses: Sequence[Tensor], *, seed: int = 0
) -> Permutations:
    """The permutations by which paired units are most alike in all; units that no tap records stay in place.

    Args:
        spec: the groups.
        taps, likenesses: where activations were recorded, and how alike the units are there, (length, length) each.
        seed: of the visiting order, which matters only between equal sums.
    """
    return _match_alone(activations_alone(spec, taps, likenesses), seed, None).permutations


def activation_matching(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    taps: Sequence[Tap],
    likenesses: Sequence[Tensor],
    share: float = 1.0,
    objective: str = PLAIN,
    effort: Effort = "standard",
    seed: int = 0,
    time_limit: float | None = None,
) -> MatchResult:
    """Match by activations, or by activations and weights together.

    Args:
        spec, a, b, parameters: as for `weight_matching`; the result's objective is that of the weights.
        taps, likenesses: see `match_activations`.
        objective: how the weights count: see `weighing`; the result also states the plain objective.
        share: weight of the activations; below 1 the parameters have the rest.
        effort, time_limit: of the search for a mixture.
    """
    began = time.monotonic()
    sides = weigh(objective, spec, a, b, parameters)
    if share >= 1.0:
        found = _match_alone(activations_alone(spec, taps, likenesses), seed, time_limit)
    else:
        found = _match_mixture(
            mixed(spec, sides.a, sides.b, sides.keys, taps, likenesses, share), effort, seed, time_limit
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


def activations_alone(spec: PermutationSpec, taps: Sequence[Tap], likenesses: Sequence[Tensor]) -> ActivationTerms:
    """The problem in which only activations count; groups that no tap records keep their order."""
    sites = _tap_sites(taps)
    groups = tuple(replace(group, sites=tuple(sites.get(group.name, ()))) for group in spec.groups)
    return _terms(PermutationSpec(groups), taps, likenesses, 1.0)


def mixed(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Collection[str],
    taps: Sequence[Tap],
    likenesses: Sequence[Tensor],
    share: float,
) -> ActivationTerms:
    """The problem in which activations weigh `share` and weights the rest, each relative to its largest possible value.

    The weights' inner product is at most `|A| |B|`, the sum of the likenesses about the number of units at taps.

    Args:
        share: in (0, 1).
    """
    sites = _tap_sites(taps)
    groups: tuple[AxisGroup, ...] = tuple(
        replace(group, sites=(*group.sites, *sites.get(group.name, ()))) for group in spec.groups
    )
    most = _norm(a, parameters) * _norm(b, parameters)
    units = sum(tap.length for tap in taps)
    terms = _terms(PermutationSpec(groups), taps, likenesses, share / (1 - share) * most / max(units, 1))
    return ActivationTerms(terms.spec, _Joined(a, terms.a), _Joined(b, terms.b), (*parameters, *terms.keys))


def _tap_sites(taps: Sequence[Tap]) -> dict[str, list[Site]]:
    sites: dict[str, list[Site]] = {}
    for tap in taps:
        for name, site in tap.sites:
            sites.setdefault(name, []).append(replace(site, key=_key(tap), axis=0))
    return sites


def _key(tap: Tap) -> str:
    return f"{PREFIX}{tap.ordinal}, {tap.operand or 'result'}, axis {tap.axis}"


def _terms(spec: PermutationSpec, taps: Sequence[Tap], likenesses: Sequence[Tensor], scale: float) -> ActivationTerms:
    a = {_key(tap): (matrix * scale).float() for tap, matrix in zip(taps, likenesses, strict=True)}
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
