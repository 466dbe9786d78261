"""Mutation test of the check that every spec passes before anything is written: wrong specs must be refused.

    python -m tests.benchmarks.mutated_specs [--models PATTERN] [--count 7000] [--seed 0] [--json FILE]

The right spec of every model of `tests/zoo` and of the torchvision networks below is derived and changed in one place:
a site left out, two sites swapped, an offset moved, two groups joined, and so on (`KINDS`). Each mutant is given to the
check that `rebasin align` makes, `verify_by_execution`, and to a separate evaluation that shares no code with it. A
mutant *changes the function* if, for any of several random permutations, any position of any output on 64 random inputs
moves by more than 1e-9 of its scale: the largest magnitude at that position over the 64 inputs, at least 1e-6 of the
largest magnitude of the whole output. Rounding in float64 moves it by about 1e-15. A mutant that changes the function
must be refused; one that does not (a joined pair of groups of one size is only a smaller symmetry) may be either.

The torchvision networks are one small member of every family: the class of the family with few blocks and narrow
layers where its constructor allows it, on the smallest input that leaves every stage at least one position. AlexNet,
VGG, Inception and the detectors are missing: their constructors fix tens of millions of parameters, and a check takes
many seconds. Their operations all occur in the others.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import Shape, state_shapes
from rebasin_cli.model.torchvision_import import import_torchvision
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.symmetry.small_zoo import load, zoo_names

LIMIT = 1e-9
INPUTS = 64
SHARED_DRAWS = 3
"""Draws that move all groups at once; each changed group is then also moved alone, twice."""

RIGHT_SEEDS = 3
GIVE_UP = 40
"""Consecutive failures to find a new mutant of one kind of one model."""

Shapes = Mapping[str, Shape]
Mutator = Callable[[PermutationSpec, Shapes, random.Random], PermutationSpec]
"""Changes a spec in one place; raises LookupError, or returns what it was given, where it finds no place."""


# ------------------------------------------------------------------------------------------------------- the models


@dataclass(frozen=True)
class Model:
    """One network; `share` is its part of the mutants relative to the others."""

    name: str
    build: Callable[[], nn.Module]
    example: ExampleInput
    share: int


def models(pattern: str = "*") -> list[Model]:
    """All networks whose name matches, the torchvision ones first."""
    found = [Model(f"torchvision:{name}", build, image(*shape), 1) for name, build, shape in torchvision_networks()]
    for name in zoo_names():
        entry = load(name)
        found.append(Model(name, entry.module.build, entry.example(), 2))
    return [model for model in found if fnmatchcase(model.name, pattern)]


def image(*shape: int) -> ExampleInput:
    return ExampleInput((torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0)),))


def torchvision_networks() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Name, constructor and input size (height and width, for video also frames) of every network."""
    zoo = import_torchvision("models")
    resnet, densenet, regnet = (import_torchvision(f"models.{name}") for name in ("resnet", "densenet", "regnet"))
    efficient, convnext = import_torchvision("models.efficientnet"), import_torchvision("models.convnext")
    swin, vit = import_torchvision("models.swin_transformer"), import_torchvision("models.vision_transformer")
    maxvit, shuffle = import_torchvision("models.maxvit"), import_torchvision("models.shufflenetv2")
    video, segmentation = import_torchvision("models.video"), import_torchvision("models.segmentation")
    convs, fused = efficient.MBConvConfig, efficient.FusedMBConvConfig
    blocks = partial(regnet.BlockParams.from_init_params, depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8)
    stages = [convnext.CNBlockConfig(12, 20, 1), convnext.CNBlockConfig(20, None, 1)]
    first = [convs(1, 3, 1, 8, 8, 1), convs(4, 3, 2, 8, 16, 2), convs(4, 5, 2, 16, 24, 1)]
    second = [fused(1, 3, 1, 8, 8, 1), fused(4, 3, 2, 8, 16, 2), convs(4, 3, 2, 16, 24, 1)]
    windows: dict[str, Any] = {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 3], "num_classes": 10}
    swin_v2: dict[str, Any] = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    mvit = import_torchvision("models.video.mvit")
    pools = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "stride_kv": [1, 2, 2]}
    scales = [
        mvit.MSBlockConfig(num_heads=1, input_channels=12, output_channels=12, stride_q=[1, 1, 1], **pools),
        mvit.MSBlockConfig(num_heads=2, input_channels=12, output_channels=24, stride_q=[1, 2, 2], **pools),
    ]
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    return [
        ("resnet", lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 10), (32, 32)),
        ("resnext", lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], 10, groups=4, width_per_group=8), (32, 32)),
        ("densenet", lambda: densenet.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10), (32, 32)),
        ("googlenet", lambda: zoo.googlenet(num_classes=10, aux_logits=False, init_weights=False), (32, 32)),
        ("squeezenet", lambda: zoo.squeezenet1_1(num_classes=10), (32, 32)),
        ("mobilenet_v2", lambda: zoo.mobilenet_v2(width_mult=0.25, num_classes=10), (32, 32)),
        ("mobilenet_v3", lambda: zoo.mobilenet_v3_small(width_mult=0.25, num_classes=10), (32, 32)),
        ("mnasnet", lambda: zoo.mnasnet0_5(num_classes=10), (32, 32)),
        ("shufflenet_v2", lambda: shuffle.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 40], 10), (32, 32)),
        ("efficientnet", lambda: efficient.EfficientNet(first, 0.0, num_classes=10), (32, 32)),
        ("efficientnet_v2", lambda: efficient.EfficientNet(second, 0.0, num_classes=10, last_channel=24), (32, 32)),
        ("regnet_x", lambda: regnet.RegNet(blocks(), 10), (32, 32)),
        ("regnet_y", lambda: regnet.RegNet(blocks(se_ratio=0.25), 10), (32, 32)),
        ("convnext", lambda: convnext.ConvNeXt(stages, num_classes=10), (32, 32)),
        ("vit", lambda: vit.VisionTransformer(16, 8, 2, 3, 12, 20, num_classes=10), (16, 16)),
        ("swin", lambda: swin.SwinTransformer([4, 4], window_size=[4, 4], **windows), (32, 32)),
        ("swin_v2", lambda: swin.SwinTransformer([4, 4], window_size=[4, 4], **windows, **swin_v2), (32, 32)),
        ("maxvit", lambda: maxvit.MaxVit((32, 32), 8, 2, [12, 16], [1, 1], 4, 0.0, num_classes=10), (32, 32)),
        ("swin3d", lambda: video.SwinTransformer3d([2, 4, 4], window_size=[2, 2, 2], **windows), (4, 16, 16)),
        ("mvit", lambda: mvit.MViT((16, 16), 4, scales, num_classes=10, **options), (4, 16, 16)),
        (
            "lraspp",
            lambda: segmentation.lraspp_mobilenet_v3_large(num_classes=4, weights_backbone=None),
            (32, 32),
        ),
    ]


