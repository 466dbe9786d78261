"""Small networks whose symmetry classes are written down by hand, for tests of what works on specs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from rebasin_cli.freedom import Gauge, ScaleFreedom, SymmetryClass
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site


class Attention(nn.Module):
    """Causal attention with packed projections and biases, heads of `head` units."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, *, bias: bool, layer_scale: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=bias)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.ones(width)) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x + (y if self.scale is None else self.scale * y)


class Pre(nn.Module):
    """A transformer of pre-norm blocks (LayerNorm) on tokens of `inputs` numbers: ViT-like, or GPT-like if untied."""

    def __init__(
        self,
        width: int = 12,
        heads: int = 3,
        hidden: int = 20,
        depth: int = 2,
        *,
        inputs: int = 7,
        outputs: int = 5,
        bias: bool = True,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.randn(1, 6, width) * 0.3)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, bias=bias, layer_scale=layer_scale) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def pre_spec(net: Pre) -> PermutationSpec:
    """The classes of `Pre`."""
    width, heads = net.embed.out_features, net.blocks[0].attention.heads  # type: ignore[union-attr]
    depth, bias = len(net.blocks), net.blocks[0].attention.qkv.bias is not None  # type: ignore[union-attr]
    head = width // heads
    hidden = net.blocks[0].up.out_features  # type: ignore[union-attr]
    sites = [Site("embed.weight", 0), Site("embed.bias", 0), Site("position", 2)]
    gauges = []
    inner: list[AxisGroup] = []
    for layer in range(depth):
        p = f"blocks.{layer}."
        at = len(sites)
        sites += [
            Site(p + "norm1.weight", 0),
            Site(p + "norm1.bias", 0),
            Site(p + "attention.qkv.weight", 1, dual=True),
        ]
        sites += [Site(p + "attention.out.weight", 0), Site(p + "attention.out.bias", 0)]
        sites += [Site(p + "norm2.weight", 0), Site(p + "norm2.bias", 0), Site(p + "up.weight", 1, dual=True)]
        sites += [Site(p + "down.weight", 0), Site(p + "down.bias", 0)]
        qkv = (p + "attention.qkv.bias",) if bias else (None,)
        gauges.append(Gauge("read", p + "norm1.weight", p + "norm1.bias", (at + 2,), qkv))
        gauges.append(Gauge("read", p + "norm2.weight", p + "norm2.bias", (at + 7,), (p + "up.bias",)))
        if net.blocks[layer].scale is not None:  # type: ignore[union-attr]
            sites.append(Site(p + "scale", 0))
            gauges.append(Gauge("write", p + "scale", None, (at + 8, at + 9)))
        names = ("weight", "bias") if bias else ("weight",)
        three = [Site(p + f"attention.qkv.{n}", 0, part * width, inner=head) for n in names for part in range(3)]
        inner.append(
            AxisGroup(p + "heads", heads, (*three, Site(p + "attention.out.weight", 1, inner=head, dual=True)))
        )
        for h in range(heads):
            q = tuple(Site(p + f"attention.qkv.{n}", 0, h * head) for n in names)
            k = tuple(Site(p + f"attention.qkv.{n}", 0, width + h * head, dual=True) for n in names)
            v = tuple(Site(p + f"attention.qkv.{n}", 0, 2 * width + h * head) for n in names)
            parent = ParentBlock(p + "heads", h)
            inner.append(AxisGroup(p + f"qk{h}", head, q + k, parent, SymmetryClass.LINEAR))
            out = Site(p + "attention.out.weight", 1, h * head, dual=True)
            inner.append(AxisGroup(p + f"vo{h}", head, (*v, out), parent, SymmetryClass.LINEAR))
        mlp = (Site(p + "up.weight", 0), Site(p + "up.bias", 0), Site(p + "down.weight", 1, dual=True))
        inner.append(AxisGroup(p + "mlp", hidden, mlp))
    at = len(sites)
    sites += [Site("norm.weight", 0), Site("norm.bias", 0), Site("head.weight", 1, dual=True)]
    gauges.append(Gauge("read", "norm.weight", "norm.bias", (at + 2,), ("head.bias",)))
    stream = AxisGroup(
        "stream", width, tuple(sites), symmetry=SymmetryClass.ORTHOGONAL_ONES, gauges=tuple(gauges), centred=True
    )
    return PermutationSpec((stream, *inner))


