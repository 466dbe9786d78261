"""Learned matching: permutations whose midpoint has the lowest loss, by the straight-through estimator.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), Algorithm 2. It starts from the best of weight matching,
activation matching and a mixture of both, so the result is never worse than these by its own measure. It goes on while
data that are not learned on say that it improves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rebasin_cli.matching.method import PERMUTATION, MatchTask, Method, Need
from rebasin_cli.options import option, options_class

if TYPE_CHECKING:
    from rebasin_cli.matching.learning.learn import Learning
    from rebasin_cli.matching.result import MatchResult


@options_class
class LearnedOptions:
    """The options of learned matching."""

    learning_steps: int = option(
        "Most steps of learning. It ends earlier where nothing improves.",
        group="Learning",
        metavar="N",
        at_least=1,
        default=2000,
    )
    patience: int = option(
        "Take smaller steps after N that improved nothing on data that are held back, and end after the third time.",
        group="Learning",
        metavar="N",
        at_least=1,
        default=60,
    )
    learning_rate: float = option(
        "Step size of learning, relative to the norm of the weights.",
        group="Learning",
        metavar="R",
        at_least=1e-6,
        default=0.03,
    )
    step_batches: int = option(
        "Batches of one step. Under torchrun the processes share them.",
        group="Learning",
        metavar="N",
        at_least=1,
        default=1,
    )
    keep_similarity: float | None = option(
        "Share of weight matching's similarity that learning must keep.",
        group="Learning",
        metavar="S",
        at_least=0,
        at_most=1,
        default=None,
        shown_default="at least that of B as it is",
    )
    unlabelled: bool = option("Learn from the outputs of A and B, not from labels.", group="Learning", default=False)
    gradient_checkpointing: bool = option(
        "Compute activations again in the backward pass, instead of keeping them. Slower, less memory.",
        group="Learning",
        default=False,
    )
    amp: bool = option("Run in bfloat16 where PyTorch considers it safe.", group="Learning", default=False)


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.learning.learn import learn

    return learn(replace(task, shuffle=True), _learning(task), METHOD.name)


def _maps(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.symmetries.learned import learn_maps

    return learn_maps(replace(task, shuffle=True), _learning(task), METHOD.name)


def _learning(task: MatchTask) -> Learning:
    from rebasin_cli.matching.learning.learn import Learning
    from rebasin_cli.matching.learning.loop import Course

    options = task.options(LearnedOptions)
    course = Course(options.learning_steps, options.patience, task.matching.seed, options.step_batches)
    return Learning(
        course,
        options.learning_rate,
        options.keep_similarity,
        labels=not options.unlabelled,
        checkpointing=options.gradient_checkpointing,
        amp=options.amp,
    )


def _assist(task: MatchTask) -> None:
    """Share the batches of every step and judgement."""
    (_match if task.matching.symmetries == PERMUTATION else _maps)(task)


METHOD = Method(
    name="learned",
    help="Learn from data the permutations whose midpoint with A has the lowest loss (straight-through estimator).",
    match=_match,
    maps=_maps,
    learns=True,
    resumes=True,
    aliases=("straight-through",),
    needs=frozenset({Need.DATA, Need.GRADIENTS}),
    options=LearnedOptions,
    assist=_assist,
)