# ---------------------------------------------------------------------------------------------------- the mutations


def _movable(spec: PermutationSpec, sites: int = 1) -> list[int]:
    """Places of the groups that can move and have at least so many sites."""
    return [place for place, group in enumerate(spec.groups) if group.size > 1 and len(group.sites) >= sites]


def _edited(spec: PermutationSpec, edits: Mapping[int, Sequence[AxisGroup]]) -> PermutationSpec:
    """The spec with some groups, given by their places, replaced by others; groups without sites are dropped."""
    groups = [new for place, group in enumerate(spec.groups) for new in edits.get(place, (group,)) if new.sites]
    return replace(spec, groups=tuple(groups))


def _with_site(group: AxisGroup, place: int, site: Site | None) -> AxisGroup:
    before, after = group.sites[:place], group.sites[place + 1 :]
    return replace(group, sites=(*before, *(() if site is None else (site,)), *after))


def _site_changed(
    spec: PermutationSpec, rng: random.Random, change: Callable[[AxisGroup, Site], Site | None]
) -> PermutationSpec:
    """The spec with any one of its sites changed, or left out."""
    place, number = rng.choice([(g, s) for g in _movable(spec) for s in range(len(spec.groups[g].sites))])
    group = spec.groups[place]
    return _edited(spec, {place: (_with_site(group, number, change(group, group.sites[number])),)})


