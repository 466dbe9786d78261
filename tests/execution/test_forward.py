"""A module runs on the numbers of a state, in any precision, wherever its code reads its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.execution.forward import Changed, run
from rebasin_cli.execution.random_state import RandomState
from rebasin_cli.execution.widening import Rounding, is_large
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.weightless import without_weights

IDS = ExampleInput((torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(3)),))


class Small(nn.Module):
    """A tied embedding, recurrence, running statistics, a parameter of its own, one in a list, a borrowed one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.recurrent = nn.LSTM(8, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.shift = nn.Parameter(torch.zeros(6))
        self.scales = [self.shift, 2.0]
        self.twice = nn.Linear(6, 6)
        self.borrowed = nn.Linear(6, 6)
        self.back = nn.Linear(6, 8)
        self.out = nn.Linear(8, 11)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.recurrent(self.embed(ids))[0].transpose(1, 2)).transpose(1, 2) + self.shift
        hidden = self.twice(torch.relu(self.twice(torch.relu(hidden)))) * self.scales[0]
        hidden = hidden @ self.borrowed.weight.t()
        scores: Tensor = self.out(self.back(hidden))
        return scores.to(self.shift.dtype)


def in_double(state: dict[str, Tensor]) -> Tensor:
    whole = Small().double().eval()
    whole.load_state_dict(
        {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    )
    with torch.no_grad():
        output: Tensor = whole(*IDS.args)
    return output


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_precision_is_computed_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in Small().state_dict().items()}
    module = without_weights(Small()).eval()
    [output] = run(module, state, IDS)
    assert output.dtype is torch.float64
    assert torch.allclose(output, in_double(state), rtol=1e-13, atol=0)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(type(owner.__dict__["_parameters"]).__name__ == "_Parameters" for owner in module.modules())
    assert module.scales[0] is module.shift


def test_parameters_are_read_when_they_are_needed_and_not_kept() -> None:
    module = without_weights(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))).eval()
    state = RandomState(module, 0)
    read: list[str] = []

    def note(key: str, tensor: Tensor) -> Tensor:
        read.append(key)
        return tensor

    seen: list[int] = []
    for layer in module:
        layer.register_forward_hook(lambda *_: seen.append(len(read)))
    run(module, Changed(state, note), ExampleInput((torch.ones(1, 4),)))
    assert seen == [2, 4, 6]


def test_a_parameter_without_numbers_is_named_by_its_shape() -> None:
    module = without_weights(nn.Linear(3, 2)).eval()
    with pytest.raises(ModelError, match=r"\(2, 3\) has no numbers"):
        run(module, {"bias": torch.zeros(2)}, ExampleInput((torch.ones(1, 3),)))


def test_a_tensor_of_another_shape_is_refused() -> None:
    module = without_weights(nn.Linear(3, 2)).eval()
    with pytest.raises(ModelError, match=r"weight has shape \(2, 4\) where the model has \(2, 3\)"):
        run(module, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, ExampleInput((torch.ones(1, 3),)))


def test_one_rounding_moves_every_number_by_one_rounding() -> None:
    numbers = torch.rand(100_000, dtype=torch.float64) + 1
    moved = Rounding(0)(numbers)
    eps = torch.finfo(torch.float64).eps
    assert float((moved / numbers - 1).abs().max()) <= 2 * eps
    assert 0.4 < float((moved > numbers).double().mean()) < 0.6
    assert Rounding(0)(torch.arange(3)).tolist() == [0, 1, 2]


class Caching(nn.Module):
    """Keeps a tensor made from its weights, as attention biases are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.linear.weight.sum(0)
        return self.linear(x) + self.kept


def test_what_a_pass_leaves_in_the_module_does_not_reach_the_next() -> None:
    module = Caching().eval()
    example = ExampleInput((torch.ones(1, 3),))
    zero, one = ({"linear.weight": torch.full((3, 3), v), "linear.bias": torch.zeros(3)} for v in (0.0, 1.0))
    run(module, one, example)
    assert module.kept is None
    assert float(run(module, zero, example)[0].abs().max()) == 0.0


class LargeRecurrent(nn.Module):
    """A recurrent layer whose matrices are widened in pieces elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(300, 600, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.recurrent(x)[0]
        return found


def test_a_large_recurrent_layer_computes_in_double_precision() -> None:
    torch.manual_seed(0)
    module = LargeRecurrent().eval()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert all(is_large(value, torch.float64) for key, value in state.items() if "weight" in key)
    x = torch.randn(2, 4, 300)
    found = run(without_weights(module), state, ExampleInput((x,)))[0]
    with torch.no_grad():
        expected = LargeRecurrent().double().eval()
        expected.load_state_dict(state)
        torch.testing.assert_close(found, expected(x.double()), rtol=1e-13, atol=1e-14)
