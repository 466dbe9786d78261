"""Equal functions are told from different ones, also where float32 alone could not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import NumericalError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from rebasin_cli.verbs.proof import prove_same_function
from rebasin_cli.verbs.same_function import compare_functions

EXAMPLE = ExampleInput((torch.randn(4, 6),))


def deep() -> nn.Module:
    """A chain whose gains multiply, so that rounding in the first layer shows in the last."""
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(6, 6, bias=False), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(6, 3)).eval()


def reordered(state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    moved = dict(state)
    moved["0.weight"] = state["0.weight"][order]
    moved["2.weight"] = state["2.weight"][:, order]
    return moved


def test_a_reordering_is_the_same_function() -> None:
    torch.manual_seed(0)
    state = deep().state_dict()
    check = compare_functions(deep, EXAMPLE, state, reordered(state, torch.randperm(6)))
    assert check.same is True
    assert (check.samples, check.argmax_agreement) == (4, 1.0)


def test_half_a_reordering_is_not() -> None:
    torch.manual_seed(0)
    state = deep().state_dict()
    moved = {**state, "0.weight": state["0.weight"].flip(0)}
    check = compare_functions(deep, EXAMPLE, state, moved)
    assert check.same is False
    assert check.max_relative_error is not None
    assert check.max_relative_error > 1e-3


def test_chaos_is_decided_in_float64() -> None:
    torch.manual_seed(0)
    state = {key: 8 * tensor if tensor.dim() > 1 else tensor for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, reordered(state, torch.tensor([3, 1, 4, 0, 5, 2])))
    assert check.same is True


def test_half_precision_is_compared_without_its_rounding() -> None:
    torch.manual_seed(0)
    state = {key: tensor.bfloat16() for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, reordered(state, torch.randperm(6)))
    assert check.same is True
    assert check.precision == "float32"
    assert check.max_relative_error is not None
    assert check.max_relative_error < 1e-5  # one rounding to bfloat16 is 4e-3


def test_a_wrong_order_shows_in_half_precision_too() -> None:
    torch.manual_seed(0)
    state = {key: tensor.bfloat16() for key, tensor in deep().state_dict().items()}
    moved = reordered(state, torch.tensor([3, 1, 4, 0, 5, 2]))
    first = next(key for key, tensor in moved.items() if tensor.dim() > 1)
    moved[first] = moved[first].flip(0)
    assert compare_functions(deep, EXAMPLE, state, moved).same is False


def test_double_precision_is_compared_in_it() -> None:
    torch.manual_seed(0)
    state = {key: tensor.double() for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, reordered(state, torch.randperm(6)))
    assert check.same is True
    assert check.precision == "float64"


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    state = {key: torch.full_like(tensor, float("inf")) for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, state)
    assert check.same is False
    assert check.max_relative_error is None


class Greedy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")


def test_a_forward_pass_that_does_not_fit_is_left_out_and_said() -> None:
    state = Greedy().state_dict()
    check = compare_functions(Greedy, EXAMPLE, state, state)
    assert check.same is None
    assert check.left_out is not None
    assert "memory" in check.left_out


def untrained() -> nn.Module:
    """Its head is zero, as many vision transformers begin, so its output tells nothing of what lies before."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    return net.eval()


def spec_of(*sites: Site) -> PermutationSpec:
    return PermutationSpec((AxisGroup("hidden", 8, sites),))


def test_where_all_outputs_are_zero_the_groups_are_proved_on_random_weights() -> None:
    state = untrained().state_dict()
    whole = spec_of(Site("0.weight", 0), Site("0.bias", 0), Site("2.weight", 1))
    check = prove_same_function(untrained, EXAMPLE, state, state, spec=whole, seed=0)
    assert check.note is not None
    assert "random weights" in check.note
    with pytest.raises(NumericalError, match="random weights"):
        prove_same_function(untrained, EXAMPLE, state, state, spec=spec_of(Site("0.weight", 0)), seed=0)
