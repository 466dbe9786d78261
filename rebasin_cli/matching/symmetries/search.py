"""The search over all classes: descents from several starts, and the best of their ends.

The starts, of which the first ones need nothing but weights:

- *identity*: B's own units, in A's gauge;
- *permutations*: the result of the search for permutations;
- *ends*: every group that mixes units from those tensors alone that no other group acts on (input and output layers);
- *activations*: these groups from the products of both networks' activations, see `streams`.

The last two fix the maps of some groups first, and bring the others to them by weights, before all move together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rebasin_cli.freedom import SymmetryClass
from rebasin_cli.maps import GroupMap, Maps, rotation
from rebasin_cli.matching.assignment import assign
from rebasin_cli.matching.result import Candidate, OnPass, PassReport
from rebasin_cli.matching.symmetries.closed_forms import rotation_fixing_ones
from rebasin_cli.matching.symmetries.descent import Cluster, Descent, clusters_of
from rebasin_cli.matching.symmetries.forms import Forms, as_class, unmoved
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import AxisGroup

TOLERANCE = 1e-4
FINE = 1e-6
"""The tolerance of the last passes, over groups with factors alone: those of neighbouring layers converge slowly, since
each visit moves one of them. Visits without rotations cost little."""
MOST_PASSES = 100
FIRST = 3
"""Passes from every start; the best alone continues."""
SETTLING = 2
"""Rounds over the other groups while the first ones stand still."""


@dataclass(frozen=True, slots=True)
class SymmetryStart:
    """Where a descent begins.

    Attributes:
        maps: of some groups or all; the others begin with the identity.
        held: these maps decide first; the other groups are brought to them before they move.
    """

    name: str
    maps: Maps
    held: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of the best descent.

    Attributes:
        value, identity: the objective at the end, and of B's own units in A's gauge.
        per_pass: the objective after every pass of this descent.
        ends: where every start had come when it was left, and while its own maps were held, by name.
    """

    maps: Maps
    start: str
    value: float
    identity: float
    per_pass: tuple[float, ...]
    converged: bool
    timed_out: bool
    candidates: tuple[Candidate, ...]
    ends: Mapping[str, Maps] = field(default_factory=dict)


def search_maps(
    forms: Forms,
    starts: Sequence[SymmetryStart],
    *,
    seed: int = 0,
    max_passes: int | None = None,
    time_limit: float | None = None,
    on_pass: OnPass | None = None,
) -> Ended:
    """Descend from every start for a few passes, and from the best to the end."""
    began = time.monotonic()
    clusters = clusters_of(forms)
    own = unmoved(forms.spec)
    identity = forms.value(own)
    tried: list[_Tried] = []

    def out_of_time() -> bool:
        return time_limit is not None and time.monotonic() - began >= time_limit

    def follow(one: _Tried, most: int) -> None:
        since = time.monotonic()
        report = _reporter(one.name, began, clusters, on_pass, len(one.reached))
        generator = torch.Generator().manual_seed(seed + len(one.reached))
        one.converged, reached = one.descent.passes(most, TOLERANCE, generator, report, out_of_time)
        one.reached += reached
        one.value = forms.value(one.descent.maps)
        one.seconds += time.monotonic() - since

    def refine(one: _Tried) -> None:
        scaled = [cluster for cluster in clusters if cluster.group.scales and not any(cluster.root.blocks)]
        fine = Descent(forms, scaled, one.descent.maps)
        generator = torch.Generator().manual_seed(seed)
        fine.passes(MOST_PASSES, FINE, generator, None, out_of_time)
        one.descent.maps.update(fine.maps)
        one.value = forms.value(one.descent.maps)
        one.reached[-1] = one.value

    most, ends = max_passes or MOST_PASSES, dict[str, Maps]()
    for start in starts:
        if out_of_time():
            break
        one = _Tried(start.name, Descent(forms, clusters, {**own, **start.maps}))
        if start.held:
            settle(one.descent, clusters, frozenset(start.maps))
            ends[f"{start.name}, held"] = dict(one.descent.maps)
        follow(one, min(FIRST, most))
        tried.append(one)
    best = max(tried, key=lambda one: one.value, default=None)
    if best is not None and not best.converged and len(best.reached) < most:
        follow(best, most - len(best.reached))
    if best is not None and best.converged:
        refine(best)
    candidates = tuple(
        Candidate(one.name, seed, one.value, len(one.reached), one.converged, one.seconds) for one in tried
    )
    ends.update({one.name: one.descent.maps for one in tried})
    late = len(tried) < len(starts) or (best is not None and not best.converged and out_of_time())
    if best is None or best.value <= identity:
        return Ended(
            own, "identity", identity, identity, (), best is not None and best.converged, late, candidates, ends
        )
    per_pass = tuple(best.reached)
    return Ended(best.descent.maps, best.name, best.value, identity, per_pass, best.converged, late, candidates, ends)


