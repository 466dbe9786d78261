"""The units of a group along an axis of a tensor: multiplied, scaled, gathered, contracted, averaged.

Everything is differentiable and leaves its arguments as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from rebasin_cli.maps.group_map import GroupMap
from rebasin_cli.permutation import is_identity
from rebasin_cli.spec import AxisGroup, Site


def _segment(tensor: Tensor, site: Site, size: int) -> tuple[Tensor, Tensor]:
    """The tensor as (before, extent, after), and what the site owns of it as (before * outer, size, inner * after)."""
    end = site.axis + site.span
    before, extent, after = prod(tensor.shape[: site.axis]), site.extent(tensor.shape), prod(tensor.shape[end:])
    flat = tensor.reshape(before, extent, after)
    if site.positions is not None:
        rows = torch.tensor(site.positions, dtype=torch.int64, device=tensor.device)
        return flat, flat[:, rows.reshape(-1)].reshape(before, size, -1)
    part = flat[:, site.offset : site.offset + site.outer * size * site.inner]
    return flat, part.reshape(before * site.outer, size, site.inner * after)


def along(tensor: Tensor, site: Site, size: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor with the site's units changed; `change` is given (places, size, places) and returns this shape."""
    flat, part = _segment(tensor, site, size)
    before, extent, after = flat.shape
    new = change(part).reshape(before, -1, after)
    if site.positions is not None:
        rows = torch.tensor(site.positions, dtype=torch.int64, device=tensor.device)
        return flat.to(new.dtype).index_copy(1, rows.reshape(-1), new).reshape(tensor.shape)
    if new.shape[1] < extent:
        new = torch.cat([flat[:, : site.offset], new, flat[:, site.offset + new.shape[1] :]], dim=1)
    return new.reshape(tensor.shape)


def multiplied(tensor: Tensor, site: Site, matrix: Tensor) -> Tensor:
    """The tensor with the site's units multiplied by a matrix (n, n)."""

    def change(part: Tensor) -> Tensor:
        return (part[:, :, 0] @ matrix.T)[:, :, None] if part.shape[2] == 1 else matrix @ part

    return along(tensor, site, matrix.shape[0], change)


def scaled(tensor: Tensor, site: Site, scale: Tensor) -> Tensor:
    """The tensor with every unit of the site multiplied by its number, (n,)."""
    return along(tensor, site, scale.numel(), lambda part: part * scale[:, None])


def gathered(tensor: Tensor, site: Site, perm: Tensor) -> Tensor:
    """The tensor with the site's units gathered by an index (n,)."""
    return along(tensor, site, perm.numel(), lambda part: part.index_select(1, perm.to(tensor.device)))


def times_axis(tensor: Tensor, site: Site, size: int, vector: Tensor) -> Tensor:
    """The tensor with every position of the axis that the site owns multiplied by its number of `vector` (extent,)."""
    flat = tensor.reshape(prod(tensor.shape[: site.axis]), site.extent(tensor.shape), -1)
    return (flat * _owned(vector, site, size, 1.0)[:, None]).reshape(tensor.shape)


def contracted(tensor: Tensor, site: Site, size: int, vector: Tensor) -> Tensor:
    """The sum over the axis of what the site owns times `vector` (extent,): (places before it, places behind it)."""
    before = tensor.shape[: site.axis]
    flat = tensor.reshape(prod(before), site.extent(tensor.shape), -1)
    return torch.einsum("pnq,n->pq", flat, _owned(vector, site, size, 0.0))


def _owned(vector: Tensor, site: Site, size: int, elsewhere: float) -> Tensor:
    """The numbers (extent,) of an axis where the site owns it, and another number elsewhere."""
    line = Site(site.key, 0, site.offset, site.outer, site.inner, positions=site.positions)
    mine = along(torch.zeros_like(vector), line, size, torch.ones_like)
    return torch.where(mine != 0, vector, elsewhere)


def unit_means(tensor: Tensor, site: Site, size: int) -> Tensor:
    """The mean over the site's units at every other place, (places, 1, places)."""
    return _segment(tensor, site, size)[1].mean(dim=1, keepdim=True)


def mapped_along(tensor: Tensor, group: AxisGroup, place: int, one: GroupMap) -> Tensor:
    """The tensor under the map of a group at its site of this index.

    Floating tensors come as float64 where the map is not exact; what an exact map is given keeps its type.
    """
    site = group.sites[place]
    if one.matrix is not None:
        dual = one.dual
        assert dual is not None
        return multiplied(tensor, site, dual if site.dual else one.matrix)
    if one.perm is not None and not is_identity(one.perm):
        tensor = gathered(tensor, site, one.perm)
    for freedom, scale in zip(group.scales, one.scales, strict=False):
        for index, power in freedom.sites:
            if index == place:
                tensor = scaled(tensor, site, (scale if power > 0 else 1 / scale).to(tensor.dtype))
    return tensor
