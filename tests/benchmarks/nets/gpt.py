"""A decoder-only transformer of today's make: RMSNorm, rotary grouped-query attention, gated units, no biases.

`build()` has the shape of a model of 1.1 billion parameters (22 layers, width 2048); smaller ones by argument.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, shared * self.size, bias=False)
        self.v = nn.Linear(width, shared * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = rotated(self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2))
        k = rotated(self.k(x).view(batch, length, self.shared, self.size).transpose(1, 2))
        v = self.v(x).view(batch, length, self.shared, self.size).transpose(1, 2)
        k, v = (side.repeat_interleave(self.heads // self.shared, dim=1) for side in (k, v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.o(seen.transpose(1, 2).reshape(batch, length, -1))
        return mixed


def rotated(x: Tensor) -> Tensor:
    """Rotary positions: each half of a head's units against the other."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] / 10_000 ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    turned = torch.cat([-second, first], dim=-1)
    return x * angle.cos().repeat(1, 2).to(x.dtype) + turned * angle.sin().repeat(1, 2).to(x.dtype)


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, shared: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, shared)
        self.gated = Gated(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.gated(self.norm2(x))


class Gpt(nn.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int, heads: int, shared: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, hidden, heads, shared) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def build(
    vocabulary: int = 32_000, width: int = 2048, hidden: int = 5632, layers: int = 22, heads: int = 32, shared: int = 4
) -> nn.Module:
    return Gpt(vocabulary, width, hidden, layers, heads, shared)
