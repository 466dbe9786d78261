"""The map of one group: its data, its algebra, random elements of every class, and smaller classes.

An *index map* gathers and scales: `new[i] = scale[i] * old[perm[i]]`. A *matrix map* is `new = matrix @ old`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from rebasin_cli.freedom import ScaleFreedom, SymmetryClass
from rebasin_cli.permutation import compose as compose_gathers
from rebasin_cli.permutation import invert, is_identity
from rebasin_cli.spec import AxisGroup, PermutationSpec

LARGEST_CONDITION = 1e3
"""Bound of the condition number of a general linear map."""


@dataclass(frozen=True, eq=False)
class GroupMap:
    """The map of one group: an index map, or a matrix map if `matrix` is there.

    Attributes:
        perm: int64 (n,), gather meaning; None for the identity.
        scales: float64 (n,), one for each `AxisGroup.scales`, by the units' new places; () for ones.
        matrix: float64 (n, n).
        inverse_transposed: of the matrix, where it is known; see `dual`.
    """

    perm: Tensor | None = None
    scales: tuple[Tensor, ...] = ()
    matrix: Tensor | None = None
    inverse_transposed: Tensor | None = None

    @property
    def moves(self) -> bool:
        """Whether anything changes."""
        if self.matrix is not None:
            return True
        moved = self.perm is not None and not is_identity(self.perm)
        return moved or any(bool((scale != 1).any()) for scale in self.scales)

    @property
    def exact(self) -> bool:
        """Whether it only moves numbers and changes their signs, so that nothing is rounded."""
        return self.matrix is None and all(bool((scale.abs() == 1).all()) for scale in self.scales)

    @property
    def condition(self) -> float:
        """Ratio of the largest and the smallest singular value; 1 for rotations, permutations and signs."""
        if self.matrix is not None:
            values = torch.linalg.svdvals(self.matrix)
            return float(values[0] / values[-1])
        return max((float(scale.abs().max() / scale.abs().min()) for scale in self.scales), default=1.0)

    @cached_property
    def dual(self) -> Tensor | None:
        """`M^-T` of a matrix map."""
        if self.matrix is None or self.inverse_transposed is not None:
            return self.inverse_transposed
        found: Tensor = torch.linalg.inv(self.matrix).T.contiguous()
        return found


Maps = dict[str, GroupMap]
"""Map by group name; an absent group is not changed."""
IDENTITY = GroupMap()


def from_permutations(permutations: Mapping[str, Tensor]) -> Maps:
    """Permutations as maps."""
    return {name: GroupMap(perm) for name, perm in permutations.items()}


def inverse(one: GroupMap) -> GroupMap:
    """The map that undoes this one."""
    if one.matrix is not None:
        return GroupMap(matrix=torch.linalg.inv(one.matrix))
    if one.perm is None:
        return GroupMap(None, tuple(1 / scale for scale in one.scales))
    back = invert(one.perm)
    return GroupMap(back, tuple(1 / scale[back] for scale in one.scales))


def composed(first: GroupMap, then: GroupMap) -> GroupMap:
    """The one map that equals two of one group in turn; both are index maps, or both are matrix maps.

    Raises:
        ValueError: they are not.
    """
    if first.matrix is not None and then.matrix is not None:
        return GroupMap(matrix=then.matrix @ first.matrix)
    if first.matrix is not None or then.matrix is not None:
        if not (first.moves and then.moves):
            return then if then.moves else first
        raise ValueError("an index map and a matrix map of one group are not composed")
    scales = tuple(
        (one if then.perm is None else one[then.perm]) * other
        for one, other in zip(*_padded(first.scales, then.scales), strict=True)
    )
    if first.perm is None or then.perm is None:
        return GroupMap(then.perm if first.perm is None else first.perm, scales)
    return GroupMap(compose_gathers(first.perm, then.perm), scales)


def _padded(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Both lists of scales, an empty one filled with ones."""
    return (
        one or tuple(torch.ones_like(scale) for scale in other),
        other or tuple(torch.ones_like(scale) for scale in one),
    )


