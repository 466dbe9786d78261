"""Which parameter each entry of an optimizer's state belongs to, where only their order says so.

`torch.optim` numbers parameters by their place in `param_groups`. Within a group they keep the order of the model; how
the groups interleave is not recorded. Every interleaving in which all shapes agree is therefore followed at once, and
an entry is assigned only where all of them give it parameters that move alike. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

MOST_STATES = 200_000
"""Partial interleavings that are followed before the search gives up."""

Entry = TypeVar("Entry")
_Place = tuple[int, ...]  # how many entries of each group are assigned


@dataclass(frozen=True, slots=True)
class Candidate:
    """A parameter; two with the same `rule` and shape are moved alike."""

    key: str
    shape: tuple[int, ...]
    rule: Hashable = ()


@dataclass(frozen=True, slots=True)
class Assigned:
    """The parameters by group and place in it, or None where `ambiguous`: several interleavings move it differently."""

    parameters: tuple[tuple[Candidate, ...], ...] | None
    ambiguous: bool = False


def assign(
    groups: Sequence[Sequence[Entry]],
    candidates: Sequence[Candidate],
    fits: Callable[[Entry, Candidate], bool],
    matters: Callable[[Entry], bool] = lambda _entry: True,
) -> Assigned:
    """Assign every entry of every group to one of the candidates, whose order each group keeps.

    Candidates are left over where there are more of them than entries: an optimizer may hold some parameters only.

    Args:
        matters: whether an entry has anything to move; if not, any candidate will do.
    """
    layers = _forward(groups, candidates, fits)
    if layers is None:
        return Assigned(None)
    if not layers:
        return Assigned(None, ambiguous=True)
    options = _backward(groups, candidates, fits, layers)
    chosen: list[tuple[Candidate, ...]] = []
    for g, group in enumerate(groups):
        row: list[Candidate] = []
        for place in range(len(group)):
            possible = options[g, place]
            if matters(group[place]) and len({(one.shape, one.rule) for one in possible}) > 1:
                return Assigned(None, ambiguous=True)
            row.append(possible[0])
        chosen.append(tuple(row))
    return Assigned(tuple(chosen))


def _forward(
    groups: Sequence[Sequence[Entry]], candidates: Sequence[Candidate], fits: Callable[[Entry, Candidate], bool]
) -> list[set[_Place]] | None:
    """What can be assigned to the first i candidates, for each i; None: nothing fits; empty: too many ways."""
    lengths = tuple(len(group) for group in groups)
    spare = len(candidates) - sum(lengths)
    if spare < 0 or not any(lengths):
        return None
    layers: list[set[_Place]] = [{(0,) * len(lengths)}]
    followed = 0
    for seen, candidate in enumerate(candidates):
        after: set[_Place] = set()
        for place in layers[-1]:
            if seen - sum(place) < spare:
                after.add(place)
            for g, done in enumerate(place):
                if done < lengths[g] and fits(groups[g][done], candidate):
                    after.add((*place[:g], done + 1, *place[g + 1 :]))
        followed += len(after)
        if followed > MOST_STATES:
            return []
        layers.append(after)
    return layers if lengths in layers[-1] else None


def _backward(
    groups: Sequence[Sequence[Entry]],
    candidates: Sequence[Candidate],
    fits: Callable[[Entry, Candidate], bool],
    layers: Sequence[set[_Place]],
) -> dict[tuple[int, int], list[Candidate]]:
    """For each group and place in it, the candidates that it has in an interleaving that reaches the end."""
    lengths = tuple(len(group) for group in groups)
    spare = len(candidates) - sum(lengths)
    options: dict[tuple[int, int], list[Candidate]] = {}
    alive: set[_Place] = {lengths}
    for seen in reversed(range(len(candidates))):
        before: set[_Place] = set()
        for place in alive:
            if place in layers[seen] and seen - sum(place) < spare:
                before.add(place)
            for g, done in enumerate(place):
                earlier = (*place[:g], done - 1, *place[g + 1 :])
                if done and earlier in layers[seen] and fits(groups[g][done - 1], candidates[seen]):
                    before.add(earlier)
                    options.setdefault((g, done - 1), []).append(candidates[seen])
        alive = before
    return options
