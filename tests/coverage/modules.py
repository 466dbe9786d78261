"""PyTorch's own composite layers, wired into small models: what no zoo holds but everybody uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int, bidirectional: bool, units: int = 8) -> None:
        super().__init__()
        self.recurrent = kind(6, units, num_layers=layers, bidirectional=bidirectional, batch_first=True)
        self.out = nn.Linear(units * (1 + bidirectional), 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.recurrent(x)[0])
        return out


class _Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
        self.embed = nn.Linear(5, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.encoder(self.embed(x)))
        return out


class Both(nn.Module):
    """An encoder and a decoder, whose packed projection across reads two streams."""

    def __init__(self, width: int = 16, heads: int = 4, hidden: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(5, width), nn.Linear(7, width)
        self.transformer = nn.Transformer(width, heads, 2, 2, hidden, batch_first=True)
        self.out = nn.Linear(width, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        out: Tensor = self.out(self.transformer(self.source(source), self.target(target)))
        return out


class _SparseExperts(nn.Module):
    """A mixture that loops over the experts that were hit, as many implementations do."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(5, 9), nn.Linear(9, count, bias=False), nn.Linear(9, 4)
        self.up, self.down = nn.Parameter(torch.randn(count, 6, 9)), nn.Parameter(torch.randn(count, 9, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        share, chosen = self.router(x).softmax(-1).topk(1, dim=-1)
        mixed = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            token, slot = torch.where(chosen == expert)
            hidden = torch.relu(x[token] @ self.up[expert].T)
            mixed = mixed.index_add(0, token, hidden @ self.down[expert].T * share[token, slot, None])
        out: Tensor = self.last(x + mixed)
        return out


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _recurrent(kind: type[nn.RNNBase], layers: int, bidirectional: bool) -> Callable[[], nn.Module]:
    return lambda: Recurrent(kind, layers, bidirectional)


MODULES: dict[str, tuple[Callable[[], nn.Module], ExampleInput]] = {
    "nn.RNN": (_recurrent(nn.RNN, 1, False), ExampleInput((_normal(2, 5, 6),))),
    "nn.GRU": (_recurrent(nn.GRU, 1, False), ExampleInput((_normal(2, 5, 6),))),
    "nn.LSTM": (_recurrent(nn.LSTM, 1, False), ExampleInput((_normal(2, 5, 6),))),
    "nn.LSTM, 2 layers": (_recurrent(nn.LSTM, 2, False), ExampleInput((_normal(2, 5, 6),))),
    "nn.LSTM, 2 layers, bidirectional": (_recurrent(nn.LSTM, 2, True), ExampleInput((_normal(2, 5, 6),))),
    "nn.GRU, 2 layers, bidirectional": (_recurrent(nn.GRU, 2, True), ExampleInput((_normal(2, 5, 6),))),
    "nn.TransformerEncoder": (lambda: _Encoder(False), ExampleInput((_normal(2, 6, 5),))),
    "nn.TransformerEncoder, norm first": (lambda: _Encoder(True), ExampleInput((_normal(2, 6, 5),))),
    "nn.Transformer": (Both, ExampleInput((_normal(2, 6, 5), _normal(2, 4, 7)))),
    "experts in a loop, all hit": (lambda: _SparseExperts(3), ExampleInput((_normal(60, 5),))),
    "experts in a loop, some never hit": (lambda: _SparseExperts(40), ExampleInput((_normal(6, 5),))),
}
