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
from rebasin_cli.maps.sites import along, contracted, times_axis, unit_means
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
            return tensor / settled(_gain(gauge, read), None)[0].reshape(tensor.shape)
        for shift in self.shifted.get(key, ()):
            tensor = tensor + self._shift(shift, read, read(shift.weight).to(torch.float64), tensor)
        for fold in self.scaled.get(key, ()):
            tensor = times_axis(tensor, fold.site, fold.group.size, _gain(fold.gauge, read))
        return tensor

    @staticmethod
    def _shift(shift: _ShiftFold, read: Read, weight: Tensor, like: Tensor) -> Tensor:
        fold, key = shift.fold, shift.fold.gauge.shift
        assert key is not None
        vector = read(key).to(weight.dtype).reshape(-1)
        found = contracted(weight, fold.site, fold.group.size, vector)
        if found.numel() != like.numel():  # behind the axis are those of a kernel, which all see the same shift
            found = found.sum(1)
        return found.reshape(like.shape)

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
            gain = (1 / frame.gains[fold.gauge.scale]).to(tensor.dtype)
            tensor = times_axis(tensor, fold.site, fold.group.size, gain)
        for shift in self.shifted.get(key, ()):
            tensor = tensor - self._shift(shift, frame.gains.__getitem__, weight(shift.weight).to(tensor.dtype), tensor)
        return tensor

    def gain_as_stored(self, key: str, frame: Frame) -> Tensor:
        """The tensor of a scale or shift in a frame, float64, flat."""
        gauge = self.gains[key].gauge
        return frame.gains[key] - (gauge.offset if key == gauge.scale else 0.0)

    def undivided(self, read: Read) -> dict[str, str]:
        """Groups that a network's own numbers keep from being mixed, with the reason.

        A shift that must move is divided by its scale, which must not be (nearly) zero then.
        """
        found: dict[str, str] = {}
        for key, fold in self.moving.items():
            scale = fold.gauge.scale
            if scale is None:
                continue
            shift = read(key).reshape(-1)
            if bool((_near_zero(_gain(fold.gauge, read)) & (shift != 0)).any()):
                found[fold.group.name] = f"{scale} is nearly zero where {key} is not, and a reader has no bias"
        return found


@dataclass(frozen=True, slots=True)
class Frame:
    """The diagonals and the means that a network is given after its maps: another network's, A's.

    Attributes:
        gains: float64, one number for each position of the axis, by key of a scale or shift: what the scale multiplies
            by, so `Gauge.offset` is in it.
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
        offset = 0.0
        if key == fold.gauge.scale:
            offset = fold.gauge.offset
            gain, replaced = settled(_gain(fold.gauge, a), None if b is None else _gain(fold.gauge, b))
            if replaced:
                kept[key] = replaced
        else:
            gain = a(key).to(torch.float64).reshape(-1)
        gains[key] = gain if b is None else (gain - offset).to(b(key).dtype).to(torch.float64) + offset
    means = {key: tuple(gauges.means(key, a)) for key in gauges.centred}
    return Frame(gains, means, kept)


def _gain(gauge: Gauge, read: Read) -> Tensor:
    """What a gauge's scale multiplies by, float64, one number for each position of the axis."""
    assert gauge.scale is not None
    return read(gauge.scale).to(torch.float64).reshape(-1) + gauge.offset


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
