"""A selective state space layer by hand: gates, a causal depthwise convolution, a scan over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 22}
# the stream (6), the inner channels (8) in both halves of the projection, the steps' rank (3), the states (5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.norm = nn.RMSNorm(6)
        self.given = nn.Linear(6, 16, bias=False)
        self.near = nn.Conv1d(8, 8, 3, groups=8, padding=2)
        self.about = nn.Linear(8, 3 + 5 + 5, bias=False)
        self.step = nn.Linear(3, 8)
        self.decay = nn.Parameter(torch.randn(8, 5))
        self.direct = nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 6, bias=False)
        self.last = nn.Linear(6, 7)

    def scan(self, x: Tensor) -> Tensor:
        rank, write, read = self.about(x).split([3, 5, 5], dim=-1)
        step = F.softplus(self.step(rank))
        state, seen = x.new_zeros(x.shape[0], 8, 5), []
        for time in range(x.shape[1]):
            now = step[:, time, :, None]
            state = torch.exp(-now * torch.exp(self.decay)) * state + now * write[:, time, None] * x[:, time, :, None]
            seen.append(torch.einsum("bdn,bn->bd", state, read[:, time]))
        return torch.stack(seen, dim=1) + x * self.direct

    def forward(self, ids: Tensor) -> Tensor:
        stream = self.table(ids)
        x, gate = self.given(self.norm(stream)).chunk(2, dim=-1)
        x = F.silu(self.near(x.transpose(1, 2))[..., : ids.shape[1]].transpose(1, 2))
        stream = stream + self.out(self.scan(x) * F.silu(gate))
        out: Tensor = self.last(stream)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.arange(5).view(1, 5)
