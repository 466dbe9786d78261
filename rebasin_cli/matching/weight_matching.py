"""Weight matching: permutations of B that bring its weights as close as possible to A's, from nothing but the weights.

Maximises `sum over parameters <A, B permuted>` by coordinate descent from several starts; the best end wins, and
leaving B as it is always takes part.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.contest import Start, contest
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.polish import Order, Settings
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import MatchResult, OnPass
from rebasin_cli.permutation import random
from rebasin_cli.spec import PermutationSpec

STARTS = ("identity", "forward", "random")


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
    """Find the permutations of B's units that bring its weights closest to A's.

    Args:
        spec: which axes move together; checked against the tensors already.
        a, b: tensors by model key, read lazily and several times; never changed.
        parameters: the keys that count in the objective; buffers only move along.
        seed: of the visiting orders and of random starts.
        starts: where to descend from: `identity`, `forward`, `random` (one for each mention).
        max_passes: of each start; None for as many as it takes.
        relative_tolerance: gains below this, in units of the norms of the tensors concerned, do not count.
        heat: passes that every start gets before only the best runs on; None to run all to their end.
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
    for start in starts:
        if start not in STARTS:
            raise UsageError(f"unknown start {start!r}: weight matching knows {', '.join(STARTS)}")
    problem = prepare(spec, a, b, parameters, budget=budget, device=device)
    deadline = None if time_limit is None else began + time_limit
    settings = Settings(order, max_passes, relative_tolerance, deadline, began, on_pass)
    entries = [_start(spec, name, seed + number) for number, name in enumerate(starts)]
    return conclude(problem, contest(problem, entries, settings, heat=heat), "weight", seed, settings)


def _start(spec: PermutationSpec, name: str, seed: int) -> Start:
    return Start(name, seed, (lambda: random(spec, seed)) if name == "random" else None)
