"""Small networks and permuted copies of them, for tests that record activations."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.permutation import Permutations, apply, random
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.capture import called_operations
from rebasin_cli.tracing.tracer import trace_model

WIDTHS = (6, 20, 20, 3)


class Net(nn.Module):
    """A perceptron; a branching one does more for large inputs, or where many come at once."""

    def __init__(self, *, branching: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(WIDTHS))
        self.branching = branching

    def forward(self, x: Tensor) -> Tensor:
        large = self.branching and (len(x) > 4 or float(x.abs().max()) > 100)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            if large:
                x = x.square()
        return self.layers[-1](x)


class Heads(nn.Module):
    """Attention whose heads, and the units inside them, may all be reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.out = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def batches(shape: tuple[int, ...], sizes: Sequence[int]) -> list[ExampleInput]:
    whole = torch.randn(sum(sizes), *shape, generator=torch.Generator().manual_seed(5))
    return [ExampleInput((part,)) for part in whole.split(list(sizes))]


def planted(net: nn.Module, example: ExampleInput) -> tuple[Derivation, list[str], nn.Module, Permutations]:
    """The network's groups, its operations, a copy with every group permuted at random, and how."""
    trace = trace_model(net, example)
    found = derive(trace)
    moved = random(found.spec, 3)
    other = deepcopy(net)
    load_state(other, apply(found.spec, moved, net.state_dict()))
    return found, called_operations(trace), other, moved
