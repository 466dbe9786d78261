"""Permutations of nested groups are composed and inverted as the networks are that they permute."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.composition import Composition
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import PermutationSpec


class Attending(nn.Module):
    """A residual stream with attention heads, units inside them, and a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 12)
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True)
        self.wide = nn.Linear(12, 10)
        self.leave = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        out: Tensor = self.leave(self.wide(x).relu())
        return out


@cache
def understood() -> tuple[PermutationSpec, dict[str, Tensor]]:
    choice = ModelChoice(f"{__name__}:Attending", inputs=("2,5,6",))
    found = understand(open_subject(choice), choice)
    torch.manual_seed(0)
    return found.spec, {key: value.detach() for key, value in Attending().state_dict().items()}


def test_the_groups_of_this_network_nest() -> None:
    spec, _ = understood()
    assert max(spec.depth.values()) == 1
    assert sum(group.parent is not None for group in spec.groups) == 6


@pytest.mark.parametrize("seed", range(5))
def test_the_composition_is_one_after_the_other(seed: int) -> None:
    spec, tensors = understood()
    composition = Composition(spec, {key: value.shape for key, value in tensors.items()})
    first, then = random(spec, seed), random(spec, 100 + seed)
    both = composition.composed(first, then)
    expected = apply(spec, then, apply(spec, first, tensors))
    assert all(torch.equal(value, expected[key]) for key, value in apply(spec, both, tensors).items())


@pytest.mark.parametrize("seed", range(5))
def test_the_inverse_undoes(seed: int) -> None:
    spec, tensors = understood()
    composition = Composition(spec, {key: value.shape for key, value in tensors.items()})
    perms = random(spec, seed)
    undone = apply(spec, composition.inverted(perms), apply(spec, perms, tensors))
    assert all(torch.equal(value, tensors[key]) for key, value in undone.items())
    assert composition.moved(composition.composed(perms, composition.inverted(perms))) == 0
    assert composition.moved(perms) > 0
