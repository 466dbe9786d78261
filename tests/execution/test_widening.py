"""A large weight is widened in pieces, and what is computed with it is what the whole of it gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli import permutation
from rebasin_cli.execution import widening
from rebasin_cli.execution.forward import run
from rebasin_cli.execution.widening import Rounding
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import Gather


class Large(nn.Module):
    """A look-up, products with a weight on either side, and an operation that has no pieces (a convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 12)
        self.up = nn.Linear(12, 30)
        self.plain = nn.Linear(30, 24, bias=False)
        self.left = nn.Parameter(torch.randn(18, 20))
        self.conv = nn.Conv1d(5, 7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.plain(torch.relu(self.up(self.table(ids))))  # (4, 5, 24)
        x = self.conv(x).flatten(0, 1)[:20]
        product: Tensor = self.left @ x
        return torch.cat([product.sum(0), self.left.detach().t().sum(0)])


IDS = ExampleInput((torch.randint(0, 40, (4, 5), generator=torch.Generator().manual_seed(0)),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rounding", [None, Rounding(0)])
def test_pieces_give_what_the_whole_gives(
    dtype: torch.dtype, rounding: Rounding | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = Large().eval()
    state = {key: tensor.to(dtype) for key, tensor in module.state_dict().items()}
    (whole,) = run(module, {key: tensor.double() for key, tensor in state.items()}, IDS)
    monkeypatch.setattr(widening, "LARGE", 50)
    (pieces,) = run(module, state, IDS, rounding=rounding)
    assert pieces.dtype is torch.float64
    assert torch.allclose(pieces, whole, rtol=1e-12, atol=1e-12)
    assert rounding is None or not torch.equal(pieces, whole)


def test_no_piece_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widening, "LARGE", 50)
    seen: list[int] = []
    original: Callable[..., Tensor] = widening.cast

    def watched(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        seen.append(tensor.numel())
        return original(tensor, dtype)

    monkeypatch.setattr(widening, "cast", watched)
    torch.manual_seed(0)
    linear = nn.Linear(12, 100).eval()
    run(linear, dict(linear.state_dict()), ExampleInput((torch.randn(3, 12),)))
    assert sum(size for size in seen if size > 3) == 1200
    assert max(seen) <= 50


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place_a_tensor_is_permuted_as_it_is_otherwise(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "AT_ONCE", 16)
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(6, 5, 4, generator=generator)
    steps = [
        Gather(axis, 1, torch.randperm(tensor.shape[axis], generator=generator)),
        Gather(0, 2, torch.randperm(30, generator=generator)),
        Gather(0, 3, torch.randperm(120, generator=generator)),
    ]
    for count in (1, 2, 3):
        expected = permutation.permute_tensor(tensor, steps[:count])
        assert torch.equal(permutation.permute_in_place(tensor.clone(), steps[:count]), expected)
