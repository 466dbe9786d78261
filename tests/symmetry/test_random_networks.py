"""Small random networks, drawn from a grammar of operations: execution confirms the derived symmetries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model

Step = Callable[[Tensor], Tensor]

STEPS = (
    "conv",
    "depthwise",
    "grouped",
    "batch_norm",
    "group_norm",
    "layer_norm",
    "residual",
    "twice",
    "concatenate",
    "halves",
    "gate",
    "shuffle",
    "pad",
    "flip_added",
    "slice_written",
    "squeeze_excite",
    "attention",
    "pool",
    "scale",
    "reversed",
)


class Drawn(nn.Module):
    """Applies the drawn steps to (batch, channels, height, width), then a head."""

    def __init__(self, steps: list[str], width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        self.steps: list[Step] = []
        self.channels = width
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        for number, step in enumerate(steps):
            self.steps.append(getattr(self, step)(f"{number}"))
        self.head = nn.Linear(self.channels * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for step in self.steps:
            x = step(x)
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))

    def part(self, name: str, module: nn.Module) -> nn.Module:
        self.parts[name] = module
        return module

    def conv(self, name: str) -> Step:
        layer = self.part(name, nn.Conv2d(self.channels, 8, 3, padding=1))
        self.channels = 8
        return lambda x: layer(x).relu()

    def depthwise(self, name: str) -> Step:
        layer = self.part(name, nn.Conv2d(self.channels, self.channels, 3, padding=1, groups=self.channels))
        return lambda x: torch.tanh(layer(x))

    def grouped(self, name: str) -> Step:
        layer = self.part(name, nn.Conv2d(self.channels, self.channels, 1, groups=2))
        return lambda x: torch.relu(layer(x))

    def batch_norm(self, name: str) -> Step:
        return self.part(name, nn.BatchNorm2d(self.channels))

    def group_norm(self, name: str) -> Step:
        return self.part(name, nn.GroupNorm(2, self.channels))

    def layer_norm(self, name: str) -> Step:
        layer = self.part(name, nn.LayerNorm(self.channels))
        return lambda x: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def residual(self, name: str) -> Step:
        inner = self.part(name, nn.Conv2d(self.channels, self.channels, 3, padding=1))
        return lambda x: x + torch.relu(inner(x))

    def twice(self, name: str) -> Step:
        layer = self.part(name, nn.Conv2d(self.channels, self.channels, 1, bias=False))
        return lambda x: torch.tanh(layer(torch.tanh(layer(x))))

    def concatenate(self, name: str) -> Step:
        layer = self.part(name, nn.Conv2d(self.channels, 4, 1))
        self.channels += 4
        return lambda x: torch.cat([x, layer(x).sigmoid()], dim=1)

    def halves(self, name: str) -> Step:
        half = self.channels // 2
        layer = self.part(name, nn.Conv2d(half, half, 1))

        def apply(x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=1)
            return torch.cat([left, layer(right)], dim=1)

        return apply

    def gate(self, name: str) -> Step:
        layer = self.part(name, nn.Conv2d(self.channels, 12, 1))
        self.channels = 6

        def apply(x: Tensor) -> Tensor:
            value, gate = layer(x).chunk(2, dim=1)
            return value * torch.sigmoid(gate)

        return apply

    def shuffle(self, name: str) -> Step:
        def apply(x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)

        return apply

    def pad(self, name: str) -> Step:
        self.channels += 2
        return lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))

    def flip_added(self, name: str) -> Step:
        return lambda x: x + 0.5 * x.flip(1)

    def slice_written(self, name: str) -> Step:
        def apply(x: Tensor) -> Tensor:
            y = x.clone()
            y[:, :2] = x[:, :2].tanh()
            return y

        return apply

    def squeeze_excite(self, name: str) -> Step:
        down = self.part(f"{name}a", nn.Linear(self.channels, 3))
        up = self.part(f"{name}b", nn.Linear(3, self.channels))
        return lambda x: x * torch.sigmoid(up(torch.relu(down(x.mean((2, 3))))))[:, :, None, None]

    def attention(self, name: str) -> Step:
        layer = self.part(name, nn.MultiheadAttention(self.channels, 2, batch_first=True))

        def apply(x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return x + layer(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)

        return apply

    def pool(self, name: str) -> Step:
        return lambda x: F.max_pool2d(x, 3, stride=1, padding=1)

    def scale(self, name: str) -> Step:
        self.scales[name] = nn.Parameter(torch.ones(self.channels, 1, 1))
        return lambda x: x * self.scales[name]

    def reversed(self, name: str) -> Step:
        return lambda x: x.flip(1)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), st.sampled_from([4, 8]))
def test_what_is_claimed_of_a_random_network_holds(steps: list[str], width: int) -> None:
    example = ExampleInput((torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)),))

    def build() -> nn.Module:
        return Drawn(steps, width).eval()

    found = derive(trace_model(build(), example), strict=True)
    for seed in (0, 1):
        check = verify_by_execution(build, example, found.spec, seed)
        assert check.ok, (steps, check)


def test_blocks_whose_insides_lie_in_another_order_move_once() -> None:
    """Padded channels put the same units at different places of the two groups of a grouped convolution."""
    example = ExampleInput((torch.randn(2, 2, 5, 5),))
    spec = derive(trace_model(Drawn(["pad", "grouped"], 4).eval(), example)).spec
    blocks = [group for group in spec.groups if any(site.key == "parts.1.weight" for site in group.sites)]
    assert any(group.size == 2 and group.parent is None for group in blocks)
    assert verify_by_execution(lambda: Drawn(["pad", "grouped"], 4).eval(), example, spec, 1).ok
