"""Specs written by hand for a few architectures, independent of the tracer: references for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site

Tensors = dict[str, Tensor]


def mlp(widths: Sequence[int]) -> tuple[PermutationSpec, dict[str, tuple[int, ...]]]:
    """Linear layers `0`, `1`, … between these widths, with biases."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = (fan_out, fan_in), (fan_out,)
        if layer < len(widths) - 2:
            sites = (Site(f"{layer}.weight", 0), Site(f"{layer}.bias", 0), Site(f"{layer + 1}.weight", 1))
            groups.append(AxisGroup(f"layer{layer}", fan_out, sites))
    return PermutationSpec(tuple(groups)), shapes


def residual_mlp(
    stream: int, hidden: int, blocks: int, inputs: int, outputs: int
) -> tuple[PermutationSpec, dict[str, tuple[int, ...]]]:
    """`x = first(x)`, then `x = x + down(relu(up(x)))` for each block, then `last(x)`; no biases."""
    shapes = {"first": (stream, inputs), "last": (outputs, stream)}
    trunk = [Site("first", 0), Site("last", 1)]
    inner = []
    for block in range(blocks):
        up, down = f"{block}.up", f"{block}.down"
        shapes[up], shapes[down] = (hidden, stream), (stream, hidden)
        trunk += [Site(up, 1), Site(down, 0)]
        inner.append(AxisGroup(f"hidden{block}", hidden, (Site(up, 0), Site(down, 1))))
    return PermutationSpec((AxisGroup("stream", stream, tuple(trunk)), *inner)), shapes


def free_residual_mlp(stream: int, hidden: int, blocks: int) -> tuple[PermutationSpec, dict[str, tuple[int, ...]]]:
    """Residual blocks alone: nothing is pinned, so no group is given away by its neighbours at the ends."""
    shapes: dict[str, tuple[int, ...]] = {}
    trunk, inner = [], []
    for block in range(blocks):
        up, down = f"{block}.up", f"{block}.down"
        shapes[up], shapes[down] = (hidden, stream), (stream, hidden)
        trunk += [Site(up, 1), Site(down, 0)]
        inner.append(AxisGroup(f"hidden{block}", hidden, (Site(up, 0), Site(down, 1))))
    return PermutationSpec((AxisGroup("stream", stream, tuple(trunk)), *inner)), shapes


def _norm(name: str, statistics: bool) -> list[Site]:
    parts = ("weight", "bias", "running_mean", "running_var") if statistics else ("weight", "bias")
    return [Site(f"{name}.{part}", 0) for part in parts]


def _conv_in(names: Iterable[str]) -> list[Site]:
    return [Site(f"{name}.weight", 1) for name in names]


def resnet50(stem: int = 64) -> PermutationSpec:
    """torchvision's ResNet-50 at any width, 37 groups: the stem, one stream a stage, two inner groups a block."""
    groups = [AxisGroup("conv1", stem, (Site("conv1.weight", 0), *_norm("bn1", True),
                                      *_conv_in(["layer1.0.conv1", "layer1.0.downsample.0"])))]  # fmt: skip
    counts = (3, 4, 6, 3)
    for stage, count in enumerate(counts, start=1):
        width = stem * 2 ** (stage - 1)
        trunk = [Site(f"layer{stage}.0.downsample.0.weight", 0), *_norm(f"layer{stage}.0.downsample.1", True)]
        inner = []
        for block in range(count):
            name = f"layer{stage}.{block}"
            trunk += [Site(f"{name}.conv3.weight", 0), *_norm(f"{name}.bn3", True)]
            trunk += _conv_in([f"{name}.conv1"] if block else [])
            for conv in (1, 2):
                sites = [Site(f"{name}.conv{conv}.weight", 0), *_norm(f"{name}.bn{conv}", True)]
                inner.append(AxisGroup(f"{name}.conv{conv}", width, (*sites, *_conv_in([f"{name}.conv{conv + 1}"]))))
        after = [f"layer{stage + 1}.0.conv1", f"layer{stage + 1}.0.downsample.0"] if stage < 4 else []
        trunk += _conv_in(after) if after else [Site("fc.weight", 1)]
        first, rest = inner[:2], inner[2:]
        groups += [*first, AxisGroup(f"layer{stage}", 4 * width, tuple(trunk)), *rest]
    return PermutationSpec(tuple(groups))


