"""A network under maps: every tensor is made when it is asked for.

All is computed in float64 and rounded once. Where index maps with no other scales than signs act, bits only move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from rebasin_cli.maps.gauges import Frame, Gauges, Read, frame_of
from rebasin_cli.maps.group_map import GroupMap
from rebasin_cli.maps.sites import mapped_along
from rebasin_cli.permutation import gathers, permute_tensor
from rebasin_cli.spec import AxisGroup, PermutationSpec


class Mapped(Mapping[str, Tensor]):
    """The tensors of a network under maps, in a frame; each is made when it is asked for.

    Args:
        source: by model key; its tensors are not changed.
        frame: what is given back after matrix maps; by default the source's own.
        ties: for each further name of a tensor its first one; a name that the spec lacks follows that.
        rounded: round to the types of the source. Otherwise what is not moved exactly is float64.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        spec: PermutationSpec,
        maps: Mapping[str, GroupMap],
        frame: Frame | None = None,
        ties: Mapping[str, str] = MappingProxyType({}),
        *,
        rounded: bool = True,
    ) -> None:
        self.source, self.spec, self.maps, self.ties, self.rounded = source, spec, dict(maps), ties, rounded
        self._sites = sites_of(spec)
        self.gauges = Gauges(spec, [name for name, one in maps.items() if one.matrix is not None])
        self.frame = frame_of(self.gauges, self._read) if frame is None else frame
        self._perms = {name: one.perm for name, one in maps.items() if one.perm is not None and not one.scales}

    @property
    def moves_nothing(self) -> bool:
        """Whether every tensor stays as it is."""
        return not any(one.moves for one in self.maps.values())

    def __getitem__(self, key: str) -> Tensor:
        return self.of(key, self.source[key])

    def of(self, key: str, tensor: Tensor) -> Tensor:
        """What the source's tensor of this name becomes, given itself."""
        known = self._known(key)
        if self.gauges.touches(known) and tensor.is_floating_point():
            return self._through_canonical(known, tensor)
        acting = self._acting(known)
        if all(one.matrix is None and not one.scales for _, _, one in acting):
            return permute_tensor(tensor, gathers(self.spec, self._perms, known, tensor.shape))
        if all(one.exact for _, _, one in acting) or not tensor.is_floating_point():
            return self._along(acting, tensor)
        return self._rounded(self._along(acting, tensor.to(torch.float64)), tensor)

    def _through_canonical(self, key: str, tensor: Tensor) -> Tensor:
        if key in self.gauges.gains:
            return self._rounded(self.gauges.gain_as_stored(key, self.frame).reshape(tensor.shape), tensor)
        read: Read = lambda name: tensor if name == key else self._read(name)  # noqa: E731
        moved = self._along(self._acting(key), self.gauges.canonical(key, read))
        return self._rounded(self.gauges.restored(key, moved, self.frame, self.__getitem__), tensor)

    def canonical(self, key: str) -> Tensor:
        """The mapped tensor in canonical form, float64: what is compared with A's."""
        known = self._known(key)
        return self._along(self._acting(known), self.gauges.canonical(known, self._read))

    def _along(self, acting: Iterable[tuple[AxisGroup, int, GroupMap]], tensor: Tensor) -> Tensor:
        for group, place, one in acting:
            tensor = mapped_along(tensor, group, place, one)
        return tensor

    def _acting(self, key: str) -> list[tuple[AxisGroup, int, GroupMap]]:
        """The maps that change this tensor, in order, each with its group and the index of its site."""
        found = []
        for group, place in self._sites.get(key, ()):
            one = self.maps.get(group.name)
            if one is not None and one.moves:
                found.append((group, place, one))
        return found

    def _rounded(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor.to(like.dtype) if self.rounded else tensor

    def _known(self, key: str) -> str:
        return key if key in self._sites or self.gauges.touches(key) else self.ties.get(key, key)

    def _read(self, key: str) -> Tensor:
        return self.source[key]

    def __contains__(self, key: object) -> bool:
        return key in self.source

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def sites_of(spec: PermutationSpec) -> dict[str, list[tuple[AxisGroup, int]]]:
    """For each tensor, the groups that act on it and the indices of their sites, in order of application."""
    found: dict[str, list[tuple[AxisGroup, int]]] = {}
    for group in spec.innermost_first:
        for place, site in enumerate(group.sites):
            found.setdefault(site.key, []).append((group, place))
    return found