def _sites_traded(spec: PermutationSpec, first: int, second: int, rng: random.Random) -> PermutationSpec:
    one, two = spec.groups[first], spec.groups[second]
    i, j = rng.randrange(len(one.sites)), rng.randrange(len(two.sites))
    return _edited(spec, {first: (_with_site(one, i, two.sites[j]),), second: (_with_site(two, j, one.sites[i]),)})


def site_left_out(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    place = rng.choice(_movable(spec, sites=2))
    group = spec.groups[place]
    return _edited(spec, {place: (_with_site(group, rng.randrange(len(group.sites)), None),)})


def sites_swapped(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """Two sites of two groups, of one size where possible, in each other's place."""
    places = _movable(spec)
    if len(places) < 2:
        raise LookupError
    first = rng.choice(places)
    others = [place for place in places if place != first]
    alike = [place for place in others if spec.groups[place].size == spec.groups[first].size]
    return _sites_traded(spec, first, rng.choice(alike if alike and rng.random() < 0.7 else others), rng)


def offset_moved(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """One segment, by one index, by one unit, by its own length, or anywhere."""

    def moved(group: AxisGroup, site: Site) -> Site:
        extent, length = site.extent(shapes[site.key]), site.outer * group.size * site.inner
        by = rng.choice([1, -1, site.inner, -site.inner, length, -length, rng.randrange(-extent, extent)])
        if site.positions is None:
            return replace(site, offset=site.offset + by)
        return replace(site, positions=tuple(tuple(index + by for index in row) for row in site.positions))

    return _site_changed(spec, rng, moved)


def indices_exchanged(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """One index of one unit of one site trades places with an index of another unit, or with one of no unit."""

    def exchanged(group: AxisGroup, site: Site) -> Site:
        rows = site.rows(group.size)
        unit, column = rng.randrange(group.size), rng.randrange(len(rows[0]))
        old, new = rows[unit][column], rng.randrange(site.extent(shapes[site.key]))
        if new in rows[unit]:
            return site
        swapped = tuple(tuple(new if i == old else old if i == new else i for i in row) for row in rows)
        return replace(site, offset=0, outer=1, inner=1, positions=swapped)

    return _site_changed(spec, rng, exchanged)


def layout_changed(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """The same segment, read as another number of repeats of another block length."""
    places = [
        (place, number)
        for place in _movable(spec)
        for number, site in enumerate(spec.groups[place].sites)
        if site.positions is None and site.outer * site.inner > 1
    ]
    place, number = rng.choice(places)
    group = spec.groups[place]
    site = group.sites[number]
    total = site.outer * site.inner
    outer = rng.choice([o for o in range(1, total + 1) if total % o == 0 and o != site.outer])
    return _edited(spec, {place: (_with_site(group, number, replace(site, outer=outer, inner=total // outer)),)})


def axis_exchanged(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """One site on another axis of its tensor."""

    def turned(group: AxisGroup, site: Site) -> Site:
        return replace(site, axis=rng.choice([a for a in range(len(shapes[site.key])) if a != site.axis]))

    return _site_changed(spec, rng, turned)


def pinned_axis_claimed(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """An axis that must keep its order joins a group of its size, or moves as a group of its own."""
    pins = [pin for pin in spec.pinned if pin.axis < len(shapes[pin.key]) and shapes[pin.key][pin.axis] > 1]
    pin = rng.choice(pins)
    size, site = shapes[pin.key][pin.axis], Site(pin.key, pin.axis)
    alike = [place for place in _movable(spec) if spec.groups[place].size == size]
    if not alike or rng.random() >= 0.5:
        return replace(spec, groups=(*spec.groups, AxisGroup("claimed", size, (site,))))
    place = rng.choice(alike)
    group = spec.groups[place]
    return spec if site in group.sites else _edited(spec, {place: (replace(group, sites=(*group.sites, site)),)})


def groups_joined(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """Two groups as one: neighbours in a tensor as one longer axis, or all sites of both under one permutation."""
    places = _movable(spec)
    if len(places) < 2:
        raise LookupError
    first, second = rng.sample(places, 2)
    one, two = spec.groups[first], spec.groups[second]
    if any(group.parent and group.parent.group in (one.name, two.name) for group in spec.groups):
        raise LookupError
    joined = replace(one, size=min(one.size, two.size), sites=one.sites + two.sites)
    if rng.random() < 0.6:
        neighbours = tuple(
            a
            for a in one.sites
            for b in two.sites
            if replace(a, offset=a.offset + one.size * a.inner) == b and a.outer == 1 and a.positions is None
        )
        joined = replace(one, size=one.size + two.size, sites=neighbours)
    return _edited(spec, {first: (joined,), second: ()}) if joined.sites else spec


def group_split(spec: PermutationSpec, shapes: Shapes, rng: random.Random, nested: bool = False) -> PermutationSpec:
    """The sites of one group under two permutations."""
    place = rng.choice([p for p in _movable(spec, sites=2) if (spec.groups[p].parent is not None) == nested])
    group = spec.groups[place]
    part = set(rng.sample(range(len(group.sites)), rng.randrange(1, len(group.sites))))
    kept = tuple(site for number, site in enumerate(group.sites) if number not in part)
    rest = tuple(site for number, site in enumerate(group.sites) if number in part)
    return _edited(spec, {place: (replace(group, sites=kept), AxisGroup("split", group.size, rest, group.parent))})


def _any_nested(spec: PermutationSpec, rng: random.Random) -> tuple[int, AxisGroup, AxisGroup]:
    """The place of a nested group, the group, and its parent."""
    place = rng.choice([place for place in _movable(spec) if spec.groups[place].parent is not None])
    group = spec.groups[place]
    assert group.parent is not None
    return place, group, spec.by_name[group.parent.group]


def inner_shared(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """Two siblings share a permutation with a site missing, trade a site, or are one with the blocks around them."""
    first, one, parent = _any_nested(spec, rng)
    family = [p for p, group in enumerate(spec.groups) if group.parent and group.parent.group == parent.name]
    if rng.random() < 0.34:
        return _blocks_dissolved(spec, parent, family)
    second = rng.choice([place for place in family if place != first and spec.groups[place].size == one.size])
    if rng.random() >= 0.5:
        return _sites_traded(spec, first, second, rng)
    sites = list(one.sites + spec.groups[second].sites)
    sites.pop(rng.randrange(len(sites)))
    return _edited(spec, {first: (replace(one, sites=tuple(sites)),), second: ()})


def _blocks_dissolved(spec: PermutationSpec, parent: AxisGroup, family: Sequence[int]) -> PermutationSpec:
    """A parent and its nested groups as one group of all inner units, as if any unit could leave its block."""
    size = spec.groups[family[0]].size
    inside = [site for site in parent.sites if site.positions is None and site.inner % size == 0]
    sites = tuple(replace(site, inner=site.inner // size) for site in inside)
    joined = replace(parent, size=parent.size * size, sites=sites)
    return _edited(spec, {spec.groups.index(parent): (joined,), **dict.fromkeys(family, ())}) if sites else spec


def nested_freed(spec: PermutationSpec, shapes: Shapes, rng: random.Random) -> PermutationSpec:
    """A nested group without its parent, in another block, or its parent's blocks without one of their sites."""
    place, group, parent = _any_nested(spec, rng)
    how = rng.random()
    freed = replace(group, parent=None)
    if how < 0.3:
        return _edited(spec, {place: (freed,)})
    if how < 0.5:
        return _edited(spec, {place: (replace(group, parent=ParentBlock(parent.name, rng.randrange(parent.size))),)})
    keys = {site.key for site in group.sites}
    left = rng.choice([number for number, site in enumerate(parent.sites) if site.key in keys])
    return _edited(spec, {spec.groups.index(parent): (_with_site(parent, left, None),), place: (freed,)})


KINDS: Mapping[str, Mutator] = {
    "site left out": site_left_out,
    "sites swapped": sites_swapped,
    "offset moved": offset_moved,
    "indices exchanged": indices_exchanged,
    "layout changed": layout_changed,
    "axis exchanged": axis_exchanged,
    "pinned axis claimed": pinned_axis_claimed,
    "groups joined": groups_joined,
    "group split": group_split,
    "inner permutation split": partial(group_split, nested=True),
    "inner permutation shared": inner_shared,
    "nested group freed": nested_freed,
}


def mutants(spec: PermutationSpec, shapes: Shapes, count: int, seed: int) -> Iterator[tuple[str, PermutationSpec]]:
    """Up to `count` distinct mutants that fit the tensors, the kinds in turn."""
    rng = random.Random(seed)
    seen = {_content(spec)}
    failures = dict.fromkeys(KINDS, 0)
    while failures:
        for kind in list(failures):
            if count == 0:
                return
            try:
                made = KINDS[kind](spec, shapes, rng)
            except LookupError:
                made = spec
            if _content(made) not in seen and _fits(made, shapes):
                seen.add(_content(made))
                failures[kind] = 0
                count -= 1
                yield kind, made
                continue
            failures[kind] += 1
            if failures[kind] == GIVE_UP:
                del failures[kind]


def _content(spec: PermutationSpec) -> frozenset[tuple[int, frozenset[Site], ParentBlock | None]]:
    return frozenset((group.size, frozenset(group.sites), group.parent) for group in spec.groups)


def _fits(spec: PermutationSpec, shapes: Shapes) -> bool:
    try:
        spec.check(shapes)
    except ModelError:
        return False
    return True


# ------------------------------------------------------------------------------------------ the separate evaluation


class SeparateEvaluation:
    """Whether a spec's permutations change the function, found without the code that `rebasin align` uses."""

    def __init__(self, build: Callable[[], nn.Module], example: ExampleInput, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        with _double():
            self.module = build().double().eval()
            first: dict[int, str] = {}
            self.same: dict[str, list[str]] = {}  # the keys of one tensor, by each of them
            state = self.module.state_dict(keep_vars=True)
            for key, tensor in state.items():
                self.same[key] = self.same.setdefault(first.setdefault(id(tensor), key), [])
                self.same[key].append(key)
            self.weights = {key: self._weight(key, tensor.detach()) for key, tensor in state.items()}
            for key, others in self.same.items():
                self.weights[key] = self.weights[others[0]]
            self.slots = self.module.state_dict()
            self._write(self.weights)
            self.calls = self._inputs(example)
            self.base = [self._outputs(call) for call in self.calls]
        joint = [torch.cat([self._rows(y).abs() for y in place]) for place in self._by_position()]
        self.scales = [
            size.amax(0).clamp_min(max(1e-6 * float(size.max()), 1e-300)) if size.numel() else size for size in joint
        ]

    def largest_change(self, spec: PermutationSpec, changed: Iterable[str], seed: int) -> float:
        """The largest change of any output relative to its scale, of the first draw that exceeds the limit or of all.

        Args:
            changed: names of the groups that are also moved alone.
        """
        rng = random.Random(seed)
        alone = [[group] for group in spec.groups if group.name in set(changed) for _ in range(2)]
        worst = 0.0
        for groups in [list(spec.groups)] * SHARED_DRAWS + alone:
            moved = self._moved(spec, {group.name: _shuffled(group.size, rng) for group in groups})
            if not self._agrees(moved):
                return float("inf")
            with _double():
                try:
                    self._write(moved)
                    for call, base in zip(self.calls, self.base, strict=True):
                        worst = max(worst, self._change(base, self._outputs(call)))
                        if worst > LIMIT:
                            break
                finally:  # a mutant may not fit the shapes, or make the forward pass fail
                    self._write({key: self.weights[key] for key in moved})
            if worst > LIMIT:
                break
        return worst

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            self.slots[key].copy_(tensor)

    def _moved(self, spec: PermutationSpec, permutations: Mapping[str, list[int]]) -> dict[str, Tensor]:
        """The tensors that the permutations move; nested groups first, as the spec's documentation says."""
        parents = {group.name: group.parent.group if group.parent else None for group in spec.groups}

        def depth(name: str) -> int:
            above = parents[name]
            return 0 if above is None else 1 + depth(above)

        moved: dict[str, Tensor] = {}
        for group in sorted(spec.groups, key=lambda group: depth(group.name), reverse=True):
            for site in group.sites if group.name in permutations else ():
                tensor = moved.get(site.key, self.weights[site.key])
                moved[site.key] = _gathered(tensor, site, permutations[group.name])
        return moved

    def _agrees(self, moved: Mapping[str, Tensor]) -> bool:
        """Whether all names of every tensor hold the same numbers: a file with both would say two things of it."""
        return all(
            moved[key].shape == self.weights[other].shape
            and torch.equal(moved[key], moved.get(other, self.weights[other]))
            for key in moved
            for other in self.same[key]
        )

    def _weight(self, key: str, tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.clone()  # the slot itself is written to
        normal = torch.randn(tensor.shape, generator=self.generator, dtype=tensor.dtype)
        if tensor.dim() > 1:
            return normal * float((1.5 / prod(tensor.shape[1:])) ** 0.5)
        if "bias" in key or "mean" in key:
            return 0.2 * normal
        return torch.rand(tensor.shape, generator=self.generator, dtype=torch.float64).add(0.5).to(tensor.dtype)

    def _inputs(self, example: ExampleInput) -> list[ExampleInput]:
        """Random inputs like the example; in one batch of 4 and one of the rest where the rows do not interact."""
        rows = max((tensor for _, tensor in example.tensors()), key=lambda tensor: tensor.dim()).shape[0]
        drawn = [_drawn(example, self.generator) for _ in range(INPUTS)]
        few = drawn[: max(2, 4 // rows)]
        try:
            apart = [torch.cat(parts) for parts in zip(*map(self._outputs, few), strict=True)]
            joint = self._outputs(_stacked(few, rows))
            batched = len(apart) == len(joint) and all(
                a.shape == j.shape and torch.allclose(a.double(), j.double(), rtol=1e-9, atol=1e-9)
                for a, j in zip(apart, joint, strict=True)
            )
        except (RuntimeError, IndexError):
            batched = False
        if not batched:
            return drawn
        last = max(len(few) + 1, -(-INPUTS // rows))
        return [_stacked(few, rows), _stacked(drawn[len(few) : last], rows)]

    @torch.no_grad()
    def _outputs(self, call: ExampleInput) -> list[Tensor]:
        torch.manual_seed(0)
        found = self.module(*call.args, **call.kwargs)
        return [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in _tensors(found)]

    @staticmethod
    def _rows(y: Tensor) -> Tensor:
        """One row for each place on the first axis, in float64."""
        return y.double().reshape(len(y), y.numel() // max(len(y), 1))

    def _by_position(self) -> Iterator[list[Tensor]]:
        """The reference of every output: rows of a batch, or one row for every call."""
        batched = len(self.calls) == 2
        for outputs in zip(*self.base, strict=True):
            yield [y if batched else y[None] for y in outputs]

    def _change(self, base: Sequence[Tensor], found: Sequence[Tensor]) -> float:
        batched, worst = len(self.calls) == 2, 0.0
        for y, z, scale in zip(base, found, self.scales, strict=True):
            if y.shape != z.shape:
                return float("inf")
            if not y.numel() or torch.equal(y, z):
                continue
            if not y.is_floating_point() or not torch.equal(y.isfinite(), z.isfinite()):
                return float("inf")
            rows, others = (self._rows(t if batched else t[None]) for t in (y, z))
            error = ((rows - others).abs() / scale).masked_fill(~rows.isfinite(), 0.0)
            worst = max(worst, float(error.max()))
        return worst


@contextmanager
def _double() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def _gathered(tensor: Tensor, site: Site, order: Sequence[int]) -> Tensor:
    """One site's units in a new order, row by row."""
    shape = list(tensor.shape)
    merged = tensor.reshape([*shape[: site.axis], -1, *shape[site.axis + site.span :]])
    take = list(range(merged.shape[site.axis]))
    for new, old in enumerate(order):
        if site.positions is not None:
            for here, there in zip(site.positions[new], site.positions[old], strict=True):
                take[here] = there
            continue
        for repeat in range(site.outer):
            begin = site.offset + repeat * len(order) * site.inner
            for inside in range(site.inner):
                take[begin + new * site.inner + inside] = begin + old * site.inner + inside
    return merged.index_select(site.axis, torch.tensor(take)).reshape(shape)


def _shuffled(size: int, rng: random.Random) -> list[int]:
    order = list(range(size))
    while size > 1 and order == list(range(size)):
        rng.shuffle(order)
    return order


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return type(value)(_mapped(item, change) for item in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _drawn(example: ExampleInput, generator: torch.Generator) -> ExampleInput:
    def draw(tensor: Tensor) -> Tensor:
        low, high = float(tensor.min()), float(tensor.max())
        if not tensor.is_floating_point():
            return torch.randint(int(low), int(high) + 1, tensor.shape, generator=generator).to(tensor.dtype)
        if low < 0:
            return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)

    return ExampleInput(_mapped(example.args, draw), _mapped(example.kwargs, draw))


def _stacked(inputs: Sequence[ExampleInput], rows: int) -> ExampleInput:
    """Inputs as one, joined on the first axis of every tensor that has `rows` there."""
    columns = [iter(column) for column in zip(*([t for _, t in one.tensors()] for one in inputs), strict=True)]
    parts = iter([list(column) for column in columns])

    def join(tensor: Tensor) -> Tensor:
        return torch.cat(next(parts)) if tensor.dim() and tensor.shape[0] == rows else next(parts)[0]

    return ExampleInput(_mapped(inputs[0].args, join), _mapped(inputs[0].kwargs, join))


# ------------------------------------------------------------------------------------------------ the mutation test


@dataclass(frozen=True)
class Mutant:
    """One mutant: what the separate evaluation and the check said of it."""

    model: str
    kind: str
    change: float
    refused: bool
    said: str
    without: tuple[AxisGroup, ...] = ()
    instead: tuple[AxisGroup, ...] = ()

    @property
    def changes(self) -> bool:
        return self.change > LIMIT


@dataclass
class Result:
    """One model."""

    model: str
    right_accepted: bool
    right_change: float
    seconds: float = 0.0
    mutants: list[Mutant] = field(default_factory=list)


def run_model(model: Model, count: int, seed: int) -> Result:
    """Derive the right spec, check it, and check `count` mutants of it."""
    began = time.perf_counter()
    module = model.build().eval()
    spec = derive(trace_model(module, model.example, with_numbers=model.build)).spec
    shapes, own = state_shapes(module), {key: tensor.detach() for key, tensor in module.state_dict().items()}

    def check(candidate: PermutationSpec, with_seed: int) -> tuple[bool, str]:
        """Whether `align` refuses, and why; an exception of the forward pass is an error there too."""
        try:
            found = verify_by_execution(lambda: module, model.example, candidate, with_seed, own=own, sizes=True)
        except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, LookupError, ModelError) as error:
            return True, f"{type(error).__name__}: {error}"
        return not found.ok, f"{found.floors:.3g} noise floors, relative error {found.max_relative_error:.3g}"

    separate = SeparateEvaluation(model.build, model.example, seed)
    result = Result(
        model.name,
        right_accepted=not any(check(spec, seed + number)[0] for number in range(RIGHT_SEEDS)),
        right_change=separate.largest_change(spec, (), seed),
    )
    right = set(spec.groups)
    for number, (kind, mutant) in enumerate(mutants(spec, shapes, count, seed)):
        instead = tuple(group for group in mutant.groups if group not in right)
        change = separate.largest_change(mutant, [group.name for group in instead], seed + number)
        refused, said = check(mutant, seed + number)
        without = tuple(group for group in spec.groups if group not in mutant.groups)
        result.mutants.append(Mutant(model.name, kind, change, refused, said, without, instead))
    result.seconds = time.perf_counter() - began
    return result


def run_all(chosen: Sequence[Model], count: int, seed: int) -> Iterator[Result]:
    """Every model in turn; what a model has too few sites for is made up by those after it."""
    for place, model in enumerate(chosen):
        part = count * model.share / sum(later.share for later in chosen[place:])
        result = run_model(model, round(part), seed + 1000 * place)
        count -= len(result.mutants)
        yield result


def accepted_wrong(results: Iterable[Result]) -> list[Mutant]:
    """The mutants that change the function and were accepted: there must be none."""
    return [mutant for result in results for mutant in result.mutants if mutant.changes and not mutant.refused]


HEAD = (
    f"{'':34} {'mutants':>7} | {'changing':>8} {'refused':>7} {'accepted':>8} | "
    f"{'equal':>6} {'refused':>7} {'accepted':>8}"
)


def line(name: str, group: Iterable[Mutant]) -> str:
    seen = Counter((mutant.changes, mutant.refused) for mutant in group)
    changing, same = seen[True, True] + seen[True, False], seen[False, True] + seen[False, False]
    return (
        f"{name:34} {changing + same:7d} | {changing:8d} {seen[True, True]:7d} {seen[True, False]:8d} | "
        f"{same:6d} {seen[False, True]:7d} {seen[False, False]:8d}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="*", help="a pattern of names, such as 'attention_*' or 'torchvision:*'")
    parser.add_argument("--count", type=int, default=7000, help="mutants over all models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write every mutant to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    results: list[Result] = []
    print(HEAD + "  seconds  right spec")
    for result in run_all(models(options.models), options.count, options.seed):
        results.append(result)
        right = "accepted" if result.right_accepted else "REFUSED"
        print(
            f"{line(result.model, result.mutants)}  {result.seconds:7.1f}  {right}, moves {result.right_change:.0e}",
            flush=True,
        )
    everything = [mutant for result in results for mutant in result.mutants]
    print(f"\n{HEAD}")
    for kind in KINDS:
        print(line(kind, [mutant for mutant in everything if mutant.kind == kind]))
    print(line("all", everything))
    wrong = accepted_wrong(results)
    for mutant in wrong:
        print(f"\naccepted, though it changes the function: {mutant}")
    refused = [result.model for result in results if not result.right_accepted]
    disputed = [result.model for result in results if result.right_change > LIMIT]
    changing = sum(mutant.changes for mutant in everything)
    print(f"\nwrong specs: {changing - len(wrong)} of {changing} refused, {len(wrong)} accepted")
    print(
        f"right specs: {len(results) - len(refused)} of {len(results)} accepted, with {RIGHT_SEEDS} seeds each; "
        f"refused: {', '.join(refused) or 'none'}"
    )
    print(f"right specs that the separate evaluation finds wrong: {', '.join(disputed) or 'none'}")
    print(f"{time.perf_counter() - began:.0f} seconds")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results]) + "\n")
    if wrong or refused or disputed:
        raise SystemExit("a wrong spec was accepted, or a right one refused")


if __name__ == "__main__":
    main()