def resnet50_tensors(stem: int, seed: int) -> Tensors:
    """Weights of that shape as torchvision initialises them: normal by fan-out, norms one and zero; 1000 classes."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (stem, 3, 7, 7)}
    fan_in = stem
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        width = stem * 2 ** (stage - 1)
        for block in range(count):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, fan_in, 1, 1)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, fan_in, 1, 1)
            fan_in = 4 * width
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for key, shape in shapes.items():
        deviation = (2 / (shape[0] * shape[2] * shape[3])) ** 0.5
        tensors[key] = torch.randn(shape, generator=generator) * deviation
        norm = key.replace("conv", "bn").replace("downsample.0", "downsample.1").removesuffix(".weight")
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            tensors[f"{norm}.{part}"] = torch.full(shape[:1], value)
    tensors["fc.weight"] = (torch.rand((1000, fan_in), generator=generator) * 2 - 1) / fan_in**0.5
    tensors["fc.bias"] = (torch.rand(1000, generator=generator) * 2 - 1) / fan_in**0.5
    return tensors


def cifar_resnet20(width: int = 16) -> PermutationSpec:
    """The ResNet-20 of the shared pairs: 3 streams and 9 inner groups; the first stream starts at the stem."""
    groups: list[AxisGroup] = []
    trunks: list[list[Site]] = [[Site("conv1.weight", 0), *_norm("norm1", True)], [], []]
    for block in range(9):
        stage, name = block // 3, f"blocks.{block}"
        entry = stage > 0 and block % 3 == 0
        before = trunks[stage - 1] if entry else trunks[stage]
        before += _conv_in([f"{name}.conv1", f"{name}.shortcut.0"] if entry else [f"{name}.conv1"])
        if entry:
            trunks[stage] += [Site(f"{name}.shortcut.0.weight", 0), *_norm(f"{name}.shortcut.1", True)]
        trunks[stage] += [Site(f"{name}.conv2.weight", 0), *_norm(f"{name}.norm2", True)]
        sites = [Site(f"{name}.conv1.weight", 0), *_norm(f"{name}.norm1", True), *_conv_in([f"{name}.conv2"])]
        groups.append(AxisGroup(f"{name}.conv1", width * 2**stage, tuple(sites)))
    trunks[2].append(Site("head.weight", 1))
    streams = [AxisGroup(f"stage{stage}", width * 2**stage, tuple(sites)) for stage, sites in enumerate(trunks)]
    ordered: list[AxisGroup] = []
    for stage in range(3):
        ordered += [groups[3 * stage], streams[stage]] if stage else [streams[stage], groups[0]]
        ordered += groups[3 * stage + 1 : 3 * stage + 3]
    return PermutationSpec(tuple(ordered))


def attention(prefix: str, dim: int, heads: int) -> tuple[list[AxisGroup], list[Site]]:
    """`nn.MultiheadAttention`: heads, in each the units of q and k, and of v; and the sites of its stream."""
    size = dim // heads
    weight, bias, out = f"{prefix}.in_proj_weight", f"{prefix}.in_proj_bias", f"{prefix}.out_proj.weight"
    blocks = [Site(weight, 0, outer=3, inner=size), Site(bias, 0, outer=3, inner=size), Site(out, 1, inner=size)]
    groups = [AxisGroup(f"{prefix}.heads", heads, tuple(blocks))]
    for head in range(heads):
        parent, q, v = ParentBlock(f"{prefix}.heads", head), head * size, 2 * dim + head * size
        qk = [Site(key, 0, offset=q + part * dim) for key in (weight, bias) for part in (0, 1)]
        values = [Site(weight, 0, offset=v), Site(bias, 0, offset=v), Site(out, 1, offset=q)]
        groups.append(AxisGroup(f"{prefix}.head{head}.qk", size, tuple(qk), parent))
        groups.append(AxisGroup(f"{prefix}.head{head}.v", size, tuple(values), parent))
    return groups, [Site(weight, 1), Site(out, 0), Site(f"{prefix}.out_proj.bias", 0)]


def cifar_vit(dim: int = 96, depth: int = 4, heads: int = 4) -> PermutationSpec:
    """The vision transformer of the shared pairs: one stream, heads as blocks, units inside, MLP units."""
    stream = [Site("patch.weight", 0), Site("patch.bias", 0), Site("position", 2)]
    inner: list[AxisGroup] = []
    for layer in range(depth):
        name = f"encoder.layers.{layer}"
        groups, sites = attention(f"{name}.self_attn", dim, heads)
        stream += [*sites, *_norm(f"{name}.norm1", False), *_norm(f"{name}.norm2", False)]
        stream += [
            Site(f"{name}.linear1.weight", 1),
            Site(f"{name}.linear2.weight", 0),
            Site(f"{name}.linear2.bias", 0),
        ]
        units = (Site(f"{name}.linear1.weight", 0), Site(f"{name}.linear1.bias", 0), Site(f"{name}.linear2.weight", 1))
        inner += [*groups, AxisGroup(f"{name}.linear1", 4 * dim, units)]
    stream += [*_norm("norm", False), Site("head.weight", 1)]
    return PermutationSpec((AxisGroup("stream", dim, tuple(stream)), *inner))


def grouped_queries(stream: int, heads: int, queries: int, size: int) -> PermutationSpec:
    """Attention whose heads of keys and values serve several query heads each; units of the values permute too."""
    weights = ("q", "k", "v", "o")
    inner = {"q": queries * size, "k": size, "v": size, "o": queries * size}
    groups = [
        AxisGroup("stream", stream, tuple(Site(key, 0 if key == "o" else 1) for key in weights)),
        AxisGroup("heads", heads, tuple(Site(key, 1 if key == "o" else 0, inner=inner[key]) for key in weights)),
    ]
    for head in range(heads):
        parent, first = ParentBlock("heads", head), head * queries * size
        shared = [Site("q", 0, offset=first, inner=size), Site("o", 1, offset=first, inner=size)]
        values = [Site("v", 0, offset=head * size), Site("o", 1, offset=first, outer=queries)]
        groups.append(AxisGroup(f"heads.{head}.queries", queries, tuple(shared), parent))
        groups.append(AxisGroup(f"heads.{head}.values", size, tuple(values), parent))
    return PermutationSpec(tuple(groups))


def shapes_of(spec: PermutationSpec) -> dict[str, tuple[int, ...]]:
    """The smallest tensors that the sites of a spec fit on; axes that nothing moves have three positions."""
    extents: dict[str, dict[int, int]] = {site.key: {} for group in spec.groups for site in group.sites}
    for group in spec.groups:
        for site in group.sites:
            reach = site.offset + site.outer * group.size * site.inner
            extents[site.key][site.axis] = max(reach, extents[site.key].get(site.axis, 0))
    return {key: tuple(found.get(axis, 3) for axis in range(max(found) + 1)) for key, found in extents.items()}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    """Standard normal tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
