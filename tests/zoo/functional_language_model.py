"""A speed-run language model: one projection for attention and the gated units, one back; learned position bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 7, "families": 0, "groups": 7, "units": 85}
# the stream (9); in either layer the units of q and k (4), the gated units that stay local (24), those that attention
# mixes (10): 9 + 2 * 38


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(9, bias=False)
        self.expand = nn.Parameter(torch.randn(2 * 4 + 2 * 34, 9))
        self.project = nn.Parameter(torch.randn(9, 34))
        self.position_bias_mult = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        query, key, linear, pre_gelu = F.linear(self.norm(x), self.expand).split((4, 4, 34, 34), dim=-1)
        geglu = linear * F.gelu(pre_gelu)
        local, value = geglu.split((24, 10), dim=-1)
        time = torch.arange(x.shape[1])
        distance = -torch.abs(time[:, None] - time[None, :]).to(x.dtype)
        bias = torch.where(time[:, None] >= time[None, :], F.softplus(self.position_bias_mult) * distance, -torch.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return x + F.linear(torch.cat([local, mixed], dim=-1), self.project)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 9, scale_grad_by_freq=True)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.norm = nn.LayerNorm(9, bias=False)
        self.out = nn.Linear(9, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(self.norm(x))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.arange(6).view(1, 6)
