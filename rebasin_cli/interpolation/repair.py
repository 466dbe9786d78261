"""REPAIR: every unit of an interpolant gets the mean and deviation that lie between those of the two ends.

Jordan et al. 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", section 3: for unit X at lam

    X' = (X - E[X]) / std(X) * ((1 - lam) std(A) + lam std(B)) + (1 - lam) E[A] + lam E[B].

Layers are corrected in the order of the data within one pass: each is measured behind corrected ones. The correction is
folded into the module's own weight and bias, so a repaired network is an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rebasin_cli.interpolation.adjustment import UnitAffine
from rebasin_cli.interpolation.moments import Moments, moments
from rebasin_cli.interpolation.repair_attention import hook_projection
from rebasin_cli.interpolation.repair_sites import RepairSite, first_tensor

DEAD = 1e-6
"""A deviation below this share of the target's is that of a unit that says nothing: it is shifted, not blown up."""

Seen = dict[str, Moments]


@dataclass(frozen=True, slots=True)
class Correction:
    """`new = scale * old + shift` for the units of one site."""

    scale: Tensor
    shift: Tensor


def correction(
    mean: Tensor, variance: Tensor, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], lam: float
) -> Correction:
    """What takes units of this mean and variance to the target between the (mean, variance) of A and of B."""
    target_mean = torch.lerp(a[0], b[0], lam)
    target_std = torch.lerp(a[1].sqrt(), b[1].sqrt(), lam)
    std = variance.sqrt()
    alive = std > DEAD * target_std.clamp_min(1e-12)
    scale = torch.where(alive, target_std / torch.where(alive, std, torch.ones_like(std)), torch.ones_like(std))
    return Correction(scale, target_mean - scale * mean)


@contextmanager
def observing(module: nn.Module, sites: Sequence[RepairSite], seen: Seen) -> Iterator[None]:
    """While active, the moments of every site's output are put into `seen`; nothing is changed."""
    with _hooked(module, sites, seen, None):
        yield


@contextmanager
def correcting(
    module: nn.Module, sites: Sequence[RepairSite], seen: Seen, a: Seen, b: Seen, lam: float
) -> Iterator[None]:
    """While active, every site's output is corrected by this batch's moments; `seen` gets those before correction."""
    with _hooked(module, sites, seen, (a, b, lam)):
        yield


@contextmanager
def _hooked(
    module: nn.Module, sites: Sequence[RepairSite], seen: Seen, between: tuple[Seen, Seen, float] | None
) -> Iterator[None]:
    def correct(site: RepairSite, found: Moments) -> tuple[Tensor, Tensor] | None:
        seen[site.name] = found
        if between is None:
            return None
        a, b, lam = between[0][site.name], between[1][site.name], between[2]
        made = correction(found.mean, found.variance, (a.mean, a.variance), (b.mean, b.variance), lam)
        return made.scale, made.shift

    def after(site: RepairSite, output: object) -> object:
        values = first_tensor(output)
        made = None if values is None else correct(site, moments(values, site.output_axis))
        if values is None or made is None:
            return None
        shape = [1] * values.dim()
        shape[site.output_axis] = -1
        scale, shift = (row.to(values.dtype).view(shape) for row in made)
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


def folded(sites: Sequence[RepairSite], averages: Mapping[str, Tensor], lam: float) -> dict[str, UnitAffine]:
    """The corrections as maps on weights and biases, by key.

    Args:
        averages: by site name, rows (mean, variance, mean A, variance A, mean B, variance B) over the units.
    """
    maps: dict[str, UnitAffine] = {}
    for site in sites:
        rows = averages.get(site.name)
        if rows is None:
            continue
        made = correction(rows[0], rows[1], (rows[2], rows[3]), (rows[4], rows[5]), lam)
        maps[site.weight] = UnitAffine(site.weight_axis, made.scale)
        if site.bias is not None:
            maps[site.bias] = UnitAffine(0, made.scale, made.shift)
    return maps
