"""Higher-order operators and undecomposed composite ones are decomposed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention import flex_attention as flex

from rebasin_cli.execution.forward import call
from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model

HEADS, WIDTH = 4, 16


def decaying(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score - 0.1 * (query - key).abs()


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


class FlexAttention(nn.Module):
    """Packed attention whose scores and mask are functions."""

    def __init__(self, *, masked: bool, compiled: bool) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.packed, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.masked = masked
        self.attention = torch.compile(flex.flex_attention) if compiled else flex.flex_attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        batch, length, width = x.shape
        parts = self.packed(x).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mask = flex.create_block_mask(causal, None, None, length, length, device="cpu") if self.masked else None
        seen = self.attention(*parts, score_mod=decaying, block_mask=mask)
        assert isinstance(seen, Tensor)
        return self.out(x + self.back(seen.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_is_attention(masked: bool, compiled: bool) -> None:
    module = FlexAttention(masked=masked, compiled=compiled).eval()
    example = ExampleInput((torch.randn(2, 7, 5),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = derive(trace_model(module, example)).spec
        sizes = sorted(group.size for group in spec.groups)
        assert sizes == sorted([WIDTH, HEADS, *[WIDTH // HEADS] * 2 * HEADS])
        if not compiled:
            assert verify_by_execution(lambda: module, example, spec).ok


class Branching(nn.Module):
    """A branch and a loop on numbers that the shape gives, and a composed operation in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        taken = torch.cond(torch.tensor(x.shape[0] > 1), torch.relu, torch.sigmoid, (hidden,))
        _, halved = while_loop(
            lambda count, units: count < 2, lambda count, units: (count + 1, units * 0.5), (torch.tensor(0), taken)
        )
        with torch.inference_mode():
            return self.down(torch.as_tensor(halved))


def test_functions_of_other_operators_are_followed() -> None:
    module, example = Branching().eval(), ExampleInput((torch.randn(4, 3),))
    trace = trace_model(module, example)
    assert {call.name for call in trace.calls} >= {"aten.relu", "aten.addmm"}
    assert sum(call.name == "aten.mul" for call in trace.calls) == 2
    assert "aten.linear" not in {call.name for call in trace.calls}
    assert [group.size for group in derive(trace).spec.groups] == [8]


def test_a_convolution_in_half_precision_is_widened_whole() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).bfloat16().eval()
    narrow = {key: value.clone() for key, value in module.state_dict().items()}
    example = ExampleInput((torch.randn(2, 2, 4, 4),))
    with torch.inference_mode():
        (wide,) = call(module, example, dtype=torch.float32)
    assert wide.dtype is torch.float32
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    plain.load_state_dict(narrow)
    assert torch.allclose(wide, plain(example.args[0]), atol=1e-5)