@dataclass
class _Tried:
    """A descent from one start, as far as it has come."""

    name: str
    descent: Descent
    reached: list[float] = field(default_factory=list)
    converged: bool = False
    value: float = 0.0
    seconds: float = 0.0


def settle(descent: Descent, clusters: Sequence[Cluster], held: frozenset[str]) -> None:
    """Bring the other groups to those that are held."""
    others = [cluster for cluster in clusters if cluster.group.name not in held]
    for _ in range(SETTLING):
        if sum(descent.visit(cluster) for cluster in others) <= TOLERANCE * descent.forms.scale:
            return


def _reporter(
    name: str, began: float, clusters: Sequence[Cluster], on_pass: OnPass | None, done: int
) -> Callable[[int, float], None] | None:
    if on_pass is None:
        return None

    def report(number: int, value: float) -> None:
        words = f"{name}, pass {done + number}, objective {value:.5g}"
        on_pass(PassReport(name, done + number, len(clusters), 0, value, time.monotonic() - began, None, words))

    return report


def from_permutations(forms: Forms, permutations: Permutations) -> SymmetryStart:
    """The start at the result of the search for permutations."""
    groups = forms.spec.by_name
    maps = {name: as_class(groups[name], perm) for name, perm in permutations.items() if name in groups}
    return SymmetryStart("permutations", maps)


def from_ends(forms: Forms) -> SymmetryStart | None:
    """The start at the tensors that a single group acts on; None where no mixing group has any."""
    clusters = [cluster for cluster in clusters_of(forms) if cluster.group.symmetry.is_matrix]
    descent = Descent(forms, clusters, unmoved(forms.spec))
    held: Maps = {}
    for cluster in clusters:
        name = cluster.group.name
        keys = [key for key in cluster.keys if {group.name for group, _ in forms.sites[key]} == {name}]
        if keys:
            descent.visit(cluster, keys=keys)
            held[name] = descent.maps[name]
    return SymmetryStart("ends", held, held=True) if held else None


def from_products(forms: Forms, products: Mapping[str, Tensor], name: str) -> SymmetryStart:
    """The start at activations.

    Args:
        products: by group, float64 (n, n): the sum of products of A's units with B's.
    """
    groups = forms.spec.by_name
    return SymmetryStart(name, {one: _mapped(groups[one], cross) for one, cross in products.items()}, held=True)


def _mapped(group: AxisGroup, cross: Tensor) -> GroupMap:
    """The map of a group with the largest inner product with a matrix; for general linear maps, the orthogonal one."""
    if group.symmetry is SymmetryClass.ORTHOGONAL_ONES:
        return GroupMap(matrix=rotation_fixing_ones(cross))
    if group.symmetry.is_matrix and group.symmetry is not SymmetryClass.PLANES:
        return GroupMap(matrix=rotation(cross))
    perm = torch.from_numpy(assign((cross.abs() if group.scales else cross).numpy(), group.name))
    return as_class(group, perm)
