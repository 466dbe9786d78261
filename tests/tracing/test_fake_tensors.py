"""Fake tensors: cached and direct results equal those of PyTorch's own mode, call by call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import load_factory
from rebasin_cli.tracing.dispatch import operator, tensors_in
from rebasin_cli.tracing.fake_tensors import FakeKernels
from rebasin_cli.tracing.tracer import trace_model

TORCHVISION = ("densenet121", "efficientnet_b0", "googlenet", "maxvit_t", "shufflenet_v2_x0_5", "swin_v2_t", "vit_b_32")


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call that changes nothing is made by PyTorch's mode as well; the overloads that were compared."""
    seen: list[str] = []
    run = FakeKernels.run

    def both(self: FakeKernels, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        out = run(self, func, args, kwargs, tensors)
        if not operator(func).mutable:
            expected = self._by_mode(func, args, kwargs, tensors)
            assert list(map(_described, tensors_in(out))) == list(map(_described, tensors_in(expected))), func
            assert [_shares(one, tensors) for one in tensors_in(out)] == [
                _shares(one, tensors) for one in tensors_in(expected)
            ], func
            seen.append(operator(func).overload)
        return out

    monkeypatch.setattr(FakeKernels, "run", both)
    return seen


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, compared: list[str]) -> None:
    factory = load_factory(f"torchvision:{name}")
    module = factory.build_weightless()
    trace_model(module, factory.example_input(module))
    assert len(compared) > 100


class Assorted(nn.Module):
    """Layouts and dtypes that photographs through plain networks do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 8).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.contiguous(memory_format=torch.channels_last))).relu()
        y = self.linear(x.permute(0, 2, 3, 1).bfloat16())
        y = torch.cat((y, y.transpose(1, 2)), dim=-1) + 1
        y = (y * 2.0 + y[:, :1]).softmax(-1).sum((1, 2), dtype=torch.float32)
        y = torch.stack([y, y.exp()], dim=1).roll(1, 0) - torch.ones(8, 1, dtype=torch.float64).mT.repeat(1, 2)
        return y.flatten(1).float() @ y.flatten(1).T.float()


@pytest.mark.parametrize("batch", [1, 2])
def test_layouts_and_dtypes(batch: int, compared: list[str]) -> None:
    trace = trace_model(Assorted().eval(), ExampleInput((torch.randn(batch, 4, 6, 6),)))
    assert trace.values[trace.outputs[0]].shape == (batch, batch)
    assert {"aten.native_batch_norm.default", "aten.cat.default", "aten.mul.Tensor"} <= set(compared)


def test_scalars_of_other_types_are_other_calls(compared: list[str]) -> None:
    class Promoting(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x + 1, x + 1.0, x * True

    module = nn.Sequential(nn.Embedding(3, 1), Promoting())
    module[0].weight = nn.Parameter(torch.ones(3, 1, dtype=torch.int64), requires_grad=False)
    trace = trace_model(module, ExampleInput((torch.tensor([0, 1]),)))
    dtypes = [trace.values[index].dtype for index in trace.outputs]
    assert dtypes == [torch.int64, torch.float32, torch.int64]


def _described(tensor: Tensor) -> tuple[Any, ...]:
    """Strides of axes of one element mean nothing, and kernels differ in them."""
    strides = tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return tuple(tensor.shape), strides, tensor.dtype, tensor.device, tensor.storage_offset(), type(tensor)


def _shares(one: Tensor, others: list[Tensor]) -> list[bool]:
    return [one.untyped_storage()._cdata == other.untyped_storage()._cdata for other in others]
