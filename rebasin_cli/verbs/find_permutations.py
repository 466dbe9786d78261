"""The matching of one pair: by weights, from starts that may look at the units at work, or by activations on data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from rebasin_cli.data import Batch
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import UsageError
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.synthetic_inputs import is_image, natural_noise, white_noise
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.matching.activation_matching import activation_matching
from rebasin_cli.matching.result import MatchResult, OnPass
from rebasin_cli.matching.search import Effort, search
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import Permutations
from rebasin_cli.verbs import straight_through
from rebasin_cli.verbs.activations import (
    ROOM,
    ROOM_UNASKED,
    can_run,
    data_batches,
    measured,
    start_from,
    synthetic_starts,
)

ACTIVATION = "activation"
MIXTURES = {"mixture": 0.2, "activations": 1.0}
"""Shares of the activations in what straight-through learning may also start from."""
METHODS = ("weight", ACTIVATION, straight_through.NAME)


@dataclass(frozen=True, slots=True)
class Matching:
    """How the permutations are looked for."""

    method: str
    effort: Effort
    starts: tuple[str, ...] | None
    restarts: int | None
    max_passes: int | None
    time_limit: float | None
    seed: int
    device: str
    data: str | None = None
    limit: int | None = None
    batch_size: int = 64
    mix: float = 1.0
    objective: str = PLAIN
    steps: int = straight_through.STEPS
    rate: float = straight_through.RATE
    keep: float | None = None


def find_permutations(
    pair: Pair,
    understood: Understanding,
    matching: Matching,
    model: str,
    *,
    device: torch.device,
    on_pass: OnPass,
    ranks: Ranks = ALONE,
) -> MatchResult:
    """Match B to A as the user asked.

    Args:
        model: the model's name, to which the transform of its data belongs.
        device: where products are computed.
        on_pass: is told of every pass of a search.
        ranks: the processes that take part in `activation_statistics`; this is the first of them.

    Raises:
        UsageError: straight-through without data, or activation matching without a traced model.
        DataError, ModelError, NumericalError: as the method says.
    """
    if matching.method == ACTIVATION:
        seen = activation_statistics(pair, understood, matching, model, ranks)
        return _by_activations(pair, understood, matching, seen)
    learning = _learning(matching)
    found = _by_weights(pair, understood, matching, model, device=device, on_pass=on_pass)
    if learning is None:
        return found
    further = _further_starts(pair, understood, matching, model, learning.deadline)
    batches = partial(_batches, pair, understood, matching, model)
    return straight_through.learn(pair, understood, found, further, batches, learning, device=device, on_pass=on_pass)


def _learning(matching: Matching) -> straight_through.Learning | None:
    """What is to be learned after weight matching; None for nothing."""
    if matching.method != straight_through.NAME:
        return None
    if matching.data is None:
        raise UsageError("straight-through learning needs data to take losses on", hint="give --data")
    if matching.keep is not None and not 0 <= matching.keep <= 1:
        raise UsageError(f"keep_similarity is {matching.keep}: a share of weight matching's is between 0 and 1")
    deadline = None if matching.time_limit is None else time.monotonic() + matching.time_limit
    return straight_through.Learning(matching.steps, matching.rate, matching.seed, deadline, matching.keep)


def _further_starts(
    pair: Pair, understood: Understanding, matching: Matching, model: str, deadline: float | None
) -> Mapping[str, Callable[[], Permutations]]:
    """What learning may start from besides weight matching; the units are run on the data once for all."""
    if understood.derivation is None:
        return {}
    seen = cache(lambda: activation_statistics(pair, understood, matching, model, ALONE))

    def matched(mix: float) -> Permutations:
        left = None if deadline is None else deadline - time.monotonic()
        return _by_activations(pair, understood, replace(matching, mix=mix, time_limit=left), seen()).permutations

    return {name: partial(matched, mix) for name, mix in MIXTURES.items()}


def _by_weights(
    pair: Pair, understood: Understanding, matching: Matching, model: str, *, device: torch.device, on_pass: OnPass
) -> MatchResult:
    return search(
        understood.spec,
        pair.a,
        pair.b,
        parameters=pair.subject.parameters,
        objective=matching.objective,
        seed=matching.seed,
        effort=matching.effort,
        starts=matching.starts,
        restarts=matching.restarts,
        max_passes=matching.max_passes,
        time_limit=matching.time_limit,
        device=device,
        on_pass=on_pass,
        activations=_activation_starts(pair, understood, matching, model),
    )


def activation_statistics(
    pair: Pair, understood: Understanding, matching: Matching, model: str, ranks: Ranks
) -> list[torch.Tensor]:
    """The correlations that activation matching maximises; the same in all processes, each of which runs a share.

    Raises:
        UsageError: the model was not traced.
        DataError, ModelError, NumericalError: a batch cannot be read or run.
    """
    if understood.derivation is None:
        raise UsageError("activation matching needs a model that was traced", hint="leave out --spec")
    return measured(pair, understood, _inputs(pair, understood, matching, model, ranks), ranks=ranks)


def _by_activations(
    pair: Pair, understood: Understanding, matching: Matching, correlations: Sequence[torch.Tensor]
) -> MatchResult:
    assert understood.derivation is not None
    return activation_matching(
        understood.spec,
        pair.a,
        pair.b,
        parameters=pair.subject.parameters,
        taps=understood.derivation.taps,
        correlations=correlations,
        share=matching.mix,
        objective=matching.objective,
        effort=matching.effort,
        seed=matching.seed,
        time_limit=matching.time_limit,
    )


def _activation_starts(
    pair: Pair, understood: Understanding, matching: Matching, model: str
) -> Mapping[str, Callable[[], Permutations]]:
    """Starts from what the units say: on noise where that is worth its cost, and on data where there are some."""
    asked = matching.effort == "thorough" or "activations" in (matching.starts or ())
    starts: dict[str, Callable[[], Permutations]] = {}
    if can_run(pair, understood, ROOM if asked else ROOM_UNASKED):
        starts.update(synthetic_starts(pair, understood, matching.seed))
    if matching.data is not None and can_run(pair, understood):
        inputs = partial(_inputs, pair, understood, matching, model)
        starts["data"] = partial(start_from, pair, understood, inputs, matching.seed)
    return starts


def _inputs(
    pair: Pair, understood: Understanding, matching: Matching, model: str, ranks: Ranks = ALONE
) -> Iterable[ExampleInput]:
    """What units are seen at work on: the data, or noise where there are none."""
    if matching.data is None:
        make = natural_noise if is_image(understood.example) else white_noise
        yield from make(understood.example, matching.seed)
        return
    for batch in _batches(pair, understood, matching, model, ranks):
        yield ExampleInput(batch.args, dict(batch.kwargs))


def _batches(
    pair: Pair, understood: Understanding, matching: Matching, model: str, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    assert matching.data is not None
    return data_batches(
        pair,
        understood,
        matching.data,
        model=model,
        limit=matching.limit,
        batch_size=matching.batch_size,
        seed=matching.seed,
        shuffle=matching.method == straight_through.NAME,
        ranks=ranks,
    )
