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


def contracted(tensor: Tensor, site: Site, vector: Tensor) -> Tensor:
    """The sum over the site's units, each times its number of `vector` (n,): the tensor's shape without those axes."""
    _, part = _segment(tensor, site, vector.numel())
    rest = tensor.shape[: site.axis] + tensor.shape[site.axis + site.span :]
    before, after = prod(tensor.shape[: site.axis]), prod(tensor.shape[site.axis + site.span :])
    return torch.einsum("pnq,n->pq", part, vector).reshape(before, -1, after).sum(1).reshape(rest)


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
