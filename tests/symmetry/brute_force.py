"""The permutation symmetries of a tiny network by trying every permutation of every axis of every tensor.

What is counted: tuples of one permutation for each axis of each tensor that leave the function alone whatever the
weights are. Tensors are taken one after the other. After each, those tuples are kept that leave the function alone
while the tensors taken so far hold random numbers and each of the others is the same everywhere: a symmetry for all
weights is one for these, as a constant tensor looks the same however it is permuted. When all tensors are random, what
is kept are the symmetries (but for a set of weights of measure zero).
"""

from __future__ import annotations

import itertools
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rebasin_cli.model.example_input import ExampleInput

MOST_TRIALS = 150_000
"""Largest number of tuples that are tried in one step."""

_CHUNK = 8192
_EQUAL = 1e-9


class TooMany(Exception):
    """The network is too large to try everything."""


def count_symmetries(module: nn.Module, example: ExampleInput, seed: int = 0) -> int:
    """The number of permutation symmetries of a module in float64, see above; numbers that nothing reads do not count.

    An upper bound: unlucky numbers (a softmax that is saturated) hide what would tell positions apart.

    Raises:
        TooMany: more than `MOST_TRIALS` would have to be tried at once.
    """
    state = {
        key: value for key, value in module.state_dict().items() if value.is_floating_point() and value.numel() > 1
    }
    generator = torch.Generator().manual_seed(seed)
    drawn = {key: torch.rand(value.shape, generator=generator).double() + 0.5 for key, value in state.items()}
    for key in drawn:
        if not key.endswith("running_var"):
            drawn[key] = drawn[key] * torch.sign(torch.rand(drawn[key].shape, generator=generator) - 0.5)
    network = _Network(module, example, drawn)
    kept: dict[str, Tensor] = {}
    for key, value in drawn.items():
        candidates = network.prefiltered(key, _all_permutations(value))
        kept = network.extended(kept, key, candidates)
    live = network.live()
    moved = torch.cat([kept[key][:, live[key].flatten()] for key in drawn], dim=1)
    return len(torch.unique(moved, dim=0))


def _all_permutations(tensor: Tensor) -> Tensor:
    """Where every position comes from, for each way to permute every axis: (ways, numel)."""
    ways = prod(_factorial(size) for size in tensor.shape)
    if ways > MOST_TRIALS:
        raise TooMany
    positions = torch.arange(tensor.numel()).view(tensor.shape)
    found = []
    for orders in itertools.product(*(itertools.permutations(range(size)) for size in tensor.shape)):
        moved = positions
        for axis, order in enumerate(orders):
            moved = moved.index_select(axis, torch.tensor(order))
        found.append(moved.flatten())
    return torch.stack(found)


def _factorial(size: int) -> int:
    return prod(range(1, size + 1))


class _Network:
    """Runs the module on many weights at once."""

    def __init__(self, module: nn.Module, example: ExampleInput, drawn: dict[str, Tensor]) -> None:
        self.module, self.drawn = module.double().eval(), drawn
        self.inputs = tuple(value.double() if value.is_floating_point() else value for value in example.args)
        self.level = {key: torch.full_like(value, 0.3 + 0.1 * n) for n, (key, value) in enumerate(drawn.items())}

    def outputs(self, weights: dict[str, Tensor]) -> Tensor:
        """Outputs, flattened, for weights with a leading dimension."""
        rest = {key: value for key, value in self.level.items() if key not in weights}

        def run(own: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(self.module, {**rest, **own}, self.inputs)
            return result.flatten()

        count = len(next(iter(weights.values())))
        cuts = range(0, count, _CHUNK)
        return torch.cat([vmap(run)({k: v[start : start + _CHUNK] for k, v in weights.items()}) for start in cuts])

    def same(self, moves: dict[str, Tensor]) -> Tensor:
        """Which of these rearrangements leave the outputs alone: (moves,)."""
        still = self.outputs({key: self.drawn[key][None] for key in moves})
        moved = self.outputs(
            {key: self.drawn[key].flatten()[idx].view(-1, *self.drawn[key].shape) for key, idx in moves.items()}
        )
        return ((moved - still).abs() <= _EQUAL * still.abs().max()).all(dim=1)

    def prefiltered(self, key: str, candidates: Tensor) -> Tensor:
        return candidates[self.same({key: candidates})]

    def extended(self, kept: dict[str, Tensor], key: str, candidates: Tensor) -> dict[str, Tensor]:
        """All combinations of what was kept with the candidates of one more tensor, filtered."""
        count = len(next(iter(kept.values()))) if kept else 1
        if count * len(candidates) > MOST_TRIALS:
            raise TooMany
        combined = {other: rows.repeat_interleave(len(candidates), dim=0) for other, rows in kept.items()}
        combined[key] = candidates.repeat(count, 1)
        good = self.same(combined)
        return {other: rows[good] for other, rows in combined.items()}

    def live(self) -> dict[str, Tensor]:
        """Which numbers of each tensor the outputs depend on."""
        still = self.outputs({key: value[None] for key, value in self.drawn.items()})
        found = {}
        for key, value in self.drawn.items():
            changed = value.flatten().repeat(value.numel(), 1)
            changed.diagonal().mul_(1.1)
            others = {k: v[None].expand(value.numel(), *v.shape) for k, v in self.drawn.items()}
            moved = self.outputs({**others, key: changed.view(-1, *value.shape)})
            found[key] = ((moved - still).abs() > _EQUAL * still.abs().max()).any(dim=1).view(value.shape)
        return found
