"""Every network aligned to one of them, which is named or is the one most similar to all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rebasin_cli.data.ranks import Ranks
from rebasin_cli.matching.composition import Composition
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.merging.joint import Joint
from rebasin_cli.permutation import Permutations, identity

Match = Callable[[int, int], MatchResult]
"""(a, b) → the permutations that bring network b to network a."""


@dataclass(frozen=True, slots=True)
class AllPairs:
    """The result of `auto`: the reference, the permutations to it, and the largest inconsistency of a cycle."""

    reference: int
    placed: list[Permutations]
    cycles: int


def to_reference(joint: Joint, reference: int, match: Match, ranks: Ranks) -> list[Permutations]:
    """The permutations of each network to the reference; pairs are divided among the processes."""
    placed = joint.unmoved()
    others = [number for number in range(len(joint.networks)) if number != reference]
    found = ranks.divided(others, lambda number: match(reference, number).permutations)
    for number, permutations in zip(others, found, strict=True):
        placed[number] = permutations
    return placed


def to_most_similar(joint: Joint, match: Match, ranks: Ranks) -> AllPairs:
    """Align all pairs, and take the network whose cosines with the others have the largest sum."""
    pairs = list(combinations(range(len(joint.networks)), 2))

    def work(pair: tuple[int, int]) -> tuple[float, Permutations]:
        found = match(*pair)
        return found.cosine_after, found.permutations

    found = dict(zip(pairs, ranks.divided(pairs, work), strict=True))
    likeness = [0.0] * len(joint.networks)
    for (a, b), (cosine, _) in found.items():
        likeness[a] += cosine * joint.counts[b]
        likeness[b] += cosine * joint.counts[a]
    for number, count in enumerate(joint.counts):
        likeness[number] += count - 1  # those that share a base with it
    reference = max(range(len(likeness)), key=lambda number: likeness[number])
    by_pair = {pair: permutations for pair, (_, permutations) in found.items()}
    placed = [
        identity(joint.spec) if number == reference else _between(by_pair, joint.composition, reference, number)
        for number in range(len(joint.networks))
    ]
    return AllPairs(reference, placed, largest_cycle(by_pair, joint.composition, len(joint.networks)))


def _between(by_pair: Mapping[tuple[int, int], Permutations], composition: Composition, a: int, b: int) -> Permutations:
    """The permutations that bring b to a, from those that were found for the pair in the other direction."""
    return by_pair[a, b] if a < b else composition.inverted(by_pair[b, a])


def largest_cycle(by_pair: Mapping[tuple[int, int], Permutations], composition: Composition, count: int) -> int:
    """The largest number of units that a cycle of three networks does not bring back to their places."""
    largest = 0
    for a, b, c in combinations(range(count), 3):
        around = composition.composed(by_pair[b, c], by_pair[a, b])  # c to b to a
        back = composition.composed(around, composition.inverted(by_pair[a, c]))
        largest = max(largest, composition.moved(back))
    return largest


def cycles_through_one_order(placed: Sequence[Permutations], composition: Composition) -> int:
    """`largest_cycle` of permutations that are factored through a common order."""
    inverses = list(map(composition.inverted, placed))
    by_pair = {(a, b): composition.composed(placed[b], inverses[a]) for a, b in combinations(range(len(placed)), 2)}
    return largest_cycle(by_pair, composition, len(placed))
