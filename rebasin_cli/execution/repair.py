"""REPAIR: give every unit of an interpolated network a mean and deviation between those of the two checkpoints.

Jordan et al. 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", section 3: for unit X at lam

    X' = (X - E[X]) / std(X) * ((1 - lam) std(A) + lam std(B)) + (1 - lam) E[A] + lam E[B];

for a network made of several, sums over all of them, each with its share.

Layers are corrected in the order in which the data reaches them, within one pass: each is measured on inputs that are
already corrected. The correction is folded into the module's own weight and bias, so a repaired network is an ordinary
checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from rebasin_cli.data import Batch
from rebasin_cli.execution.model_slot import ModelSlot, UnitAffine
from rebasin_cli.execution.moments import Moments, moments

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ATTENTION_INPUTS = ("query", "key", "value")

DEAD = 1e-6
"""A unit whose deviation is below this share of its target is constant: it is shifted, but not rescaled."""

SiteMoments = dict[str, Moments]
"""Moments by the name of the site."""


@dataclass(frozen=True, slots=True)
class RepairSite:
    """A module's output and the tensors that scale and shift its units.

    `output_axis` counts units in the output; `weight_axis` in the weight. `bias` is None where no tensor can hold a
    shift: then units are only rescaled. A `packed` site is the projection of `nn.MultiheadAttention` to queries, keys
    and values.
    """

    name: str
    module: str
    output_axis: int
    units: int
    weight: str
    weight_axis: int
    bias: str | None
    packed: bool = False


def repair_sites(slot: ModelSlot, batch: Batch, norms: Iterable[nn.Module]) -> tuple[RepairSite, ...]:
    """The sites of the loaded network, from one run on the first sample of `batch`, in the order of execution.

    A site is a module whose output units have a weight and, usually, a bias that can hold the correction. Left out are
    modules that feed a BatchNorm directly (it undoes any rescaling), the module that makes the network's output (its
    units are the classes), modules that run more than once (one correction cannot fit two calls), and modules that
    share their weight with another.

    Args:
        norms: the BatchNorm layers of the module.
    """
    module = slot.module
    candidates = {name: child for name, child in module.named_modules() if _affine_site(name, child) is not None}
    made: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    fed_to_norm: set[str] = set()

    def after(name: str, output: Any) -> None:
        calls[name] += 1
        first = _first_tensor(output)
        if first is not None:
            made[name] = first

    def before_norm(inputs: tuple[Any, ...]) -> None:
        fed_to_norm.update(name for name, tensor in made.items() if inputs and tensor is inputs[0])

    handles = [
        child.register_forward_hook(lambda _, __, output, name=name: after(name, output))
        for name, child in candidates.items()
    ]
    handles += [layer.register_forward_pre_hook(lambda _, inputs: before_norm(inputs)) for layer in norms]
    try:
        results = [output for _, output in slot.outputs(batch.rows(0, 1))]
    finally:
        for handle in handles:
            handle.remove()
    finals = {id(tensor) for output in results for tensor in _tensors(output)}
    shared = _shared_parameters(module)
    found = []
    for name in calls:
        site = _affine_site(name, candidates[name])
        if site is None or calls[name] != 1 or name in fed_to_norm or name not in made or id(made[name]) in finals:
            continue
        if {site.weight, site.bias} & shared or made[name].dim() < 2:
            continue
        if made[name].shape[site.output_axis] == site.units:
            inner = _packed_site(name, candidates[name])
            found += [one for one in (inner, site) if one is not None and not {one.weight, one.bias} & shared]
    return tuple(found)


def _affine_site(name: str, module: nn.Module) -> RepairSite | None:
    """The site of a module of this kind; None for kinds without a weight per output unit."""
    prefix = f"{name}." if name else ""
    if isinstance(module, nn.MultiheadAttention):
        # Its last step is out_proj, whose parameters attention reads without calling the module.
        return _site(name, -1, f"{prefix}out_proj.", module.out_proj, 0)
    if isinstance(module, nn.Linear):
        return _site(name, -1, prefix, module, 0)
    if isinstance(module, CONVOLUTIONS):
        return _site(name, 1, prefix, module, 0)
    if isinstance(module, TRANSPOSED) and module.groups == 1:
        return _site(name, 1, prefix, module, 1)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _site(name, -1, prefix, module, 0)
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
        return _site(name, 1, prefix, module, 0)
    return None


def _site(name: str, output_axis: int, prefix: str, owner: nn.Module, axis: int) -> RepairSite | None:
    weight, bias = owner._parameters.get("weight"), owner._parameters.get("bias")
    if weight is None:  # without an affine part, or computed from other parameters at each call
        return None
    held = None if bias is None else f"{prefix}bias"
    return RepairSite(name, name, output_axis, int(weight.shape[axis]), f"{prefix}weight", axis, held)


def _packed_site(name: str, module: nn.Module) -> RepairSite | None:
    """The projection to queries, keys and values, where an attention module holds it in one weight."""
    weight = getattr(module, "in_proj_weight", None) if isinstance(module, nn.MultiheadAttention) else None
    if not isinstance(weight, nn.Parameter):
        return None
    prefix = f"{name}." if name else ""
    bias = f"{prefix}in_proj_bias" if module._parameters.get("in_proj_bias") is not None else None
    units = int(weight.shape[0])
    return RepairSite(f"{prefix}in_proj", name, -1, units, f"{prefix}in_proj_weight", 0, bias, packed=True)


def _shared_parameters(module: nn.Module) -> set[str | None]:
    """Names of parameters that have more than one name."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}


