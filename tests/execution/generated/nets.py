"""Networks of these tests: small, of one structure each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def quadrants(count: int, seed: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Smooth noise (count, channels, 8, 8) with one bright quadrant, and its number."""
    generator = torch.Generator().manual_seed(seed)
    x = F.avg_pool2d(1.5 * torch.randn(count, channels, 10, 10, generator=generator), 3, stride=1)
    y = torch.randint(4, (count,), generator=generator)
    rows, columns = torch.arange(8).view(8, 1) // 4, torch.arange(8).view(1, 8) // 4
    bright = (2 * rows + columns).expand(count, 1, 8, 8) == y.view(-1, 1, 1, 1)
    return x + 1.5 * bright, y


def normed(seed: int, channels: int = 1) -> nn.Module:
    """A small classifier of quadrants with BatchNorm, trained for a second."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 4)),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(40):
        x, y = quadrants(64, 1000 * seed + step, channels)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


class Segmenter(nn.Module):
    """Scores of three classes for every pixel."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Stepwise(nn.Module):
    """A classifier through which no gradient flows."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.last = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x.flatten(1) > 0).float())


class Chain(nn.Module):
    """A language model that looks at the last token alone: token i is followed by `i + step`, nine times in ten."""

    def __init__(self, step: int, tokens: int = 12) -> None:
        super().__init__()
        chances = torch.full((tokens, tokens), 0.1 / (tokens - 1))
        rows = torch.arange(tokens)
        chances[rows, (rows + step) % tokens] = 0.9
        self.table = nn.Embedding(tokens, tokens)
        self.table.weight = nn.Parameter(chances.log())

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class FixedLength(nn.Module):
    """The same, for sequences of eight tokens only."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.chain = Chain(step)
        self.place = nn.Parameter(torch.zeros(8, 12))

    def forward(self, ids: Tensor) -> Tensor:
        return self.chain(ids) + self.place


class Output(dict):  # type: ignore[type-arg]
    """Named outputs, as transformers has them."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]

    @property
    def past_key_values(self) -> object:
        return self.get("past_key_values")


class Cached(nn.Module):
    """A running sum decides the next token; the cache holds the sum, and `broken` ones are forgotten."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.table, self.broken, self.seen = nn.Embedding(12, 12), broken, 0
        torch.manual_seed(3)
        self.table.weight = nn.Parameter(2 * torch.randn(12, 12))

    def forward(self, ids: Tensor, use_cache: bool = False, past_key_values: Tensor | None = None) -> Output:
        self.seen += ids.numel()
        sums = self.table(ids).cumsum(1)
        if past_key_values is not None and not self.broken:
            sums = sums + past_key_values
        scores = 3 * torch.sin(sums)
        return Output(logits=scores, past_key_values=sums[:, -1:] if use_cache else None)


class Masked(nn.Module):
    """Sees the tokens after each place, as masked language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 12)

    def forward(self, ids: Tensor) -> Tensor:
        scores = self.table(ids)
        return scores + scores.mean(1, keepdim=True)
