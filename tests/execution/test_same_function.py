"""Equal functions are told from different ones, in units of the outputs' own noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.execution.noise import TOLERANCE, Comparison
from rebasin_cli.execution.same_function import Tolerance, compare_functions
from rebasin_cli.model.example_input import ExampleInput

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
    assert (check.samples, check.argmax_agreement, check.precision) == (4, 1.0, "float64")
    assert check.max_in_noise_floors is not None
    assert check.max_in_noise_floors < TOLERANCE / 5


def test_half_a_reordering_is_not() -> None:
    torch.manual_seed(0)
    state = deep().state_dict()
    moved = {**state, "0.weight": state["0.weight"].flip(0)}
    check = compare_functions(deep, EXAMPLE, state, moved)
    assert check.same is False
    assert check.max_relative_error is not None
    assert check.max_relative_error > 1e-3


def test_chaos_is_measured_against_its_own_noise() -> None:
    torch.manual_seed(0)
    state = {key: 8 * tensor if tensor.dim() > 1 else tensor for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, reordered(state, torch.tensor([3, 1, 4, 0, 5, 2])))
    assert check.same is True
    assert check.noise_floor is not None
    assert check.noise_floor > 1e-15


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_is_compared_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = {key: tensor.to(dtype) for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, reordered(state, torch.randperm(6)))
    assert check.same is True
    assert check.precision == "float64"
    assert check.max_relative_error is not None
    assert check.max_relative_error < 1e-13
    moved = reordered(state, torch.tensor([3, 1, 4, 0, 5, 2]))
    first = next(key for key, tensor in moved.items() if tensor.dim() > 1)
    moved[first] = moved[first].flip(0)
    assert compare_functions(deep, EXAMPLE, state, moved).same is False


def test_a_difference_of_a_hundred_thousandth_is_a_difference() -> None:
    torch.manual_seed(0)
    state = deep().state_dict()
    near = {key: tensor * (1 + 3e-5) if key == "0.weight" else tensor for key, tensor in state.items()}
    check = compare_functions(deep, EXAMPLE, state, near)
    assert check.same is False
    assert check.max_in_noise_floors is not None
    assert check.max_in_noise_floors > 1e6
    assert compare_functions(deep, EXAMPLE, state, near, tolerance=Tolerance(rtol=1e-3, atol=1e-4)).same is True
    assert compare_functions(deep, EXAMPLE, state, near, tolerance=Tolerance(floors=1e15)).same is True
    assert compare_functions(deep, EXAMPLE, state, near, tolerance=Tolerance(rtol=1e-9)).same is False


def test_a_small_output_beside_a_large_one_is_compared_at_its_own_scale() -> None:
    y = torch.tensor([[600.0, 300.0, 0.3, 0.6], [500.0, 320.0, 0.4, 0.5]], dtype=torch.float64)
    noisy = y * (1 + 1e-15)
    wrong = y.clone()
    wrong[:, 2:] += 1e-10
    comparison = Comparison()
    comparison.add([y], [noisy], [wrong])
    assert not comparison.result().within()
    assert comparison.result().relative < 1e-12  # which a limit on the whole tensor would let pass


def test_outputs_that_are_not_finite_show_nothing() -> None:
    state = {key: torch.full_like(tensor, float("inf")) for key, tensor in deep().state_dict().items()}
    check = compare_functions(deep, EXAMPLE, state, state)
    assert check.same is False
    assert check.max_relative_error is None


class Masking(nn.Module):
    """Its outputs hold minus infinity where nothing may be chosen, as logits of language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(torch.tensor([False, True, False, True]), -torch.inf)


def test_infinities_that_mask_are_compared_as_such() -> None:
    state = Masking().state_dict()
    assert compare_functions(Masking, EXAMPLE, state, state).same is True
    moved = {**state, "linear.bias": state["linear.bias"] + 1e-6}
    assert compare_functions(Masking, EXAMPLE, state, moved).same is False


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


def test_equal_outputs_that_are_all_zero_are_called_so() -> None:
    state = untrained().state_dict()
    check = compare_functions(untrained, EXAMPLE, state, {**state, "0.weight": state["0.weight"].flip(0)})
    assert check.same is True
    assert check.note is not None
    assert "zero" in check.note
