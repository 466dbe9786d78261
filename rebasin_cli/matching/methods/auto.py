"""Automatic choice: with data the method whose midpoint is the best, as measured; without data weight matching.

Inputs that the networks make themselves are no data for this: what is measured on them does not say reliably which of
two alignments is better (docs/matching.md). With data, B as it is, weight matching, activation matching, a mixture of
both, and, where it costs no hours, learned matching are compared on samples that none of them has seen (see `choice`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rebasin_cli.errors import ModelError, one_line
from rebasin_cli.matching.method import MatchTask, Method

if TYPE_CHECKING:
    from torch import Tensor

    from rebasin_cli.matching.choice import Attempt, Results
    from rebasin_cli.matching.learning.learn import Learning
    from rebasin_cli.matching.result import MatchResult

_LARGEST_LEARNED = 1 << 24
"""Largest number of parameters of a model that is learned on a CPU where nobody asked for more than `auto` effort."""
_STEPS = 200
"""Most steps of learning; `--method learned` goes on."""


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.data.generated_kinds import generated_kind
    from rebasin_cli.data.ranks import ALONE
    from rebasin_cli.matching.choice import choose
    from rebasin_cli.matching.search import match_weights

    if task.matching.data is None or generated_kind(task.matching.data) is not None:
        return match_weights(task)
    limit = task.matching.time_limit
    deadline = None if limit is None else time.monotonic() + limit
    return choose(replace(task, ranks=ALONE), _attempts(task, deadline), deadline)


def _attempts(task: MatchTask, deadline: float | None) -> list[Attempt]:
    """What is tried, in the order of its cost."""
    from rebasin_cli.execution.activations import can_record
    from rebasin_cli.matching.activation_matching import ENOUGH, SHARES, match_recorded, record
    from rebasin_cli.matching.choice import IDENTITY, WEIGHT, Attempt
    from rebasin_cli.matching.outcome import result_of
    from rebasin_cli.matching.search import match_weights

    recorded: list[list[Tensor]] = []

    def by_activations(task: MatchTask, _: Results, share: float) -> MatchResult:
        if not recorded:
            recorded.append(record(task, deadline=deadline, most=ENOUGH))
        return match_recorded(task, recorded[0], share, deadline)

    attempts = [
        Attempt(IDENTITY, lambda task, _: result_of(task, {}), needed=True),
        Attempt(WEIGHT, lambda task, _: match_weights(_limited(task, deadline)), needed=True),
    ]
    if can_record(task.pair, task.understood):
        attempts += [Attempt(name, partial(by_activations, share=share)) for name, share in SHARES.items()]
    if _is_learned(task):
        attempts.append(Attempt("learned", lambda task, results: _learned(task, results, deadline)))
    return attempts


def _limited(task: MatchTask, deadline: float | None) -> MatchTask:
    """The task with the time that is left."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    return replace(task, matching=replace(task.matching, time_limit=left))


def _is_learned(task: MatchTask) -> bool:
    """Whether learning takes part in this effort."""
    numbers = sum(tensor.numel() for tensor in task.pair.subject.module.parameters())
    effort = task.matching.effort
    return effort != "fast" and (effort != "auto" or numbers <= _LARGEST_LEARNED or task.device.type != "cpu")


def _learned(task: MatchTask, results: Results, deadline: float | None) -> MatchResult:
    """Learned matching, from the best of the others by its own measure.

    Raises:
        ModelError: the model has no gradients.
    """
    from rebasin_cli.matching.choice import WEIGHT
    from rebasin_cli.matching.learning.learn import Learning, Starts, learn
    from rebasin_cli.matching.learning.loop import Course
    from rebasin_cli.matching.methods.learned import LearnedOptions

    options = LearnedOptions()
    course = Course(_STEPS, options.patience, task.matching.seed)
    starts = Starts(results[WEIGHT], {name: one.permutations for name, one in results.items()}, cut_short=False)
    limited = replace(_limited(task, deadline), shuffle=True, state=None)
    try:
        return learn(limited, Learning(course, options.learning_rate), "learned", starts)
    except RuntimeError as error:  # of autograd: the model's operations have no derivative
        raise ModelError(f"nothing can be learned: {one_line(error)}", slug="gradients") from error


def _maps(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.symmetries.learned import learn_maps
    from rebasin_cli.matching.symmetries.match import match_maps

    if task.matching.data is None:
        return match_maps(task)
    return learn_maps(_alone(task), _choice(task), METHOD.name)


def _alone(task: MatchTask) -> MatchTask:
    from rebasin_cli.data.ranks import ALONE

    return replace(task, ranks=ALONE, shuffle=True, state=None)


def _choice(task: MatchTask) -> Learning:
    """No learning: the best start is chosen."""
    from rebasin_cli.matching.learning.learn import Learning
    from rebasin_cli.matching.learning.loop import Course

    return Learning(Course(steps=0, patience=0, seed=task.matching.seed), rate=0.0)


METHOD = Method(
    name="auto",
    help="With data the method whose midpoint is the best on samples held back; else like weight.",
    match=_match,
    maps=_maps,
    learns=True,
)
