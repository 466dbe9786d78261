"""Learning through the projection (Ainsworth et al. 2022, Algorithm 2): permutations chosen by what the merge is worth.

A *shadow* of B, free to take any values, starts at A. Its projection is the permutation of B nearest to it, found by
weight matching of B to the shadow from where the last one ended; the networks' midpoint is taken with the projection,
and the gradient of its loss moves the shadow as if there were no projection between them (the straight-through
estimator of Bengio et al. 2013). Who computes the loss is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.descent import Descent
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.problem import prepare
from rebasin_cli.permutation import Permutations, gathers, permute_tensor
from rebasin_cli.spec import PermutationSpec

MOMENTUM = 0.9
HOLD = 0.3
"""Where the shadow begins between A and B permuted, so that permutations that are no projection of A stay one of it."""
PASSES = 3
"""Passes of coordinate descent for one projection, which goes on from the last one."""
PULL = 0.1
"""How far the shadow is drawn back to A after a step whose projection is worth too little."""
_TOLERANCE = 1e-6


class StraightThrough:
    """A shadow of B and its projection.

    Args:
        spec: the groups.
        a, b: tensors by key; float32 copies of A's parameters are the shadow and its momentum, B is read when needed.
        parameters: the keys that are learned; all other floating tensors are averaged as they are.
        start: the permutations to start from.
        hold: how far between A and B permuted by `start` the shadow begins; 0 for what weight matching found, which
            is A's projection, else `HOLD`.
        rate: how far the shadow moves in a step, in units of each tensor's norm.
        seed: of the visiting orders.
        floor: the least objective of a projection, if that of `start` has it. A step that leads below is taken back,
            and the shadow drawn towards A: the nearer it is to A, the more its projection is worth.

    Attributes:
        problem: weight matching's, of B and A.
        permutations: the projection of the shadow.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        parameters: Collection[str],
        start: Permutations,
        rate: float,
        hold: float = 0.0,
        seed: int = 0,
        floor: float | None = None,
    ) -> None:
        self.spec, self.a, self.b, self.rate, self.floor = spec, a, b, rate, floor
        self.problem = prepare(spec, a, b, parameters)
        self._generator = np.random.default_rng(seed)
        self.begin(start, hold)

    def begin(self, start: Permutations, hold: float) -> None:
        """Begin anew from these permutations, without momentum."""
        self.permutations = dict(start)
        self._arrangement = Arrangement(self.problem.families, start)
        self._shadow = {
            key: torch.lerp(self.a[key].detach().float(), permuted(self.spec, self.b, start, key).float(), hold)
            for key in self.problem.keys
        }
        self._momentum = {key: torch.zeros_like(tensor) for key, tensor in self._shadow.items()}

    def midpoint(self) -> dict[str, Tensor]:
        """`(A + B permuted) / 2` by key, float32; parameters are leaves that want a gradient."""
        return merged(self.spec, self.a, self.b, self.permutations, learned=self._shadow)

    def step(self, gradients: Mapping[str, Tensor]) -> int:
        """Move the shadow against the gradients at the midpoint and project it anew; how many units moved."""
        for key, gradient in gradients.items():
            momentum = self._momentum[key].mul_(MOMENTUM).add_(gradient)
            length = float(torch.linalg.vector_norm(momentum))
            if length > 0.0:
                self._shadow[key].add_(momentum, alpha=-self.rate * self.problem.norms.a[key] ** 0.5 / length)
        before = [perm.copy() for perm in self._arrangement.perms]
        self._project()
        if self.floor is not None and self.problem.value(self._arrangement) < self.floor:
            self._draw_back(before)
        moved = sum(int((now != then).sum()) for now, then in zip(self._arrangement.perms, before, strict=True))
        if moved:
            self.permutations = self._arrangement.permutations()
        return moved

    def _draw_back(self, perms: Sequence[Index]) -> None:
        self._arrangement.set(dict(enumerate(perms)))
        for key, shadow in self._shadow.items():
            shadow.lerp_(self.a[key].detach().float(), PULL)

    def objective(self, permutations: Permutations) -> float:
        """The inner product of A's parameters with B's, permuted."""
        return self.problem.value(Arrangement(self.problem.families, permutations))

    @property
    def objective_before(self) -> float:
        return self.problem.identity

    def _project(self) -> None:
        """Coordinate descent of B towards the shadow, from the present permutations."""
        descent = Descent(replace(self.problem, a=self._shadow), self._arrangement, _TOLERANCE)
        for _ in range(PASSES):
            waiting = descent.unsettled()
            if not waiting:
                return
            moves = [descent.step(waiting[place]) for place in self._generator.permutation(len(waiting))]
            if not any(moves):
                return


def merged(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    permutations: Permutations,
    *,
    learned: Collection[str] = (),
) -> dict[str, Tensor]:
    """The mean of A and B permuted, float32 where it is floating, else A's; `learned` keys want a gradient."""
    found = {}
    for key in a:
        mine = a[key].detach()
        if not mine.is_floating_point():
            found[key] = mine
            continue
        theirs = permuted(spec, b, permutations, key)
        found[key] = torch.lerp(mine.float(), theirs.float(), 0.5).requires_grad_(key in learned)
    return found


def permuted(spec: PermutationSpec, b: Mapping[str, Tensor], permutations: Permutations, key: str) -> Tensor:
    """One tensor of B permuted."""
    return permute_tensor(b[key].detach(), gathers(spec, permutations, key, b[key].shape))
