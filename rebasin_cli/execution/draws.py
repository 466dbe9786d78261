"""Permutations under which a wrong spec cannot hide.

A claim may be wrong in three ways, and the draws are made so that each shows.

1. A tensor is left behind: in the first draw, no unit of any group stays in its place.
2. Only some permutations of a group keep the function (rotations, mirror images, the even ones): a group of `n <= 8`
   units moves by an n-cycle first and by the transposition of two neighbours in that cycle next, which together
   generate all permutations. Larger groups move by two random permutations; the chance that both lie in a subgroup that
   a network could have is negligible.
3. Two axes that must move alike are in two groups: the two must move differently. Large groups do so by chance. Groups
   of `n <= 8` units have too few permutations for that, so in further draws each moves by the permutation whose number
   is a digit of the group's own number, in base `n!`: any two groups of one size then differ in at least one draw.
"""

from __future__ import annotations

import itertools
from math import factorial

import torch
from torch import Tensor

from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import AxisGroup, PermutationSpec

LEAST_DRAWS = 2
GENERATED = NUMBERED = 8
"""Largest groups that are given generators, and numbers."""


def telling_permutations(spec: PermutationSpec, seed: int, least: int = LEAST_DRAWS) -> list[Permutations]:
    """A few draws of one permutation for every group, as above.

    Args:
        spec: the groups.
        seed: of the draws.
        least: how many draws at least; more where small groups need them to be told apart.
    """
    generator = torch.Generator().manual_seed(seed)
    ranked: dict[int, list[AxisGroup]] = {}
    for group in spec.groups:
        if 2 <= group.size <= NUMBERED:
            ranked.setdefault(group.size, []).append(group)
    number = {group.name: place for groups in ranked.values() for place, group in enumerate(groups)}
    further = max((_digits(len(groups), factorial(size)) for size, groups in ranked.items()), default=0)
    draws: list[Permutations] = [{} for _ in range(max(least, LEAST_DRAWS + further))]
    for group in spec.groups:
        for place, perm in enumerate(_of_group(group.size, number.get(group.name), len(draws), generator)):
            draws[place][group.name] = perm
    return draws


def _of_group(size: int, number: int | None, draws: int, generator: torch.Generator) -> list[Tensor]:
    if size < 2:
        return [torch.arange(size)] * draws
    if size > GENERATED:
        return [derangement(size, generator) for _ in range(draws)]
    order = torch.randperm(size, generator=generator)
    cycle, swap = torch.arange(size), torch.arange(size)
    cycle[order] = order.roll(1)
    swap[order[:2]] = order[:2].flip(0)
    found = [cycle, swap]
    while len(found) < draws:
        if number is None:
            found.append(derangement(size, generator))
        else:
            digit = number // factorial(size) ** (len(found) - LEAST_DRAWS) % factorial(size)
            found.append(torch.tensor(next(itertools.islice(itertools.permutations(range(size)), digit, None))))
    return found


def _digits(groups: int, base: int) -> int:
    """Digits in this base that tell so many numbers apart."""
    digits = 0
    while base**digits < groups:
        digits += 1
    return digits


def derangement(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation of `size >= 2` units without fixed points."""
    perm = torch.randperm(size, generator=generator)
    fixed = (perm == torch.arange(size)).nonzero().flatten()
    if len(fixed) == 1:  # trade places with any other unit, which then is not fixed either
        other = (fixed + 1) % size
        perm[torch.cat([fixed, other])] = perm[torch.cat([other, fixed])]
    elif len(fixed) > 1:
        perm[fixed] = perm[fixed.roll(1)]
    return perm
