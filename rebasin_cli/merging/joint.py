"""Networks that are aligned together, and the one objective of all of them.

With P_f the permutations of network f, the objective is `sum over pairs <P_f W_f, P_g W_g>`; up to a constant it is
half of `|sum_f P_f W_f|^2`, which is what is computed. For one network with the others fixed it is its similarity to
the sum of the others, so aligning a network to that sum never lowers it. Networks that share a base move together:
they enter as their mean, as often as there are of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.execution.weight_arithmetic import compute_dtype
from rebasin_cli.matching.composition import Composition
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.permutation import Permutations, Permuted, identity
from rebasin_cli.spec import PermutationSpec

Tensors = Mapping[str, Tensor]
Search = Callable[[Tensors, Tensors, bool], MatchResult]
"""(a, b, local) → the permutations that bring b closest to a; `local`: a descent from b's own order, and no more."""


class Mean(Mapping[str, Tensor]):
    """The mean of several networks, made tensor by tensor when asked for, in float32 or better."""

    def __init__(self, networks: Sequence[Tensors]) -> None:
        self._networks = networks

    def __getitem__(self, key: str) -> Tensor:
        first = self._networks[0][key]
        if not (first.is_floating_point() or first.is_complex()):
            return first
        total = first.to(compute_dtype(first.dtype)).clone()
        for network in self._networks[1:]:
            total += network[key].to(total.dtype)
        return total / len(self._networks)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._networks[0] if key in self)

    def __contains__(self, key: object) -> bool:
        return all(key in network for network in self._networks)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def held(network: Tensors, keys: Collection[str]) -> Tensors:
    """These tensors of a network, in memory if they would be made anew each time they are read."""
    if not isinstance(network, (Mean, Permuted)):
        return network
    return {key: network[key] for key in keys if key in network}


@dataclass(frozen=True)
class Joint:
    """The networks that move, the model's groups, and what a set of permutations is worth.

    Attributes:
        networks: each the mean of those that share a base.
        counts: of how many networks each is the mean.
        parameters: the keys that count.
    """

    spec: PermutationSpec
    parameters: tuple[str, ...]
    ties: Mapping[str, str]
    networks: tuple[Tensors, ...]
    counts: tuple[int, ...]
    composition: Composition

    def unmoved(self) -> list[Permutations]:
        """Every network in its own order."""
        return [identity(self.spec) for _ in self.networks]

    def permuted(self, number: int, permutations: Permutations) -> Permuted:
        """A network with its units in another order."""
        return Permuted(self.networks[number], self.spec, permutations, self.ties)

    def total(self, placed: Sequence[Permutations]) -> dict[str, Tensor]:
        """`sum_f P_f W_f` over the parameters, float32 or better."""
        found: dict[str, Tensor] = {}
        for number, permutations in enumerate(placed):
            self.add(found, number, permutations)
        return found

    def add(self, total: dict[str, Tensor], number: int, permutations: Permutations, sign: int = 1) -> None:
        """Add a network to the sum, or take it away with `sign` -1."""
        network = self.permuted(number, permutations)
        for key in self.parameters:
            value = network[key]
            if not (value.is_floating_point() or value.is_complex()):
                continue
            wide = value.to(compute_dtype(value.dtype))
            if key in total:
                total[key].add_(wide, alpha=sign * self.counts[number])
            else:
                total[key] = wide * (sign * self.counts[number])

    def value(self, placed: Sequence[Permutations]) -> float:
        """`|sum_f P_f W_f|^2`, one tensor at a time, float64."""
        networks = [self.permuted(number, permutations) for number, permutations in enumerate(placed)]
        squares = 0.0
        for key in self.parameters:
            total: Tensor | None = None
            for count, network in zip(self.counts, networks, strict=True):
                value = network[key]
                if value.is_floating_point() or value.is_complex():
                    part = value.to(compute_dtype(value.dtype)) * count
                    total = part if total is None else total.add_(part)
            if total is not None:
                squares += float(total.abs().double().square().sum())
        return squares

    def held_still(self, placed: Sequence[Permutations], number: int) -> list[Permutations]:
        """The same relative permutations, with one of the networks in its own order."""
        back = self.composition.inverted(placed[number])
        return [self.composition.composed(permutations, back) for permutations in placed]

    def moved_to_others(
        self, placed: list[Permutations], total: dict[str, Tensor], number: int, search: Search, *, local: bool
    ) -> bool:
        """Align one network to the sum of the others, and update both; True if it moved."""
        self.add(total, number, placed[number], -1)
        own = held(self.permuted(number, placed[number]), self.parameters)
        found = search(total, own, local)
        if found.moved_units:
            placed[number] = self.composition.composed(placed[number], found.permutations)
        self.add(total, number, placed[number])
        return found.moved_units > 0


MOST_ROUNDS = 50
"""Every move raises the objective by more than a tolerance, so rounds end; this bounds them where gains are tiny."""


def settle(
    joint: Joint,
    placed: list[Permutations],
    search: Search,
    *,
    seed: int | None,
    local: bool,
    told: Callable[[int, int], None] | None = None,
) -> int:
    """Align one network after the other to the sum of the others, until none moves; returns the number of rounds.

    Args:
        placed: changed in place.
        seed: of the order in each round; None for the order of the networks.
        local: descents from each network's own order only.
        told: called with the round and the network, both from 1.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    count = len(joint.networks)
    for number in range(1, MOST_ROUNDS + 1):
        total = joint.total(placed)  # anew each round: no rounding error adds up
        order = list(range(count)) if seed is None else torch.randperm(count, generator=generator).tolist()
        moved = False
        for done, network in enumerate(order, start=1):
            if told is not None:
                told(number, done)
            moved |= joint.moved_to_others(placed, total, network, search, local=local)
        if not moved:
            return number
    return MOST_ROUNDS
