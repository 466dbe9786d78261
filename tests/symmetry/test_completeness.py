"""Tiny random networks, drawn from a grammar of operations: the derived symmetries are all that brute force finds."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, prod

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.symmetry.brute_force import TooMany, count_symmetries

Step = Callable[[Tensor], Tensor]
TOKENS = 3

STEPS = (
    "linear",
    "conv",
    "residual",
    "twice",
    "concatenate",
    "halves",
    "gate",
    "attention",
    "grouped_queries",
    "layer_norm",
    "batch_norm",
    "group_norm",
    "grouped",
    "scale",
    "stacked",
    "packed",
    "mixed_tokens",
    "interleaved",
    "reversed",
    "picked",
    "written",
    "excited",
    "beside_heads",
    "summed",
    "tokens_apart",
    "cumulated",
    "pooled",
    "ranked",
    "softly_chosen",
)


class Tiny(nn.Module):
    """Applies the drawn steps to (batch, tokens, features), then weighs all of them."""

    def __init__(self, steps: list[str], width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.numbers = nn.ParameterDict()
        self.steps: list[Step] = []
        self.width = width
        self.stem = nn.Linear(2, width, bias=False)
        for number, step in enumerate(steps):
            self.steps.append(getattr(self, step)(f"{number}"))
        self.number("head", 2, TOKENS, self.width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for step in self.steps:
            x = step(x)
        return torch.einsum("btf,otf->bo", x, self.numbers["head"])

    def layer(self, name: str, into: int, out: int) -> nn.Module:
        self.parts[name] = nn.Linear(into, out, bias=False)
        return self.parts[name]

    def number(self, name: str, *shape: int) -> None:
        self.numbers[name] = nn.Parameter(torch.randn(*shape))

    def linear(self, name: str) -> Step:
        layer = self.layer(name, self.width, 3)
        self.width = 3
        return lambda x: torch.tanh(layer(x))

    def conv(self, name: str) -> Step:
        layer = self.parts[name] = nn.Conv1d(self.width, 2, 3, padding=1, bias=False)
        self.width = 2
        return lambda x: torch.tanh(layer(x.transpose(1, 2)).transpose(1, 2))

    def residual(self, name: str) -> Step:
        layer = self.layer(name, self.width, self.width)
        return lambda x: x + torch.tanh(layer(x))

    def twice(self, name: str) -> Step:
        layer = self.layer(name, self.width, self.width)
        return lambda x: torch.tanh(layer(torch.tanh(layer(x))))

    def concatenate(self, name: str) -> Step:
        layer = self.layer(name, self.width, 2)
        self.width += 2
        return lambda x: torch.cat([x, torch.tanh(layer(x))], dim=2)

    def halves(self, name: str) -> Step:
        assume(self.width % 2 == 0)
        layer = self.layer(name, self.width // 2, self.width // 2)

        def apply(x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=2)
            return torch.cat([left, torch.sigmoid(layer(right))], dim=2)

        return apply

    def gate(self, name: str) -> Step:
        layer = self.layer(name, self.width, 4)
        self.width = 2

        def apply(x: Tensor) -> Tensor:
            value, gate = layer(x).chunk(2, dim=2)
            return value * torch.sigmoid(gate)

        return apply

    def attention(self, name: str) -> Step:
        query, key, value = (self.layer(f"{name}{part}", self.width, 4) for part in "qkv")
        out = self.layer(f"{name}o", 4, 2)
        self.width = 2

        def apply(x: Tensor) -> Tensor:
            q, k, v = (layer(x).view(-1, TOKENS, 2, 2).transpose(1, 2) for layer in (query, key, value))
            mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
            return out(mixed.transpose(1, 2).reshape(-1, TOKENS, 4))

        return apply

    def grouped_queries(self, name: str) -> Step:
        query, rest = self.layer(f"{name}q", self.width, 4), self.layer(f"{name}kv", self.width, 2)
        out = self.layer(f"{name}o", 4, 2)
        self.width = 2

        def apply(x: Tensor) -> Tensor:
            q = query(x).view(-1, TOKENS, 4, 1).transpose(1, 2)
            k = rest(x).view(-1, TOKENS, 2, 1).transpose(1, 2).repeat_interleave(2, dim=1)
            return out(F.scaled_dot_product_attention(q, k, k.tanh()).transpose(1, 2).flatten(2))

        return apply

    def layer_norm(self, name: str) -> Step:
        assume(self.width > 2)  # of two features only their difference is left, which has symmetries of its own
        self.parts[name] = nn.LayerNorm(self.width)
        return self.parts[name]

    def batch_norm(self, name: str) -> Step:
        norm = self.parts[name] = nn.BatchNorm1d(self.width)
        return lambda x: norm(x.transpose(1, 2)).transpose(1, 2)

    def group_norm(self, name: str) -> Step:
        assume(self.width % 2 == 0)
        norm = self.parts[name] = nn.GroupNorm(2, self.width)
        return lambda x: norm(x.transpose(1, 2)).transpose(1, 2)

    def grouped(self, name: str) -> Step:
        assume(self.width % 2 == 0)
        layer = self.parts[name] = nn.Conv1d(self.width, 4, 1, groups=2, bias=False)
        self.width = 4
        return lambda x: torch.tanh(layer(x.transpose(1, 2)).transpose(1, 2))

    def scale(self, name: str) -> Step:
        self.number(name, self.width)
        return lambda x: x * self.numbers[name]

    def stacked(self, name: str) -> Step:
        one, two = self.layer(f"{name}a", self.width, 2), self.layer(f"{name}b", self.width, 2)
        self.width = 4

        def apply(x: Tensor) -> Tensor:
            first, second = torch.stack([one(x), two(x)]).tanh().unbind()
            return torch.cat([first, second], dim=2)

        return apply

    def packed(self, name: str) -> Step:
        other = self.layer(f"{name}b", self.width, self.width)
        self.number(name, 4, self.width)
        self.width = 2

        def apply(x: Tensor) -> Tensor:
            weights = self.numbers[name]
            return F.linear(x, weights[:2]) * torch.sigmoid(F.linear(torch.tanh(other(x)), weights[2:]))

        return apply

    def mixed_tokens(self, name: str) -> Step:
        one, two = self.layer(f"{name}a", TOKENS, 2), self.layer(f"{name}b", 2, TOKENS)
        return lambda x: x + two(torch.tanh(one(x.transpose(1, 2)))).transpose(1, 2)

    def interleaved(self, name: str) -> Step:
        assume(self.width % 2 == 0)
        return lambda x: x.unflatten(2, (2, -1)).transpose(2, 3).flatten(2)

    def reversed(self, name: str) -> Step:
        return lambda x: x.flip(2)

    def picked(self, name: str) -> Step:
        order = torch.arange(self.width).roll(1)
        return lambda x: x[:, :, order]

    def written(self, name: str) -> Step:
        def apply(x: Tensor) -> Tensor:
            y = x.clone()
            y[:, :, :1] = x[:, :, :1].sigmoid()
            return y

        return apply

    def excited(self, name: str) -> Step:
        down, up = self.layer(f"{name}a", self.width, 2), self.layer(f"{name}b", 2, self.width)
        return lambda x: x * torch.sigmoid(up(torch.tanh(down(x.mean(1)))))[:, None]

    def beside_heads(self, name: str) -> Step:
        heads, scalars = self.layer(f"{name}a", self.width, 4), self.layer(f"{name}b", self.width, 2)
        self.width = 6

        def apply(x: Tensor) -> Tensor:
            one, two = heads(x).tanh().unflatten(2, (2, 2)), scalars(x).sigmoid().unsqueeze(3)
            return torch.cat([one, two], dim=3).flatten(2)

        return apply

    def summed(self, name: str) -> Step:
        self.number(name, TOKENS, self.width)
        return lambda x: x + (x * self.numbers[name]).sum(1, keepdim=True)

    def tokens_apart(self, name: str) -> Step:
        one, two = self.layer(f"{name}a", self.width, 2), self.layer(f"{name}b", self.width, 2)
        self.width = 2
        return lambda x: torch.cat([one(x[:, :1]), two(x[:, 1:])], dim=1).tanh()

    def cumulated(self, name: str) -> Step:
        return lambda x: x.cumsum(1)

    def pooled(self, name: str) -> Step:
        return lambda x: F.avg_pool1d(x.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2)

    def ranked(self, name: str) -> Step:
        return lambda x: x.sort(1)[0]

    def softly_chosen(self, name: str) -> Step:
        experts, router = f"{name}e", self.layer(f"{name}r", self.width, 2)
        self.number(experts, 2, self.width, 2)
        self.width = 2

        def apply(x: Tensor) -> Tensor:
            each = torch.einsum("btf,efo->bteo", x, self.numbers[experts]).tanh()
            return torch.einsum("bteo,bte->bto", each, router(x).softmax(2))

        return apply


EXAMPLE = ExampleInput((torch.randn(2, TOKENS, 2, generator=torch.Generator().manual_seed(0)),))


def order(steps: list[str], width: int) -> tuple[int, int] | None:
    """The number of symmetries that are derived, and the number that there are: no more than any seed finds.

    None where these cannot be compared: groups that move several axes as one, or too much to try.
    """
    found = derive(trace_model(Tiny(steps, width).eval(), EXAMPLE), strict=True)
    if any(site.span > 1 for group in found.spec.groups for site in group.sites):
        return None
    for seed in (0, 1):
        assert verify_by_execution(lambda: Tiny(steps, width).eval(), EXAMPLE, found.spec, seed).ok, (steps, width)
    derived = prod(factorial(group.size) for group in found.spec.groups)
    there = 0
    for seed in range(4):
        try:
            counted = count_symmetries(Tiny(steps, width), EXAMPLE, seed)
        except TooMany:
            return None
        there = min(there, counted) if there else counted
        if there == derived:
            break
    return derived, there


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=3), st.sampled_from([2, 3, 4]))
def test_nothing_is_missed_and_nothing_is_wrong(steps: list[str], width: int) -> None:
    counted = order(steps, width)
    assume(counted is not None)
    derived, there = counted or (0, 1)
    assert derived == there, (steps, width)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_the_network_without_steps(width: int) -> None:
    assert order([], width) == (factorial(width), factorial(width))
