"""Groups of more than 8,192 units, NumPy's buffer size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.symmetry.positions import Factor, coordinates
from rebasin_cli.tracing.tracer import trace_model

UNITS = 9000


class Gated(nn.Module):
    """Hidden units that are gated, and laid out backwards if wanted, so that their positions must be listed."""

    def __init__(self, *, backwards: bool) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, UNITS), nn.Linear(3, UNITS), nn.Linear(UNITS, 2)
        self.backwards = backwards

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.gate(x))
        up = self.up(x).view(len(x), 2, UNITS // 2, 1)
        up = (up.flip(1) if self.backwards else up).reshape(len(x), UNITS)
        return self.down(hidden * up)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_wide_group_is_one_group_and_computes_the_same(backwards: bool) -> None:
    module, example = Gated(backwards=backwards).eval(), ExampleInput((torch.randn(2, 3),))
    (group,) = derive(trace_model(module, example)).spec.groups
    assert group.size == UNITS
    assert {site.key for site in group.sites} == {"gate.weight", "gate.bias", "up.weight", "up.bias", "down.weight"}
    assert any(site.positions for site in group.sites) == backwards
    assert verify_by_execution(lambda: module, example, derive(trace_model(module, example)).spec).ok


@pytest.mark.parametrize("shape", [(20000,), (20000, 1), (1, 20000), (5000, 4)])
def test_coordinates_are_those_of_division(shape: tuple[int, ...]) -> None:
    positions = np.arange(20000).reshape(shape)
    over = (Factor(100), Factor(4), Factor(50))
    found = coordinates(positions, over)
    assert np.array_equal((found[over[0]] * 4 + found[over[1]]) * 50 + found[over[2]], positions)
    assert all(found[factor].max() == factor.size - 1 and found[factor].shape == shape for factor in over)
