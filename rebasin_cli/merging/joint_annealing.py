"""Annealing of many networks at once: every network has doubly stochastic matrices into one common order.

As in `matching.annealing`, but a network's target is the sum of all others with their present matrices applied,
`sum_{g != f} X_g W_g`, so no network is the reference of the others and all pairs count alike. The common order can be
relabelled without any change of the objective. That freedom would keep all matrices at the point where every pairing is
equally likely, so one network, the *anchor*, keeps its own order; which one changes the path of the annealing, not the
objective.

The matrices are kept in a file that is mapped, so that memory does not grow with the number of networks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.annealing import COLDEST, HOTTEST, Annealed, Balancing, hard
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Axes
from rebasin_cli.matching.polish import Settings
from rebasin_cli.matching.problem import Problem, RealParts, prepare
from rebasin_cli.matching.soft import Soft
from rebasin_cli.merging.joint import Joint
from rebasin_cli.permutation import Permutations

CHUNK = 1 << 24
"""Numbers that a temporary file has room for, unless one matrix needs more."""


class _OnDisk:
    """Copies of tensors in temporary files without names: one place for each use, written again at each visit."""

    def __init__(self) -> None:
        self._places: dict[Any, Tensor] = {}
        self._free = torch.empty(0)

    def put(self, place: Any, value: Tensor) -> Tensor:
        """The value, float32, copied into the file."""
        kept = self._places.get(place)
        if kept is None:
            kept = self._places[place] = self._room(value.numel()).view(value.shape)
        kept.copy_(value)
        return kept

    def _room(self, count: int) -> Tensor:
        if len(self._free) < count:
            with tempfile.TemporaryFile() as file:  # the mapping outlives it
                mapped: Any = np.memmap(file, dtype=np.float32, mode="w+", shape=(max(count, CHUNK),))
            self._free = torch.from_numpy(mapped)
        taken, self._free = self._free[:count], self._free[count:]
        return taken


class _Annealing:
    """One network of the joint annealing: its problem against the sum of the others."""

    def __init__(self, problem: Problem, number: int, disk: _OnDisk) -> None:
        self.problem, self._number, self._disk = problem, number, disk
        self.soft = Soft(problem, 1)
        self.clusters = [cluster for cluster in problem.clusters if cluster.tiles]
        generator = torch.Generator()
        self.balancings = [Balancing(problem, cluster, (0.0,), generator) for cluster in self.clusters]

    def hold(self) -> None:
        """Keep the network's own order."""
        for cluster in self.clusters:
            self.soft.set(cluster, hard(self.problem, cluster, Arrangement(self.problem.families), 1))

    def visit(self, temperature: float, settings: Settings, *, backwards: bool) -> None:
        """Balance all clusters once at this temperature."""
        order = list(range(len(self.clusters)))[:: -1 if backwards else 1]
        for place in order:
            if settings.out_of_time:
                break
            cluster, balancing = self.clusters[place], self.balancings[place]
            balancing.matrices(self.soft.similarity(cluster), temperature)
            self.soft.set(cluster, balancing.keep(partial(self._put, place)))
        self.soft.forget_a()  # the sum will have changed at the next visit; until then other networks need the memory

    def _put(self, place: int, axes: Axes, matrix: Tensor) -> Tensor:
        return self._disk.put((self._number, place, axes), matrix)

    def end(self) -> Permutations:
        """The permutations nearest to the matrices."""
        arrangement = Arrangement(self.problem.families)
        arrangement.set(Annealed(self.problem, self.balancings, None, 0).vertices[0])
        return arrangement.permutations()


def anneal_jointly(
    joint: Joint,
    anchor: int,
    settings: Settings,
    *,
    sweeps: int,
    device: torch.device,
    told: Callable[[int], None] | None = None,
) -> list[Permutations]:
    """Anneal all networks to permutations into one common order, that of the anchor.

    Args:
        settings: only the deadline is used.
        sweeps: visits of every network, at falling temperatures.
        told: called after each sweep with its number.
    """
    networks = [RealParts(network) for network in joint.networks]
    total = {key: torch.zeros_like(value, dtype=torch.float32) for key, value in _counted(joint, networks[anchor])}
    disk = _OnDisk()
    every = [
        _Annealing(prepare(joint.spec, total, network, joint.parameters, budget=0, device=device), number, disk)
        for number, network in enumerate(networks)
    ]
    every[anchor].hold()

    def add(one: _Annealing, number: int, sign: int) -> None:
        for key in one.problem.families.shapes:
            total[key].add_(one.soft.mixed(key)[0].to(total[key].device), alpha=sign * joint.counts[number])

    for number, one in enumerate(every):
        add(one, number, 1)
    for sweep in range(sweeps):
        temperature = HOTTEST * (COLDEST / HOTTEST) ** (sweep / max(1, sweeps - 1))
        for number in range(len(every))[:: -1 if sweep % 2 else 1]:
            if number == anchor or settings.out_of_time:
                continue
            add(every[number], number, -1)
            every[number].visit(temperature, settings, backwards=bool(sweep % 2))
            add(every[number], number, 1)
        if told is not None:
            told(sweep + 1)
    return [
        Arrangement(one.problem.families).permutations() if number == anchor else one.end()
        for number, one in enumerate(every)
    ]


def _counted(joint: Joint, network: RealParts) -> Iterator[tuple[str, Tensor]]:
    """The parameters of numbers."""
    for key in joint.parameters:
        if network[key].is_floating_point():
            yield key, network[key]
