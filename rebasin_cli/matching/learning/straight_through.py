"""Permutations learned through their projection (Ainsworth et al. 2022, "Git Re-Basin", Algorithm 2).

A *shadow* of B, free to take any values, starts at A. Its projection is the permutation of B nearest to it, found by
weight matching of B to the shadow, starting from the last projection. A network between A and the projection has a
loss; its gradient moves the shadow as if there were no projection in between (the straight-through estimator: Bengio,
Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.descent import Descent
from rebasin_cli.matching.families import Index
from rebasin_cli.matching.learning.moving import Found, Interpolated
from rebasin_cli.matching.problem import prepare
from rebasin_cli.permutation import Permutations, gathers, permute_tensor
from rebasin_cli.spec import PermutationSpec

MOMENTUM = 0.9
HOLD = 0.3
"""Where between A (0) and B permuted (1) the shadow begins, for permutations that are not the projection of A."""
PASSES = 3
"""Passes of coordinate descent for one projection, which starts from the last one."""
PULL = 0.1
"""How far the shadow is moved back to A after a step whose projection has too little similarity."""
_TOLERANCE = 1e-6
_SHADOW, _MOMENTUM, _GROUP, _PROJECTIONS, _RATE = "shadow/", "momentum/", "group/", "projections", "rate"


class StraightThrough:
    """A shadow of B and its projection.

    Memory holds float32 copies of the parameters twice, and one network at a time.

    Args:
        spec: the groups.
        a, b: tensors by key, tied ones once; only read.
        parameters: the keys that are learned, where they are real; all other tensors are only averaged.
        start: the permutations to start from: those of weight matching, which are the projection of A.
        rate: how far the shadow moves in a step, in units of each tensor's norm.
        seed: of the visiting orders.
        floor: the least objective of a projection, if that of `start` has it. A step that leads below is undone and the
            shadow moved towards A: the nearer it is to A, the larger is the objective of its projection.

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
        seed: int = 0,
        floor: float | None = None,
    ) -> None:
        self.spec, self.a, self.b, self.rate, self.seed, self.floor = spec, a, b, rate, seed, floor
        self.problem = prepare(spec, a, b, parameters)
        self._learned = tuple(key for key in self.problem.keys if a[key].is_floating_point())
        self._matched = dict(start)
        self._projections = 0
        self.begin(start)

    def begin(self, found: Found) -> None:
        """Restart from these permutations: the shadow at A where they are its projection, else between A and B."""
        hold = 0.0 if same(found, self._matched) else HOLD
        self.permutations = dict(found)
        self._arrangement = Arrangement(self.problem.families, found)
        self._shadow = {
            key: torch.lerp(self.a[key].detach().float(), permuted(self.spec, self.b, found, key).float(), hold)
            if key in self._learned
            else self.problem.a[key].detach().float()
            for key in self.problem.keys
        }
        self._momentum = {key: torch.zeros_like(self._shadow[key]) for key in self._learned}

    def interpolated(self, lam: float) -> Interpolated:
        """The network between A and B permuted.

        Its parameters are the leaves: a gradient with respect to one of them is, up to the factor lam, that of the
        shadow, and only its direction counts.
        """
        network = between(self.spec, self.a, self.b, self.permutations, lam, learned=self._learned)
        return Interpolated(network, tuple(network[key] for key in self._learned))

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move each tensor of the shadow by `rate` of the norm of A's, along its gradients with momentum."""
        for key, gradient in zip(self._learned, gradients, strict=True):
            if gradient is None:
                continue
            momentum = self._momentum[key].mul_(MOMENTUM).add_(gradient)
            length = float(torch.linalg.vector_norm(momentum))
            if length > 0.0:
                self._shadow[key].add_(momentum, alpha=-self.rate * self.problem.norms.a[key] ** 0.5 / length)

    def slow(self, factor: float) -> None:
        """Take smaller steps from now on."""
        self.rate *= factor

    def project(self) -> int:
        """Match B to the shadow; how many units moved."""
        before = [perm.copy() for perm in self._arrangement.perms]
        self._descend()
        if self.floor is not None and self.problem.value(self._arrangement) < self.floor:
            self._undo(before)
        moved = sum(int((now != then).sum()) for now, then in zip(self._arrangement.perms, before, strict=True))
        if moved:
            self.permutations = self._arrangement.permutations()
        return moved

    def found(self) -> Permutations:
        """The projection."""
        return dict(self.permutations)

    def midpoint(self, found: Found) -> dict[str, Tensor]:
        """`(A + B permuted) / 2` by key, float32."""
        return between(self.spec, self.a, self.b, found, 0.5)

    def allowed(self, found: Found) -> bool:
        """Whether these permutations have as much similarity as the floor asks for, and as B as it is."""
        least = self.problem.identity if self.floor is None else self.floor
        return self.objective(found) >= least

    def state(self) -> dict[str, Tensor]:
        """Shadow, momentum, permutations, the rate, and how many projections have been made."""
        return {
            **{_SHADOW + key: tensor for key, tensor in self._shadow.items()},
            **{_MOMENTUM + key: tensor for key, tensor in self._momentum.items()},
            **{_GROUP + name: perm for name, perm in self.permutations.items()},
            _PROJECTIONS: torch.tensor(self._projections),
            _RATE: torch.tensor(self.rate, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        self._shadow = {key: state[_SHADOW + key].clone() for key in self._shadow}
        self._momentum = {key: state[_MOMENTUM + key].clone() for key in self._momentum}
        self.permutations = {name: state[_GROUP + name].clone() for name in self.permutations}
        self._arrangement = Arrangement(self.problem.families, self.permutations)
        self._projections, self.rate = int(state[_PROJECTIONS]), float(state[_RATE])

    def objective(self, permutations: Found) -> float:
        """The inner product of A's parameters with B's, permuted."""
        return self.problem.value(Arrangement(self.problem.families, permutations))

    def _descend(self) -> None:
        """Coordinate descent of B towards the shadow, from the present permutations."""
        generator = np.random.default_rng((self.seed, self._projections))
        self._projections += 1
        descent = Descent(replace(self.problem, a=self._shadow), self._arrangement, _TOLERANCE)
        for _ in range(PASSES):
            waiting = descent.unsettled()
            if not waiting:
                return
            moves = [descent.step(waiting[place]) for place in generator.permutation(len(waiting))]
            if not any(moves):
                return

    def _undo(self, perms: Sequence[Index]) -> None:
        self._arrangement.set(dict(enumerate(perms)))
        for key in self._learned:
            self._shadow[key].lerp_(self.a[key].detach().float(), PULL)


def between(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    permutations: Found,
    lam: float,
    *,
    learned: Collection[str] = (),
) -> dict[str, Tensor]:
    """`(1 - lam) A + lam B permuted`, in single precision, A's integers; `learned` keys require a gradient."""
    found = {}
    for key in a:
        mine = a[key].detach()
        if not (mine.is_floating_point() or mine.is_complex()):
            found[key] = mine
            continue
        kind = torch.complex64 if mine.is_complex() else torch.float32
        theirs = permuted(spec, b, permutations, key)
        found[key] = torch.lerp(mine.to(kind), theirs.to(kind), lam).requires_grad_(key in learned)
    return found


def permuted(spec: PermutationSpec, b: Mapping[str, Tensor], permutations: Found, key: str) -> Tensor:
    """One tensor of B permuted."""
    return permute_tensor(b[key].detach(), gathers(spec, permutations, key, b[key].shape))


def same(one: Found, other: Found) -> bool:
    """Whether two candidates are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