def random_map(group: AxisGroup, generator: torch.Generator, widest: float = 3.0) -> GroupMap:
    """A random element of the group's class; scales and singular values lie within `[1/widest, widest]`."""
    n, kind = group.size, group.symmetry
    if not kind.is_matrix:
        perm = torch.randperm(n, generator=generator)
        return GroupMap(perm, tuple(_random_scale(one, n, generator, widest) for one in group.scales))
    if kind is SymmetryClass.PLANES:
        length = _within(widest, n // 2, generator)
        turn = torch.rand(n // 2, generator=generator, dtype=torch.float64) * 2 * torch.pi
        return GroupMap(matrix=plane_matrix(torch.polar(length, turn), group))
    if kind is SymmetryClass.ORTHOGONAL_ONES:
        inside = rotation(torch.randn(n - 1, n - 1, generator=generator, dtype=torch.float64))
        return GroupMap(matrix=fixing_ones(inside))
    turned = rotation(torch.randn(n, n, generator=generator, dtype=torch.float64))
    if kind is SymmetryClass.LINEAR:
        other = rotation(torch.randn(n, n, generator=generator, dtype=torch.float64))
        turned = (turned * _within(widest, n, generator)) @ other
    return GroupMap(matrix=turned)


def random_maps(spec: PermutationSpec, seed: int) -> Maps:
    """A random element of its class for every group of the spec."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: random_map(group, generator) for group in spec.groups}


def _within(widest: float, count: int, generator: torch.Generator) -> Tensor:
    exponents = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
    return torch.exp(exponents * math.log(widest))


def _random_scale(freedom: ScaleFreedom, n: int, generator: torch.Generator, widest: float) -> Tensor:
    size = torch.ones(n, dtype=torch.float64) if freedom.sign == "sign" else _within(widest, n, generator)
    if freedom.sign == "positive":
        return size
    return torch.where(torch.rand(n, generator=generator) < 0.5, size, -size)


def rotation(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a square one: `U Vᵀ` of its singular value decomposition."""
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest


@lru_cache(maxsize=8)
def complement_of_ones(n: int) -> Tensor:
    """An orthonormal basis, float64 (n, n - 1), of the vectors whose numbers sum to zero (Helmert's)."""
    place = torch.arange(1, n, dtype=torch.float64)
    above = (torch.arange(n)[:, None] < torch.arange(1, n)[None, :]).to(torch.float64)
    basis = above - torch.diag(place, -1)[:, : n - 1]
    unit: Tensor = basis / (place * (place + 1)).sqrt()
    return unit


def fixing_ones(inside: Tensor) -> Tensor:
    """The orthogonal (n, n) that keeps the vector of ones and is `inside`, (n-1, n-1), in its complement."""
    n = inside.shape[0] + 1
    basis = complement_of_ones(n).to(inside.dtype)
    return basis @ inside @ basis.T + torch.full((n, n), 1 / n, dtype=inside.dtype)


def plane_units(group: AxisGroup) -> tuple[Tensor, Tensor]:
    """The first and the second unit of every plane, int64 (n/2,) each."""
    place = torch.arange(group.size // 2)
    if group.pairing == "adjacent":
        return 2 * place, 2 * place + 1
    return place, place + group.size // 2


def plane_matrix(numbers: Tensor, group: AxisGroup) -> Tensor:
    """The matrix (n, n) that multiplies the planes of a group by complex numbers (n/2,)."""
    first, second = plane_units(group)
    matrix = torch.zeros(group.size, group.size, dtype=numbers.real.dtype)
    at = (torch.cat([first, first, second, second]), torch.cat([first, second, first, second]))
    return matrix.index_put(at, torch.cat([numbers.real, -numbers.imag, numbers.imag, numbers.real]))


def plane_numbers(matrix: Tensor, group: AxisGroup) -> Tensor:
    """The complex numbers (n/2,) of a matrix that `plane_matrix` made; of any other, of the nearest such matrix."""
    first, second = plane_units(group)
    real = matrix[first, first] + matrix[second, second]
    imaginary = matrix[second, first] - matrix[first, second]
    return torch.complex(real, imaginary) / 2


def limited(group: AxisGroup, most: SymmetryClass) -> AxisGroup:
    """The group with the maps of its class that are permutations (`PERMUTATION`) or signed permutations (`SIGNED`).

    Planes have no permutations: what they allow is then nothing, and the caller leaves the group out.
    """
    if most is SymmetryClass.PERMUTATION or group.symmetry in (SymmetryClass.PERMUTATION, SymmetryClass.PLANES):
        return replace(group.permuted(), class_reason=group.class_reason)
    if most is not SymmetryClass.SIGNED:
        raise ValueError(f"limited to {most}")
    if group.symmetry is SymmetryClass.ORTHOGONAL_ONES:
        return replace(group.permuted(), class_reason=group.class_reason)
    if group.symmetry.is_matrix:  # a gain keeps its sign where the units on both its sides change theirs
        gains = {gauge.scale for gauge in group.gauges}
        sites = tuple((place, 1) for place, site in enumerate(group.sites) if site.key not in gains)
        freedoms: tuple[ScaleFreedom, ...] = (ScaleFreedom("sign", sites),)
    else:
        freedoms = tuple(ScaleFreedom("sign", one.sites) for one in group.scales if one.sign != "positive")
    if not freedoms:
        return replace(group.permuted(), class_reason=group.class_reason)
    return replace(group, symmetry=SymmetryClass.SIGNED, gauges=(), centred=False, scales=freedoms)


def limited_spec(spec: PermutationSpec, most: SymmetryClass, names: Collection[str] | None = None) -> PermutationSpec:
    """The spec with these groups (by default all) `limited`; groups of planes among them are left out."""
    kept = [
        group for group in spec.groups if group.symmetry.permutable or (names is not None and group.name not in names)
    ]
    return PermutationSpec(
        tuple(limited(group, most) if names is None or group.name in names else group for group in kept), spec.pinned
    )
