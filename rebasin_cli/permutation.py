"""Index tensors: make, invert, compose, and apply them to named tensors.

A permutation is int64 of shape (n,) with gather meaning: `new[i] = old[perm[i]]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from rebasin_cli.errors import ModelError, NumericalError
from rebasin_cli.spec import PermutationSpec, Site

Permutations = dict[str, Tensor]
"""Permutation by group name; an absent group is not permuted."""

AT_ONCE = 1 << 19
"""Elements that an in-place permutation copies at a time."""


def identity(spec: PermutationSpec) -> Permutations:
    """The permutations that change nothing."""
    return {group.name: torch.arange(group.size) for group in spec.groups}


def random(spec: PermutationSpec, seed: int) -> Permutations:
    """One uniformly random permutation for every group, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.size, generator=generator) for group in spec.groups}


def invert(perm: Tensor) -> Tensor:
    """The permutation that undoes `perm`: `perm[invert(perm)] = arange(n)`."""
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(perm.numel(), dtype=perm.dtype, device=perm.device)
    return inverse


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The one gather that equals two in turn: `x[first][then] = x[compose(first, then)]`."""
    return first[then]


def check_permutation(perm: Tensor, size: int, what: str) -> None:
    """Raise NumericalError unless `perm` contains each of 0 … size-1 once."""
    if perm.shape != (size,) or not torch.equal(perm.sort().values, torch.arange(size, dtype=perm.dtype)):
        raise NumericalError(f"{what}: not a permutation of {size} units")


def is_identity(perm: Tensor) -> bool:
    return torch.equal(perm, torch.arange(perm.numel(), dtype=perm.dtype, device=perm.device))


def site_gather(site: Site, perm: Tensor, extent: int) -> Tensor:
    """The gather over the whole (merged) axis of length `extent` that permutes this site's units: int64 (extent,)."""
    index = torch.arange(extent)
    if site.positions is not None:
        rows = torch.tensor(site.positions, dtype=torch.int64)
        index[rows.reshape(-1)] = rows[perm].reshape(-1)
        return index
    length = site.outer * perm.numel() * site.inner
    segment = index[site.offset : site.offset + length].view(site.outer, perm.numel(), site.inner)
    index[site.offset : site.offset + length] = segment[:, perm, :].reshape(-1)
    return index


@dataclass(frozen=True, slots=True)
class Gather:
    """Gather the axes `axis … axis + span - 1`, read as one, by `index`."""

    axis: int
    span: int
    index: Tensor

    def overlaps(self, other: Gather) -> bool:
        return self.axis < other.axis + other.span and other.axis < self.axis + self.span


def gathers(
    spec: PermutationSpec,
    permutations: Mapping[str, Tensor],
    key: str,
    shape: Sequence[int],
    ties: Mapping[str, str] = MappingProxyType({}),
) -> list[Gather]:
    """The gathers, in order, that permute the tensor `key` of this shape; empty if nothing moves.

    Args:
        ties: for each further name of a tensor its first one; a name that the spec lacks follows that.
    """
    known = key if key in spec.sites_by_key else ties.get(key, key)
    steps: list[Gather] = []
    for group, site in spec.sites_by_key.get(known, ()):
        perm = permutations.get(group.name)
        if perm is None or is_identity(perm):
            continue
        step = Gather(site.axis, site.span, site_gather(site, perm, site.extent(shape)))
        _append(steps, step)
    return steps


def _append(steps: list[Gather], step: Gather) -> None:
    """Add a gather, composed with an earlier one of the same axes if no gather in between overlaps them."""
    for place in range(len(steps) - 1, -1, -1):
        earlier = steps[place]
        if (earlier.axis, earlier.span) == (step.axis, step.span):
            steps[place] = Gather(step.axis, step.span, compose(earlier.index, step.index))
            return
        if earlier.overlaps(step):
            break
    steps.append(step)


def permute_tensor(tensor: Tensor, steps: Sequence[Gather]) -> Tensor:
    """The tensor with every gather applied in turn; the same object if there is none."""
    for step in steps:
        index = step.index.to(tensor.device)
        if step.span == 1:
            tensor = tensor.index_select(step.axis, index)
        else:
            merged = tensor.flatten(step.axis, step.axis + step.span - 1)
            tensor = merged.index_select(step.axis, index).reshape(tensor.shape)
    return tensor


def permute_in_place(tensor: Tensor, steps: Sequence[Gather]) -> Tensor:
    """`permute_tensor`, but a large tensor is permuted in place, a part at a time; it must not be used elsewhere."""
    if tensor.numel() <= AT_ONCE or not tensor.is_contiguous():
        return permute_tensor(tensor, steps)
    for place, step in enumerate(steps):
        merged = tensor.flatten(step.axis, step.axis + step.span - 1)  # a view
        if merged.dim() == 1:
            return permute_tensor(tensor, steps[place:])
        index = step.index.to(tensor.device)
        along = 0 if step.axis > 0 else 1
        for part in torch.split(merged, max(1, merged.shape[along] * AT_ONCE // merged.numel()), along):
            part.copy_(part.index_select(step.axis, index))
    return tensor


class Permuted(Mapping[str, Tensor]):
    """The tensors of a network with its units in another order; each is made when it is asked for.

    Args:
        source: by model key; its tensors are not changed.
        ties: as for `gathers`.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        spec: PermutationSpec,
        permutations: Mapping[str, Tensor],
        ties: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.source, self.spec, self.permutations, self.ties = source, spec, permutations, ties

    @property
    def moves_nothing(self) -> bool:
        """Whether every unit keeps its place."""
        return all(is_identity(perm) for perm in self.permutations.values())

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.source[key]
        return permute_tensor(tensor, gathers(self.spec, self.permutations, key, tensor.shape, self.ties))

    def __contains__(self, key: object) -> bool:
        return key in self.source

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def apply(
    spec: PermutationSpec, permutations: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors permuted; those without permuted axes are returned as they are.

    Raises:
        ModelError: a permutation names a group that the spec lacks.
    """
    for name in permutations:
        if name not in spec.by_name:
            raise ModelError(f"permutations name a group {name!r} that the spec does not have")
    return {
        key: permute_tensor(tensor, gathers(spec, permutations, key, tensor.shape)) for key, tensor in tensors.items()
    }
