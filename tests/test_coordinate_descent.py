"""Two modules in memory are aligned in place, and the second computes what it computed."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from rebasin_cli import PermutationCoordinateDescent
from rebasin_cli.permutation import apply, random


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 25, 4))
    return nn.Sequential(*layers).eval()


def test_a_planted_permutation_is_undone_in_place() -> None:
    model_a = net()
    nn.init.uniform_(model_a[1].running_mean)
    model_b = deepcopy(model_a)
    model_b[4].bias.requires_grad_(False)
    x = torch.randn(3, 1, 5, 5)
    descent = PermutationCoordinateDescent(model_a, model_b, x)
    model_b.load_state_dict(apply(descent.spec, random(descent.spec, 1), model_a.state_dict()))
    before = model_b(x)
    result = descent.rebasin()
    assert result.cosine_before < 0.9
    assert all(torch.equal(model_b.state_dict()[key], value) for key, value in model_a.state_dict().items())
    assert torch.allclose(model_b(x), before, atol=1e-6)
    assert [parameter.requires_grad for parameter in model_b.parameters()] == [True] * 5 + [False]