def _first_tensor(output: Any) -> Tensor | None:
    """The output, or the first of several (attention also returns its weights)."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Unlike `torch.utils._pytree.tree_leaves`, this also opens subclasses of dict and list that nobody registered."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


@dataclass(frozen=True, slots=True)
class Correction:
    """`new = scale * old + shift` for the units of one site."""

    scale: Tensor
    shift: Tensor


def correction(mean: Tensor, variance: Tensor, sources: Sequence[tuple[Tensor, Tensor, float]]) -> Correction:
    """The map from units of this mean and variance to the target between those of the checkpoints.

    Args:
        sources: mean, variance and share of each checkpoint.
    """
    target_mean = torch.stack([share * one for one, _, share in sources]).sum(0)
    target_std = torch.stack([share * one.sqrt() for _, one, share in sources]).sum(0)
    std = variance.sqrt()
    alive = std > DEAD * target_std.clamp_min(1e-12)
    scale = torch.where(alive, target_std / torch.where(alive, std, torch.ones_like(std)), torch.ones_like(std))
    return Correction(scale, target_mean - scale * mean)


def folded(
    sites: Sequence[RepairSite], averages: Mapping[str, Tensor], shares: Sequence[float]
) -> dict[str, UnitAffine]:
    """The corrections as maps on weights and biases, by key.

    Args:
        averages: by site name, rows (mean, variance, then mean and variance of each checkpoint) over the units.
        shares: of the checkpoints.
    """
    maps: dict[str, UnitAffine] = {}
    for site in sites:
        rows = averages.get(site.name)
        if rows is None:
            continue
        sources = [(rows[2 + 2 * number], rows[3 + 2 * number], share) for number, share in enumerate(shares)]
        made = correction(rows[0], rows[1], sources)
        maps[site.weight] = UnitAffine(site.weight_axis, made.scale)
        if site.bias is not None:
            maps[site.bias] = UnitAffine(0, made.scale, made.shift)
    return maps


@contextmanager
def observing(module: nn.Module, sites: Sequence[RepairSite], seen: SiteMoments) -> Iterator[None]:
    """While active, the moments of every site's output are stored in `seen`; nothing is changed."""
    with _hooked(module, sites, seen, None):
        yield


@contextmanager
def correcting(
    module: nn.Module,
    sites: Sequence[RepairSite],
    seen: SiteMoments,
    sources: Sequence[tuple[SiteMoments, float]],
) -> Iterator[None]:
    """While active, every site's output is corrected by this batch's moments; `seen` gets those before correction.

    Args:
        sources: the checkpoints' moments on this batch, each with its share.
    """
    with _hooked(module, sites, seen, sources):
        yield


@contextmanager
def _hooked(
    module: nn.Module,
    sites: Sequence[RepairSite],
    seen: SiteMoments,
    sources: Sequence[tuple[SiteMoments, float]] | None,
) -> Iterator[None]:
    def correct(site: RepairSite, found: Moments) -> Correction | None:
        seen[site.name] = found
        if sources is None:
            return None
        own = [(one[site.name].mean, one[site.name].variance, share) for one, share in sources]
        return correction(found.mean, found.variance, own)

    def after(site: RepairSite, output: object) -> object:
        values = _first_tensor(output)
        made = None if values is None else correct(site, moments(values, site.output_axis))
        if values is None or made is None:
            return None
        shape = [1] * values.dim()
        shape[site.output_axis] = -1
        scale, shift = (row.to(values.dtype).view(shape) for row in (made.scale, made.shift))
        changed = values * scale if site.bias is None else torch.addcmul(shift, values, scale)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handles = []
    for site in sites:
        owner = module.get_submodule(site.module)
        if site.packed:
            handles += hook_projection(owner, partial(correct, site))
        else:
            handles.append(owner.register_forward_hook(lambda _, __, output, site=site: after(site, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hook_projection(module: nn.Module, correct: Callable[[Moments], Correction | None]) -> list[RemovableHandle]:
    """Apply `correct` to the packed projection of an `nn.MultiheadAttention` in each of its runs.

    No module outputs queries, keys and values, so their moments are computed from the module's arguments. During the
    run, the projection's own weight and bias hold the correction. They are restored afterwards, even if the run fails.
    """
    assert isinstance(module, nn.MultiheadAttention)
    attention = module
    kept: list[tuple[Tensor, Tensor]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        made = correct(projection_moments(attention, args, kwargs))
        if made is None:
            return
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        kept.append((weight, weight.clone()))
        weight.mul_(made.scale.to(weight.dtype).unsqueeze(1))
        if bias is not None:
            kept.append((bias, bias.clone()))
            bias.mul_(made.scale.to(bias.dtype)).add_(made.shift.to(bias.dtype))

    def after(*_: object) -> None:
        while kept:
            parameter, value = kept.pop()
            parameter.copy_(value)

    return [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        attention.register_forward_hook(after, always_call=True),
    ]


def projection_moments(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Moments:
    """The moments of queries, keys and values, concatenated, for these arguments of the module."""
    named = {name: kwargs[name] for name in ATTENTION_INPUTS if name in kwargs}
    given = {**dict(zip(ATTENTION_INPUTS, args, strict=False)), **named}
    bias = module.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    found = [
        moments(F.linear(given[name], rows, shift), -1)
        for name, rows, shift in zip(ATTENTION_INPUTS, module.in_proj_weight.chunk(3), biases, strict=True)
    ]
    mean, variance = torch.cat([one.mean for one in found]), torch.cat([one.variance for one in found])
    return Moments(mean, variance, found[0].count)