class RMSNorm(nn.Module):
    """Multiplies by `offset + weight`."""

    def __init__(self, width: int, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.offset + self.weight if self.offset else self.weight
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * scale


def rotary(x: Tensor) -> Tensor:
    """Rotary embedding of (batch, heads, places, units), pairs (i, i + n/2)."""
    half = x.shape[-1] // 2
    rate = 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rate
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, key_heads: int, hidden: int, offset: float = 0.0) -> None:
        super().__init__()
        self.heads, self.key_heads, head = heads, key_heads, width // heads
        self.norm1, self.norm2 = RMSNorm(width, offset), RMSNorm(width, offset)
        self.q = nn.Linear(width, heads * head, bias=False)
        self.k = nn.Linear(width, key_heads * head, bias=False)
        self.v = nn.Linear(width, key_heads * head, bias=False)
        self.o = nn.Linear(heads * head, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm1(x)
        q = rotary(self.q(y).view(b, t, self.heads, -1).transpose(1, 2))
        k = rotary(self.k(y).view(b, t, self.key_heads, -1).transpose(1, 2))
        v = self.v(y).view(b, t, self.key_heads, -1).transpose(1, 2)
        k, v = (part.repeat_interleave(self.heads // self.key_heads, 1) for part in (k, v))
        mask = torch.full((t, t), float("-inf"), dtype=x.dtype).triu(1)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A decoder with grouped queries, rotary embedding, RMS norms, a gated MLP and an untied head."""

    def __init__(
        self,
        width: int = 16,
        heads: int = 4,
        key_heads: int = 2,
        hidden: int = 24,
        depth: int = 2,
        words: int = 11,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(LlamaBlock(width, heads, key_heads, hidden, offset) for _ in range(depth))
        self.norm = RMSNorm(width, offset)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def llama_spec(net: Llama) -> PermutationSpec:
    """The classes of `Llama`."""
    first = net.layers[0]
    assert isinstance(first, LlamaBlock)
    width, key_heads, each = net.embed.embedding_dim, first.key_heads, first.heads // first.key_heads
    head, hidden = width // first.heads, first.up.out_features
    sites, gauges, inner = [Site("embed.weight", 1)], [], []
    offset = net.norm.offset
    for layer in range(len(net.layers)):
        p = f"layers.{layer}."
        at = len(sites)
        sites += [Site(p + "norm1.weight", 0), *(Site(p + f"{n}.weight", 1, dual=True) for n in "qkv")]
        sites += [Site(p + "o.weight", 0), Site(p + "norm2.weight", 0)]
        sites += [
            Site(p + "gate.weight", 1, dual=True),
            Site(p + "up.weight", 1, dual=True),
            Site(p + "down.weight", 0),
        ]
        gauges.append(Gauge("read", p + "norm1.weight", None, (at + 1, at + 2, at + 3), (), offset))
        gauges.append(Gauge("read", p + "norm2.weight", None, (at + 6, at + 7), (), offset))
        keys = AxisGroup(
            p + "keys",
            key_heads,
            (
                Site(p + "q.weight", 0, inner=each * head),
                Site(p + "k.weight", 0, inner=head),
                Site(p + "v.weight", 0, inner=head),
                Site(p + "o.weight", 1, inner=each * head, dual=True),
            ),
        )
        inner.append(keys)
        for g in range(key_heads):
            parent = ParentBlock(keys.name, g)
            wide = g * each * head
            queries = (Site(p + "q.weight", 0, wide, inner=head), Site(p + "o.weight", 1, wide, inner=head, dual=True))
            inner.append(AxisGroup(p + f"queries{g}", each, queries, parent))
            planes = (Site(p + "q.weight", 0, wide, outer=each), Site(p + "k.weight", 0, g * head, dual=True))
            inner.append(AxisGroup(p + f"planes{g}", head, planes, parent, SymmetryClass.PLANES, pairing="halves"))
            values = (Site(p + "v.weight", 0, g * head), Site(p + "o.weight", 1, wide, outer=each, dual=True))
            inner.append(AxisGroup(p + f"vo{g}", head, values, parent, SymmetryClass.LINEAR))
        mlp = (Site(p + "gate.weight", 0), Site(p + "up.weight", 0), Site(p + "down.weight", 1, dual=True))
        free = (ScaleFreedom("any", ((1, 1), (2, -1))),)
        inner.append(AxisGroup(p + "mlp", hidden, mlp, symmetry=SymmetryClass.MONOMIAL, scales=free))
    at = len(sites)
    sites += [Site("norm.weight", 0), Site("head.weight", 1, dual=True)]
    gauges.append(Gauge("read", "norm.weight", None, (at + 1,), (), offset))
    stream = AxisGroup("stream", width, tuple(sites), symmetry=SymmetryClass.ORTHOGONAL, gauges=tuple(gauges))
    return PermutationSpec((stream, *inner))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for one, two in pairwise(widths):
        layers += [nn.Linear(one, two), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_spec(net: nn.Sequential) -> PermutationSpec:
    """Hidden units may be permuted and scaled by positive numbers."""
    groups = []
    for place in range(0, len(net) - 2, 2):
        sites = (Site(f"{place}.weight", 0), Site(f"{place}.bias", 0), Site(f"{place + 2}.weight", 1, dual=True))
        free = (ScaleFreedom("positive", ((0, 1), (1, 1), (2, -1))),)
        size = net[place].out_features
        assert isinstance(size, int)
        groups.append(AxisGroup(f"{place}", size, sites, symmetry=SymmetryClass.MONOMIAL, scales=free))
    return PermutationSpec(tuple(groups))


def nets() -> dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], PermutationSpec], Callable[[], Tensor]]]:
    """By name: how a network is made, its spec, and an input of it in float64."""
    tokens = lambda: torch.randn(4, 6, 7, dtype=torch.float64)  # noqa: E731
    words = lambda: torch.randint(0, 11, (3, 8))  # noqa: E731
    return {
        "pre": (Pre, pre_spec, tokens),
        "layer scale": (lambda: Pre(layer_scale=True), pre_spec, tokens),
        "no bias": (lambda: Pre(bias=False), pre_spec, tokens),
        "llama": (Llama, llama_spec, words),
        "gemma": (lambda: Llama(offset=1.0), llama_spec, words),
        "mlp": (lambda: mlp(7, 16, 12, 5), mlp_spec, lambda: torch.randn(9, 7, dtype=torch.float64)),
    }  # type: ignore[dict-item]


def filled(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network in float64 whose parameters are random, also those that start at ones or zeros."""
    torch.manual_seed(seed)
    net = make().double()
    with torch.no_grad():
        for tensor in net.parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return net
