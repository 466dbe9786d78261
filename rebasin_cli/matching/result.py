"""What a matching returns, and what it reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rebasin_cli.execution.scores import Values
from rebasin_cli.maps import Frame, Maps
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass of coordinate descent, or one iteration of another method.

    Attributes:
        start: the start of the present descent.
        number: 1, 2, … within this start.
        visited: groups that were solved; those whose similarity had not changed are left out.
        moved_groups: groups whose permutation changed.
        objective: after the pass.
        elapsed: seconds since the matching began.
        left: estimate of the seconds until it ends; None where there is none.
        words: what a method says of an iteration that is not a pass over groups.
    """

    start: str
    number: int
    visited: int
    moved_groups: int
    objective: float
    elapsed: float
    left: float | None = None
    words: str | None = None

    @property
    def detail(self) -> str:
        """The report in words, for a progress display."""
        if self.words is not None:
            return self.words
        moved = f"{self.moved_groups} of {self.visited} groups moved"
        return f"{self.start}, pass {self.number}, {moved}, similarity {self.objective:.5g}"


Stopped = Literal["bound", "agreement", "margin", "effort", "time"]
"""Why a search by weights ended: its objective reached its upper bound; B's own order is an optimum that nothing else
exceeded; two starts ended alike and every match stands out (see `certainty`); the work of the effort was done; the time
limit was reached."""

OnPass = Callable[[PassReport], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where one start ended."""

    start: str
    seed: int
    objective: float
    passes: int
    converged: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Criterion:
    """The quantity that decided between permutations, and its value for B as it was and permuted.

    Attributes:
        name: an objective (see `weighing`), where more is better, or `midpoint loss`, where less is better.
        weight_matching: its value for weight matching's permutations, where the method started from them.
    """

    name: str
    before: float
    after: float
    weight_matching: float | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A method that was tried, and what its midpoint is worth on samples that no method has seen.

    Attributes:
        method: its name; `identity` for B as it is.
        loss, accuracy: of the midpoint; None where it is not finite, or there are no classes.
        kept: whether the result is this method's.
    """

    method: str
    loss: float | None
    accuracy: float | None
    kept: bool


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One judgement of a learning.

    Attributes:
        step: after how many steps.
        held_loss: of the midpoint, on the samples that are held back.
        train_loss: mean of the losses that were learned from since the last judgement; None before the first step.
    """

    step: int
    held_loss: float
    train_loss: float | None


LearningStopped = Literal["patience", "bound", "time"]
"""Why a learning ended: nothing improved any more; all steps were taken; the time limit was reached."""


@dataclass(frozen=True, slots=True)
class LearningEnd:
    """A learning, and how it ended.

    Attributes:
        steps: that were taken. best_step: after which the result was found; 0 for a start.
        first_loss, best_loss: held loss of the best start and of the result.
        last_tenth: how far the lowest held loss fell in the last tenth of the steps.
        held_samples: how many samples judged.
        given_up: why the result is that of the weights and not what was learned; None where it is what was learned.
    """

    stopped: LearningStopped
    steps: int
    best_step: int
    first_loss: float
    best_loss: float
    last_tenth: float
    held_samples: int
    curve: tuple[CurvePoint, ...]
    given_up: str | None = None

    @property
    def still_improving(self) -> bool:
        """Whether more steps pay: the last tenth of them brought a share of what all brought that is not small."""
        gained = self.first_loss - self.best_loss
        return self.stopped != "patience" and self.last_tenth > STILL * max(gained, 0.0) > 0


STILL = 0.01
"""Share of the whole gain that the last tenth of the steps must bring, for more steps to be worth their time."""


@dataclass(frozen=True, slots=True)
class MatchResult:
    """Permutations that match B to A, and the values of the objective.

    Attributes:
        permutations: int64 (size,) by group name, gather meaning, for every group of the spec.
        objective_before, objective_after: `sum over parameters <A, B>` with B as it was and permuted, whatever was
            maximised; likewise cosine and distance.
        criterion: what was maximised.
        per_pass: what was maximised, after each pass from the winning start.
        converged: no single group (no block with all that is nested in it) can raise the objective by more than
            `relative_tolerance` times the product of the norms of the tensors that it touches, since its assignment is
            optimal; for a group on two axes of one tensor, to first order. Activation matching states this of its own
            objective; for learning, whose steps `passes` counts, it means that nothing improved any more.
        already_aligned: nothing better than leaving B as it is was found.
        start: the start that won. candidates: all that were tried.
        method: the matching method's name; empty where a search was called directly.
        learned_on: what was learned from data, in words; None where nothing was.
        ends: how A and B classify the data, where labels were learned from.
        stopped: why the search by weights ended; None where there was none.
        tried: the methods that were compared, in the order in which they were tried; empty where none were.
        notes: what was left out and why, a sentence each.
        learning: how the learning went; None where there was none.
        maps: what is applied instead of the permutations where larger classes were searched, by group of `searched`;
            `permutations` has those of groups whose units are not mixed. None where permutations alone were searched.
        frame: the gauge that mapped networks are given.
        searched: the groups as they were searched.
        limited: groups that the numbers of a network kept from more than permutations, with the reason.
    """

    permutations: Permutations
    objective_before: float
    objective_after: float
    criterion: Criterion
    per_pass: tuple[float, ...]
    passes: int
    converged: bool
    start: str
    seed: int
    already_aligned: bool
    relative_tolerance: float
    cosine_before: float
    cosine_after: float
    distance_before: float
    distance_after: float
    candidates: tuple[Candidate, ...]
    moved_units: int
    seconds: float
    timed_out: bool = False
    method: str = ""
    learned_on: str | None = None
    ends: tuple[Values, ...] = ()
    stopped: Stopped | None = None
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()
    learning: LearningEnd | None = None
    maps: Maps | None = None
    frame: Frame | None = None
    searched: PermutationSpec | None = None
    limited: Mapping[str, str] = field(default_factory=dict)
