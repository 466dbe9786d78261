"""Which checkpoints share a base: fine-tunings of one network have their units in one order already.

Two checkpoints share a base where the order of the units as it is is a local optimum of their similarity: no group,
with the others as they are, has a better assignment than the identity. For networks trained apart that does not
happen by chance: of the orderings of a group of n units one in n! is the best. Where the groups are so small that it
could, the cosine decides. Those that share a base keep their order to each other; they are permuted together, or not
at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lgamma, log

import torch

from rebasin_cli.data.ranks import Ranks
from rebasin_cli.matching.polish import DescentRun, Settings
from rebasin_cli.matching.portfolio import NEARLY_EQUAL
from rebasin_cli.matching.problem import prepare
from rebasin_cli.merging.joint import Tensors
from rebasin_cli.spec import PermutationSpec

BY_CHANCE = log(1e-6)
"""Logarithm of the probability, by chance, from which an optimal order tells nothing."""


def in_one_order(
    spec: PermutationSpec, a: Tensors, b: Tensors, parameters: Sequence[str], device: torch.device
) -> bool:
    """Whether no group can be permuted for a gain, with the units as they are."""
    if not spec.groups:
        return False
    problem = prepare(spec, a, b, parameters, device=device)
    cosine = problem.identity / (problem.norms.scale or 1.0)
    orderings = sum(lgamma(group.size + 1) for group in spec.groups)
    if cosine < NEARLY_EQUAL and -orderings > BY_CHANCE:
        return False
    run = DescentRun(problem, "identity", 0, Settings())
    run.advance(1)
    return run.arrangement.is_identity


def shared_bases(count: int, alike: Callable[[int, int], bool], ranks: Ranks) -> tuple[tuple[int, ...], ...]:
    """The numbers of the checkpoints, those that share a base together, in the order of their first.

    Args:
        alike: whether two checkpoints share a base; asked of the first of each set and every checkpoint left.
    """
    left = list(range(count))
    found: list[tuple[int, ...]] = []
    while left:
        first, others = left[0], left[1:]
        same = ranks.divided(others, lambda number, first=first: alike(first, number))  # type: ignore[misc]
        found.append((first, *(number for number, one in zip(others, same, strict=True) if one)))
        left = [number for number, one in zip(others, same, strict=True) if not one]
    return tuple(found)
