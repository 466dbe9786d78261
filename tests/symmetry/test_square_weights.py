"""Weights both of whose axes are the same units, however used: scaled, masked, beside an identity, in a CRF."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.symmetry.derive import Derivation
from tests.symmetry.rules.bench import found, parameter

UNITS = 6


class Recurrent(nn.Module):
    """Two steps with one square weight, as the function makes it."""

    def __init__(self, weight: Callable[[Recurrent], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, UNITS), nn.Linear(UNITS, 2)
        self.square, self.other = parameter(UNITS, UNITS), parameter(UNITS, UNITS)
        self.register_buffer("mask", torch.rand(UNITS, UNITS) > 0.4)
        self._weight = weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for _ in range(2):
            hidden = torch.tanh(hidden @ self._weight(self))
        return self.last(hidden)


def eye() -> Tensor:
    return torch.eye(UNITS, dtype=torch.float64)


MADE: dict[str, Callable[[Recurrent], Tensor]] = {
    "scaled": lambda net: net.square * 0.5,
    "squashed": lambda net: net.square.tanh(),
    "cast": lambda net: net.square.float().double(),
    "transposed and scaled": lambda net: (net.square / 3).mT,
    "beside an identity": lambda net: net.square + eye(),
    "without its diagonal": lambda net: net.square * (1 - eye()),
    "masked by booleans that leave the diagonal out": lambda net: net.square.masked_fill(eye().bool(), 0.0),
    "masked": lambda net: net.square * net.mask,
    "a sum": lambda net: net.square + net.other,
    "antisymmetric": lambda net: net.square - net.square.mT,
}


def axes(derivation: Derivation) -> list[set[tuple[str, int]]]:
    return [{(site.key, site.axis) for site in group.sites} for group in derivation.spec.groups]


@pytest.mark.parametrize("name", MADE)
def test_both_axes_of_a_recurrent_weight_move_with_its_units(name: str) -> None:
    (moved,) = axes(found(Recurrent(MADE[name]).double(), torch.randn(2, 3).double()))
    assert {("first.weight", 0), ("last.weight", 1), ("square", 0), ("square", 1)} <= moved


class TransitionScores(nn.Module):
    """The score of a sequence of hidden tags (a conditional random field) with a head on it."""

    def __init__(self) -> None:
        super().__init__()
        self.emit, self.transitions, self.start = nn.Linear(5, UNITS), parameter(UNITS, UNITS), parameter(UNITS)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.emit(x)
        alpha = self.start + scores[:, 0]
        for step in range(1, x.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + self.transitions[None] + scores[:, step][:, None], 1)
        return alpha.logsumexp(1)


def test_tags_of_a_conditional_random_field_move() -> None:
    (moved,) = axes(found(TransitionScores().double(), torch.randn(2, 4, 5).double()))
    wanted = {("emit.weight", 0), ("emit.bias", 0), ("transitions", 0), ("transitions", 1), ("start", 0)}
    assert moved == wanted


class Cell(nn.Module):
    """A recurrent cell by hand: input and state, concatenated; the first state is zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.Linear(3 + UNITS, UNITS), nn.Linear(UNITS, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), UNITS)
        for step in range(x.shape[1]):
            state = torch.tanh(self.cell(torch.cat([x[:, step], state], 1)))
        return self.last(state)


def test_a_state_of_zeros_beside_the_input_becomes_units() -> None:
    (group,) = found(Cell().double(), torch.randn(2, 3, 3).double()).spec.groups
    assert group.size == UNITS
    (columns,) = [site for site in group.sites if (site.key, site.axis) == ("cell.weight", 1)]
    assert columns.offset == 3


class FeatureTransform(nn.Module):
    """A matrix that a linear layer makes, beside a flattened identity, as point networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix, self.last = nn.Linear(3, 4), nn.Linear(4, 16), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        flat = self.matrix(hidden.amax(1)) + torch.eye(4, dtype=x.dtype).flatten()
        return self.last((hidden @ flat.view(-1, 4, 4)).amax(1))


def test_an_identity_that_a_layer_makes_is_never_taken_apart() -> None:
    derivation = found(FeatureTransform().double(), torch.randn(2, 5, 3).double())
    assert not any(("matrix.weight", 0) in moved for moved in axes(derivation))
