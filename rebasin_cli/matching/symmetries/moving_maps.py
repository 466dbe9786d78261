"""Maps of all classes, learned at once by the loss of the network between A and B (see `matching.learning.moving`).

The map of a group that mixes units is `exp(X) M`: M is where learning began, and X its generator, which Adam moves
(Kingma and Ba, "Adam", 2015). X is skew for orthogonal maps, skew in the complement of the ones vector where that
stays, a complex number for every plane, any matrix for general linear maps; factors are `exp(x)` times where they
began. So B's function cannot change. Units of groups that are only permuted, and lie in no block, are matched through a
shadow of A as in the straight-through estimator (`matching.learning.straight_through`): the shadow follows the
gradients of the weights, and its projection are the permutations. Blocks (heads) stay where the search put them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.freedom import SymmetryClass
from rebasin_cli.maps import (
    LARGEST_CONDITION,
    Frame,
    Gauges,
    GroupMap,
    Mapped,
    Maps,
    complement_of_ones,
    frame_of,
    plane_matrix,
)
from rebasin_cli.matching.learning.moving import Found, Interpolated
from rebasin_cli.matching.symmetries.closed_forms import Terms, best_map
from rebasin_cli.matching.symmetries.descent import Cluster, clusters_of
from rebasin_cli.matching.symmetries.forms import Forms, unmoved
from rebasin_cli.spec import AxisGroup

ADAM_RATE = 0.1
"""Adam's step size for generators, in units of the rate of learning."""
SHADOW_RATE = 0.2
"""Length of a step of the shadow, in units of the rate and of the tensor's norm."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MATRIX, PERM, SCALE = "matrix/", "perm/", "scale/"


@dataclass(frozen=True, slots=True)
class Stack:
    """Generators of groups of one class and size, learned as one tensor."""

    kind: SymmetryClass
    size: int
    groups: tuple[AxisGroup, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor of generators."""
        count, n = len(self.groups), self.size
        if self.kind is SymmetryClass.PLANES:
            return (count, n // 2, 2)
        if self.kind is SymmetryClass.ORTHOGONAL_ONES:
            return (count, n - 1, n - 1)
        return (count, n, n)

    def exponentials(self, generators: Tensor) -> tuple[Tensor, Tensor]:
        """`exp(X)` and its transposed inverse for every group, (groups, n, n) each."""
        if self.kind is SymmetryClass.PLANES:
            length, angle = generators[..., 0], generators[..., 1]
            pairs = zip(self.groups, length, angle, strict=True)
            both = [
                (plane_matrix(torch.polar(r.exp(), a), g), plane_matrix(torch.polar((-r).exp(), a), g))
                for g, r, a in pairs
            ]
            return torch.stack([one for one, _ in both]), torch.stack([other for _, other in both])
        if self.kind is SymmetryClass.LINEAR:
            return torch.matrix_exp(generators), torch.matrix_exp(-generators.mT)
        turned = torch.matrix_exp(generators - generators.mT)
        if self.kind is SymmetryClass.ORTHOGONAL_ONES:
            n = self.size
            basis = complement_of_ones(n).to(turned.dtype)
            turned = basis @ turned @ basis.T + torch.full((n, n), 1 / n, dtype=turned.dtype)
        return turned, turned


def stacks_of(groups: Sequence[AxisGroup]) -> tuple[Stack, ...]:
    """The groups that mix units, by class, size and pairing."""
    found: dict[tuple[SymmetryClass, int, object], list[AxisGroup]] = defaultdict(list)
    for group in groups:
        if group.symmetry.is_matrix:
            found[group.symmetry, group.size, group.pairing].append(group)
    return tuple(Stack(kind, size, tuple(some)) for (kind, size, _), some in found.items())


def as_found(maps: Mapping[str, GroupMap]) -> Found:
    """Maps as named tensors."""
    found: dict[str, Tensor] = {}
    for name, one in maps.items():
        if one.matrix is not None:
            found[MATRIX + name] = one.matrix.detach().clone()
        elif one.perm is not None:
            found[PERM + name] = one.perm.clone()
            found.update({f"{SCALE}{number}/{name}": scale.detach().clone() for number, scale in enumerate(one.scales)})
    return found


def as_maps(found: Found) -> Maps:
    """What `as_found` made tensors of."""
    maps: Maps = {}
    scales: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in found.items():
        if name.startswith(SCALE):
            number, _, group = name.removeprefix(SCALE).partition("/")
            scales[group][int(number)] = tensor
    for name, tensor in found.items():
        if name.startswith(MATRIX):
            maps[name.removeprefix(MATRIX)] = GroupMap(matrix=tensor)
        elif name.startswith(PERM):
            group = name.removeprefix(PERM)
            own = scales.get(group, {})
            maps[group] = GroupMap(tensor, tuple(own[number] for number in sorted(own)))
    return maps


class MovingMaps:
    """Maps of all classes in learning.

    Args:
        forms: the pair in canonical form.
        a, b: tensors by key in float32, tied ones once.
        rate: the rate of learning.
        farthest: the largest distance to A that a result may have, over the parameters.
    """

    def __init__(
        self, forms: Forms, a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, rate: float, farthest: float
    ) -> None:
        self.forms, self.a, self.b, self.rate, self.farthest = forms, a, b, rate, farthest
        self.spec = forms.spec
        self.gauges = Gauges(self.spec, forms.gauges.mixing)
        self.frame = _float(frame_of(self.gauges, a.__getitem__, b.__getitem__))
        self.canonical_b = {key: self.gauges.canonical(key, b.__getitem__).float() for key in b if self._floats(key)}
        self.stacks = stacks_of(self.spec.groups)
        nested = {group.parent.group for group in self.spec.groups if group.parent is not None}
        self.matched = tuple(
            cluster
            for cluster in clusters_of(forms)
            if not cluster.group.symmetry.is_matrix and cluster.group.name not in nested
        )
        self.factors = tuple(
            (cluster.group.name, number)
            for cluster in self.matched
            for number, freedom in enumerate(cluster.group.scales)
            if freedom.sign != "sign"
        )
        self.shadowed = tuple(dict.fromkeys(key for cluster in self.matched for key in cluster.keys))
        self.begin({})

    def _floats(self, key: str) -> bool:
        return self.b[key].is_floating_point()

    def begin(self, found: Found) -> None:
        """Restart from a candidate, without momentum; a shadow begins at A."""
        self.base: Maps = {**unmoved(self.spec), **as_maps(found)}
        for name, one in self.base.items():
            if self.spec.by_name[name].symmetry.is_matrix and one.matrix is None and one.perm is not None:
                n = self.spec.by_name[name].size
                self.base[name] = GroupMap(matrix=torch.eye(n, dtype=torch.float64)[one.perm])
        self.generators = [torch.zeros(stack.shape, requires_grad=True) for stack in self.stacks]
        sizes = [self.spec.by_name[name].size for name, _ in self.factors]
        self.logarithms = [torch.zeros(size, requires_grad=True) for size in sizes]
        self.shadows = [self.forms.a[key].float().clone().requires_grad_(True) for key in self.shadowed]
        learned = self._adapted
        self.first = [torch.zeros_like(one) for one in learned]
        self.second = [torch.zeros_like(one) for one in learned]
        self.steps = 0

    @property
    def _adapted(self) -> list[Tensor]:
        """The leaves that Adam moves."""
        return [*self.generators, *self.logarithms]

    def _maps(self, dtype: torch.dtype = torch.float32) -> Maps:
        """The present maps, with gradients to the generators and logarithms."""
        maps = {
            name: GroupMap(one.perm, tuple(scale.to(dtype) for scale in one.scales))
            for name, one in self.base.items()
            if one.matrix is None
        }
        for stack, generators in zip(self.stacks, self.generators, strict=True):
            turned, inverted = stack.exponentials(generators.to(dtype))
            for group, plain, dual in zip(stack.groups, turned, inverted, strict=True):
                base = self.base[group.name]
                assert base.matrix is not None
                assert base.dual is not None
                maps[group.name] = GroupMap(
                    matrix=plain @ base.matrix.to(dtype), inverse_transposed=dual @ base.dual.to(dtype)
                )
        for (name, number), logarithm in zip(self.factors, self.logarithms, strict=True):
            one = maps[name]
            scales = list(one.scales)
            scales[number] = scales[number] * logarithm.to(dtype).exp()
            maps[name] = GroupMap(one.perm, tuple(scales))
        return maps

    def interpolated(self, lam: float) -> Interpolated:
        """`(1 - lam) A + lam B`, B under the present maps in A's gauge."""
        shadows = dict(zip(self.shadowed, self.shadows, strict=True))
        network = self._network(self._maps(), lam, shadows)
        return Interpolated(network, (*self._adapted, *self.shadows))

    def _network(self, maps: Maps, lam: float, shadows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network between; gradients at a shadowed weight also reach its shadow, which adds nothing."""
        mapped = _Differentiable(self, maps, shadows)
        found = {}
        for key, ours in self.a.items():
            mine = ours.detach()
            found[key] = torch.lerp(mine, mapped[key].to(mine.dtype), lam) if mine.is_floating_point() else mine
        return found

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Adam for the generators; a step of fixed length for each tensor of the shadow."""
        self.steps += 1
        adapted = self._adapted
        with torch.no_grad():
            for number, leaf in enumerate(adapted):
                gradient = gradients[number]
                if gradient is None:
                    continue
                first = self.first[number].mul_(BETA1).add_(gradient, alpha=1 - BETA1)
                second = self.second[number].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
                size = (second / (1 - BETA2**self.steps)).sqrt().add_(EPSILON)
                leaf.sub_(first / size, alpha=ADAM_RATE * self.rate / (1 - BETA1**self.steps))
            for shadow, gradient in zip(self.shadows, gradients[len(adapted) :], strict=True):
                length = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))
                if gradient is not None and length > 0.0:
                    reach = SHADOW_RATE * self.rate * float(torch.linalg.vector_norm(shadow))
                    shadow.sub_(gradient, alpha=reach / length)

    def slow(self, factor: float) -> None:
        """Take smaller steps from now on."""
        self.rate *= factor

    @torch.no_grad()
    def project(self) -> int:
        """Match the units of groups that are not mixed to the shadow; how many moved."""
        maps, shadows = self._maps(), dict(zip(self.shadowed, self.shadows, strict=True))
        moved = 0
        for cluster in self.matched:
            name, before = cluster.group.name, maps[cluster.group.name]
            found = best_map(cluster.group, self._terms(cluster, maps, shadows))
            assert found.perm is not None
            assert before.perm is not None
            other = found.perm != before.perm
            if bool(other.any()):
                moved += int(other.sum())
                base = self.base[name]
                scales = tuple(torch.where(other, new, old) for new, old in zip(found.scales, base.scales, strict=True))
                self.base[name] = GroupMap(found.perm, scales)
                for (group, _), logarithm in zip(self.factors, self.logarithms, strict=True):
                    if group == name:
                        logarithm.masked_fill_(other, 0.0)
                maps = self._maps()
        return moved

    def _terms(self, cluster: Cluster, maps: Maps, shadows: Mapping[str, Tensor]) -> list[Terms]:
        found = []
        mapped = _Differentiable(self, maps, {})
        for site, part in zip(cluster.sites, cluster.root.parts, strict=True):
            moved = mapped.canonical(site.key, without=(cluster.group.name, part.place))
            ours, theirs = (
                site.units(one.detach()).reshape(cluster.group.size, -1).double() for one in (shadows[site.key], moved)
            )
            own = None if cluster.root.keeps_lengths else theirs @ theirs.T
            found.append(Terms(part.place, part.dual, ours @ theirs.T, own))
        return found

    @torch.no_grad()
    def found(self) -> Found:
        """The present maps, with matrices in float64."""
        return as_found(self._maps(torch.float64))

    @torch.no_grad()
    def midpoint(self, found: Found) -> Mapping[str, Tensor]:
        """The network at lam = 1/2; without maps B is as it is."""
        maps = as_maps(found)
        mapped = Mapped(self.b, self.spec, maps, self._frame_for(maps))
        return {
            key: torch.lerp(ours, mapped[key].to(ours.dtype), 0.5) if ours.is_floating_point() else ours
            for key, ours in self.a.items()
        }

    def _frame_for(self, maps: Maps) -> Frame:
        gauges = Gauges(self.spec, [name for name, one in maps.items() if one.matrix is not None])
        return frame_of(gauges, self.a.__getitem__, self.b.__getitem__)

    @torch.no_grad()
    def allowed(self, found: Found) -> bool:
        """Whether the maps are well conditioned, and B no farther from A than it was."""
        maps = as_maps(found)
        if any(one.condition > LARGEST_CONDITION for one in maps.values()):
            return False
        mapped = Mapped(self.b, self.spec, maps, self._frame_for(maps))
        keys = [key for key in self.a if key in self.forms.a or key in self.gauges.gains]
        square = sum(float((self.a[key].double() - mapped[key].double()).square().sum()) for key in keys)
        return sqrt(square) <= self.farthest * (1 + 1e-6)

    def state(self) -> dict[str, Tensor]:
        """The base, the generators, Adam's moments and the shadows."""
        numbered = {
            "generator": self._adapted,
            "first": self.first,
            "second": self.second,
            "shadow": self.shadows,
        }
        lists = {
            f"{what}/{number}": one.detach().clone()
            for what, some in numbered.items()
            for number, one in enumerate(some)
        }
        base = {f"base/{name}": tensor for name, tensor in as_found(self.base).items()}
        return {
            **base,
            **lists,
            "steps": torch.tensor(self.steps),
            "rate": torch.tensor(self.rate, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved state."""
        self.begin({name.removeprefix("base/"): one for name, one in state.items() if name.startswith("base/")})
        self.steps, self.rate = int(state["steps"]), float(state["rate"])
        with torch.no_grad():
            for what, some in (("generator", self._adapted), ("shadow", self.shadows)):
                for number, leaf in enumerate(some):
                    leaf.copy_(state[f"{what}/{number}"])
        self.first = [state[f"first/{number}"].clone() for number in range(len(self.first))]
        self.second = [state[f"second/{number}"].clone() for number in range(len(self.second))]


def _float(frame: Frame) -> Frame:
    """A frame in float32."""
    return Frame(
        {key: gain.float() for key, gain in frame.gains.items()},
        {key: tuple(mean.float() for mean in means) for key, means in frame.means.items()},
        frame.kept,
    )


class _Differentiable:
    """B under maps in A's gauge, in float32, with gradients."""

    def __init__(self, moving: MovingMaps, maps: Maps, shadows: Mapping[str, Tensor]) -> None:
        self._moving, self._maps, self._shadows = moving, maps, shadows
        self._made: dict[str, Tensor] = {}

    def canonical(self, key: str, without: tuple[str, int] | None = None) -> Tensor:
        """In canonical form; one (group, site index) may be left out."""
        moving = self._moving
        moved = moving.forms.mapped(moving.canonical_b[key], key, self._maps, () if without is None else (without,))
        shadow = self._shadows.get(key)
        return moved if shadow is None else moved + (shadow - shadow.detach())

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._made:
            self._made[key] = self._restored(key)
        return self._made[key]

    def _restored(self, key: str) -> Tensor:
        moving = self._moving
        if key not in moving.canonical_b:
            return moving.b[key]
        if key in moving.gauges.gains:
            return moving.gauges.gain_as_stored(key, moving.frame).reshape(moving.b[key].shape)
        return moving.gauges.restored(key, self.canonical(key), moving.frame, self.__getitem__)
