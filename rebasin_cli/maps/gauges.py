"""The diagonal parameters beside the groups that matrix maps change: folded away, and taken out again in a frame.

A norm's scale and shift, or a layer scale, would not survive a mixture of units. So they are folded into the weights
next to them (`W diag(scale)`, `b + W shift`), and after the map they are taken out again. Which diagonal is taken out
is free: a *frame* holds that of another network A, so that both can be averaged. The same holds of the means over the
units that every reader takes away (LayerNorm). A network without all of these is in *canonical form*.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rebasin_cli.freedom import Gauge
from rebasin_cli.maps.sites import along, contracted, scaled, unit_means
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

NEAR_ZERO = 1e-2
"""Gains below this share of their root mean square are not divided by."""

Read = Callable[[str], Tensor]
"""A network's tensor by model key."""


@dataclass(frozen=True, slots=True)
class _Fold:
    """A diagonal parameter beside one site of one tensor."""

    group: AxisGroup
    site: Site
    gauge: Gauge


@dataclass(frozen=True, slots=True)
class _ShiftFold:
    """A shift that a bias takes over: `b + W shift`."""

    fold: _Fold
    weight: str


class Gauges:
    """The folding of the diagonal parameters beside those groups that matrix maps change.

    Args:
        mixing: names of those groups.
    """

    def __init__(self, spec: PermutationSpec, mixing: Collection[str]) -> None:
        self.spec = spec
        self.mixing = frozenset(mixing)
        self.scaled: dict[str, list[_Fold]] = {}
        self.shifted: dict[str, list[_ShiftFold]] = {}
        self.gains: dict[str, _Fold] = {}
        """Scales and shifts that are taken out again, by key; each is its frame's in every mapped network."""
        self.moving: dict[str, _Fold] = {}
        """Shifts that not every reader can take over: `shift / scale` is written to the group like a bias."""
        self.centred: dict[str, list[tuple[AxisGroup, int]]] = {}
        for name in mixing:
            self._add(spec.by_name[name])

    def _add(self, group: AxisGroup) -> None:
        uncentred: set[int] = set()
        own: set[str] = set()
        for gauge in group.gauges:
            moving = gauge.shift is not None and any(bias is None for bias in gauge.biases)
            first = _Fold(group, group.sites[gauge.sites[0]], gauge)
            for key in (gauge.scale, gauge.shift):
                if key is not None:
                    own.add(key)
                    (self.moving if moving and key == gauge.shift else self.gains)[key] = first
            if moving:
                uncentred.update(gauge.sites)
            for order, index in enumerate(gauge.sites):
                site = group.sites[index]
                fold = _Fold(group, site, gauge)
                if gauge.scale is not None:
                    self.scaled.setdefault(site.key, []).append(fold)
                bias = gauge.biases[order] if gauge.biases and not moving else None
                if gauge.shift is not None and bias is not None:
                    self.shifted.setdefault(bias, []).append(_ShiftFold(fold, site.key))
        if group.centred:
            for index, site in enumerate(group.sites):
                if site.key not in own and index not in uncentred:
                    self.centred.setdefault(site.key, []).append((group, index))

    def touches(self, key: str) -> bool:
        """Whether anything is folded into this tensor, taken out of it, or centred."""
        held = (self.scaled, self.shifted, self.gains, self.moving, self.centred)
        return any(key in kind for kind in held)

    def canonical(self, key: str, read: Read) -> Tensor:
        """A network's tensor with its diagonals folded in and its free means taken away, float64.

        Scales and shifts that are folded away are given as they are: they do not belong to the canonical form.
        """
        return self._centred(key, self.folded(key, read))[0]

    def folded(self, key: str, read: Read) -> Tensor:
        """A network's tensor with its diagonals folded in, float64."""
        tensor = read(key).to(torch.float64)
        if key in self.moving:
            gauge = self.moving[key].gauge
            if gauge.scale is None:
                return tensor
            return tensor / settled(read(gauge.scale).to(torch.float64).reshape(-1), None)[0].reshape(tensor.shape)
        for shift in self.shifted.get(key, ()):
            tensor = tensor + self._shift(shift, read, read(shift.weight).to(torch.float64), tensor)
        for fold in self.scaled.get(key, ()):
            assert fold.gauge.scale is not None
            tensor = scaled(tensor, fold.site, read(fold.gauge.scale).to(torch.float64).reshape(-1))
        return tensor

    @staticmethod
    def _shift(shift: _ShiftFold, read: Read, weight: Tensor, like: Tensor) -> Tensor:
        key = shift.fold.gauge.shift
        assert key is not None
        return contracted(weight, shift.fold.site, read(key).to(weight.dtype).reshape(-1)).reshape(like.shape)

    def _centred(self, key: str, tensor: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The tensor without its means over the units of centred groups, and these means."""
        means = []
        for group, index in self.centred.get(key, ()):
            site = group.sites[index]
            mean = unit_means(tensor, site, group.size)
            tensor = along(tensor, site, group.size, lambda part, mean=mean: part - mean)  # type: ignore[misc]
            means.append(mean)
        return tensor, means

    def means(self, key: str, read: Read) -> list[Tensor]:
        """The means that the canonical form of a network lacks."""
        return self._centred(key, self.folded(key, read))[1]

    def restored(self, key: str, tensor: Tensor, frame: Frame, weight: Read) -> Tensor:
        """A canonical tensor with the diagonals and the means of a frame.

        Args:
            weight: the restored weights, for the biases that take over a shift.
        """
        if key in self.moving:
            scale = self.moving[key].gauge.scale
            return tensor if scale is None else tensor * frame.gains[scale].reshape(tensor.shape)
        for (group, index), mean in zip(self.centred.get(key, ()), frame.means.get(key, ()), strict=False):
            tensor = along(tensor, group.sites[index], group.size, lambda part, mean=mean: part + mean)  # type: ignore[misc]
        for fold in self.scaled.get(key, ()):
            assert fold.gauge.scale is not None
            tensor = scaled(tensor, fold.site, (1 / frame.gains[fold.gauge.scale]).to(tensor.dtype))
        for shift in self.shifted.get(key, ()):
            tensor = tensor - self._shift(shift, frame.gains.__getitem__, weight(shift.weight).to(tensor.dtype), tensor)
        return tensor

    def undivided(self, read: Read) -> dict[str, str]:
        """Groups that a network's own numbers keep from being mixed, with the reason.

        A shift that must move is divided by its scale, which must not be (nearly) zero then.
        """
        found: dict[str, str] = {}
        for key, fold in self.moving.items():
            scale = fold.gauge.scale
            if scale is None:
                continue
            gain, shift = (read(name).to(torch.float64).reshape(-1) for name in (scale, key))
            if bool((_near_zero(gain) & (shift.abs() > 0)).any()):
                found[fold.group.name] = f"{scale} is nearly zero where {key} is not, and a reader has no bias"
        return found


@dataclass(frozen=True, slots=True)
class Frame:
    """The diagonals and the means that a network is given after its maps: another network's, A's.

    Attributes:
        gains: float64 (n,), by key of a scale or shift.
        means: float64, by key, in the order of `Gauges.centred`.
        kept: where A's scale is nearly zero and another number stands in its place, by key.
    """

    gains: Mapping[str, Tensor] = field(default_factory=dict)
    means: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def frame_of(gauges: Gauges, a: Read, b: Read | None = None) -> Frame:
    """A's frame.

    Args:
        b: the network that will be mapped: its own gains are used where A's are nearly zero, and the gains are rounded
            to its type, so that what is divided by them is what the file has.
    """
    gains: dict[str, Tensor] = {}
    kept: dict[str, tuple[int, ...]] = {}
    for key, fold in gauges.gains.items():
        gain = a(key).to(torch.float64).reshape(-1)
        if key == fold.gauge.scale:
            gain, replaced = settled(gain, None if b is None else b(key).to(torch.float64).reshape(-1))
            if replaced:
                kept[key] = replaced
        gains[key] = gain if b is None else gain.to(b(key).dtype).to(torch.float64)
    means = {key: tuple(gauges.means(key, a)) for key in gauges.centred}
    return Frame(gains, means, kept)


def _near_zero(gain: Tensor) -> Tensor:
    scale = gain.square().mean().sqrt()
    return gain.abs() <= NEAR_ZERO * scale if bool(scale > 0) else torch.ones_like(gain, dtype=torch.bool)


def settled(gain: Tensor, other: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """Gains that can be divided by: where one is nearly zero, `other`'s takes its place, or else their mean size.

    Returns:
        the gains (n,), and the units where one was replaced.
    """
    poor = _near_zero(gain)
    if not bool(poor.any()):
        return gain, ()
    size = gain.square().mean().sqrt()
    instead = torch.full_like(gain, float(size) if bool(size > 0) else 1.0)
    if other is not None:
        instead = torch.where(_near_zero(other), instead, other)
    return torch.where(poor, instead, gain), tuple(poor.nonzero().reshape(-1).tolist())
