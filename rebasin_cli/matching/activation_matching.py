"""Activation matching: pair the units that go together on the same inputs (Ainsworth et al. 2022, section 3.1).

On real inputs this finds basins that the weights alone do not show; on synthetic inputs it makes a start for weight
matching that needs no data. Mixed with the weights, both speak for one set of permutations.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from rebasin_cli.matching.activation_terms import Terms, activations_alone, mixed
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.polish import Run, Settings
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import Effort, search
from rebasin_cli.matching.weighing import PLAIN, weigh
from rebasin_cli.matching.weight_matching import weight_matching
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import PermutationSpec, Tap

TOLERANCE = 1e-6


def match_activations(
    spec: PermutationSpec, taps: Sequence[Tap], correlations: Sequence[Tensor], *, seed: int = 0
) -> Permutations:
    """The permutations that raise the sum of the paired units' correlations most; units that no tap sees stay.

    Args:
        spec: the groups.
        taps, correlations: where units were seen, and how A's go with B's: (length, length) each.
        seed: of the visiting order, which matters only among equals.
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
        objective: how the weights count: see `weighing`; the result states the plain objective besides.
        share: how much activations weigh: 1 for them alone, less to let the weights speak too.
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
    run = Run(problem, "activations", seed, settings, found.permutations)
    result = conclude(problem, [run.finish()], "activation", seed, settings, objective=objective, plain=plain)
    return replace(result, passes=found.passes, converged=found.converged, timed_out=found.timed_out)


def _match_alone(terms: Terms, seed: int, time_limit: float | None) -> MatchResult:
    return weight_matching(
        terms.spec,
        terms.a,
        terms.b,
        parameters=terms.keys,
        seed=seed,
        starts=("identity",),
        time_limit=time_limit,
    )


def _match_mixture(terms: Terms, effort: Effort, seed: int, time_limit: float | None) -> MatchResult:
    return search(terms.spec, terms.a, terms.b, parameters=terms.keys, effort=effort, seed=seed, time_limit=time_limit)
