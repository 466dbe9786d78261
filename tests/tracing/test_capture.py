"""A pass on other inputs repeats the traced operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.tracing.capture import called_operations, capture
from rebasin_cli.tracing.dispatch import plain_operations
from rebasin_cli.tracing.tracer import trace_model


class Encoder(nn.Module):
    """Attention transposes its input, which is contiguous in a batch of one and not in a batch of two."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.into(x)).mean(1)
        return out


@pytest.mark.parametrize("traced", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_pass_on_another_batch_repeats_the_traced_operations(traced: int, batch: int) -> None:
    torch.manual_seed(0)
    module = Encoder().eval()
    trace = trace_model(module, ExampleInput((torch.randn(traced, 4, 8),), {}))
    expected = called_operations(trace)
    x = torch.randn(batch, 4, 8)
    capture(module, ExampleInput((x,), {}), expected, (), lambda tap, tensor, weights: None)
    with torch.no_grad():
        before = module(x)
    with torch.no_grad(), plain_operations():
        torch.testing.assert_close(module(x), before)
