"""Permutations under which a wrong spec cannot hide: no unit stays in its place, and no two groups move alike.

A claim may be wrong in two ways. A tensor is left behind: then any permutation that moves every unit shows it. Or two
axes that must move alike are in two groups (or the other way round): then the two must move differently. Large groups
do so by chance. Groups of `n <= 4` units have so few permutations without fixed points (1, 2 and 9 for n = 2, 3, 4)
that chance does not suffice; there the draws are the digits of the group's number, so that any two groups of one size
differ in at least one draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import AxisGroup, PermutationSpec

LEAST_DRAWS = 2
SMALL = 4


def telling_permutations(spec: PermutationSpec, seed: int, least: int = LEAST_DRAWS) -> list[Permutations]:
    """A few draws of one permutation for every group; in the first, every group of two or more units moves wholly.

    Args:
        spec: the groups.
        seed: of the draws.
        least: how many draws at least; more where small groups need them to be told apart.
    """
    generator = torch.Generator().manual_seed(seed)
    ranked: dict[int, list[AxisGroup]] = {}
    for group in spec.groups:
        if 2 <= group.size <= SMALL:
            ranked.setdefault(group.size, []).append(group)
    choices = {size: _choices(size) for size in ranked}
    count = max([least, *(_digits(len(groups), len(choices[size])) for size, groups in ranked.items())])
    number = {group.name: place for groups in ranked.values() for place, group in enumerate(groups)}
    draws: list[Permutations] = []
    for draw in range(count):
        draws.append({})
        for group in spec.groups:
            if group.size < 2:
                draws[-1][group.name] = torch.arange(group.size)
            elif group.name in number:
                draws[-1][group.name] = _small(choices[group.size], number[group.name], draw)
            else:
                draws[-1][group.name] = derangement(group.size, generator)
    return draws


def derangement(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation of `size >= 2` units without fixed points: random cycles' ends are closed by swaps."""
    perm = torch.randperm(size, generator=generator)
    fixed = (perm == torch.arange(size)).nonzero().flatten()
    if len(fixed) == 1:  # trade places with any other unit
        other = (fixed + 1) % size
        perm[torch.cat([fixed, other])] = perm[torch.cat([other, fixed])]
    elif len(fixed) > 1:
        perm[fixed] = perm[fixed.roll(1)]
    return perm


def _choices(size: int) -> list[Tensor]:
    """The permutations of few units without fixed points, and for two and three units the identity as the last."""
    found = [p for p in itertools.permutations(range(size)) if all(place != unit for place, unit in enumerate(p))]
    if size <= 3:
        found.append(tuple(range(size)))
    return [torch.tensor(p) for p in found]


def _digits(groups: int, choices: int) -> int:
    """Draws that tell so many groups apart; the first has no identity to offer, so it may tell nothing."""
    digits = 1
    while choices ** (digits - 1) < groups:
        digits += 1
    return digits


def _small(choices: Sequence[Tensor], number: int, draw: int) -> Tensor:
    if draw == 0:  # every unit moves: the identity is not among the choices
        choices = [p for p in choices if not torch.equal(p, torch.arange(p.numel()))]
        place = number
    else:
        place = number // len(choices) ** (draw - 1)
    chosen: Tensor = choices[place % len(choices)].clone()
    return chosen
