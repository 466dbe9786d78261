"""A matching problem prepared once: families, clusters, norms, and the two sides restricted to what counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rebasin_cli.errors import ModelError, NumericalError
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Cluster, NotNested, build_clusters
from rebasin_cli.matching.families import Families, build_families
from rebasin_cli.matching.objective import Norms, norms_and_product, objective
from rebasin_cli.matching.similarity import Similarity
from rebasin_cli.spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything about a pair that does not change while permutations are looked for.

    Attributes:
        keys: the parameters that make up the objective.
        touched: for each cluster, in order, the parameters that it moves.
        identity: the objective with B as it is.
    """

    spec: PermutationSpec
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    keys: tuple[str, ...]
    families: Families
    clusters: tuple[Cluster, ...]
    norms: Norms
    touched: tuple[tuple[str, ...], ...]
    identity: float
    budget: int
    device: torch.device

    def similarity(self, arrangement: Arrangement) -> Similarity:
        """A fresh set of similarities that follows `arrangement`."""
        return Similarity(self.a, self.b, arrangement, budget=self.budget, device=self.device)

    @property
    def full_pass(self) -> int:
        """Multiply-adds of all products of all clusters once: the unit in which work is counted."""
        return sum(map(self.work, self.clusters))

    @property
    def assignments(self) -> int:
        """Multiply-adds that cost what all assignments do once: of unrelated weights, a third of the units' cube."""
        return sum(len(tile.positions) ** 3 // 3 for cluster in self.clusters for tile in cluster.tiles[:1])

    def work(self, cluster: Cluster) -> int:
        """Multiply-adds of all products of one cluster."""
        total = 0
        for tile in cluster.tiles:
            sizes = self.families.shapes[tile.key].sizes
            total += 0 if tile.coupled else len(tile.positions) * prod(sizes) * tile.positions.size // sizes[tile.fold]
        return total

    def bytes_of(self, cluster: Cluster) -> int:
        """Bytes of a cluster's similarities, at the most."""
        cells = {tile.axes: len(tile.positions) for tile in cluster.tiles if not tile.coupled}
        return sum(8 * count**2 for count in cells.values())

    def value(self, arrangement: Arrangement) -> float:
        """The true objective of an arrangement."""
        return self.identity if arrangement.is_identity else objective(self.a, self.b, self.keys, arrangement)


def prepare(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Collection[str],
    *,
    budget: int | None = None,
    device: torch.device | str = "cpu",
) -> Problem:
    """Check a pair against a spec and prepare it.

    Args:
        parameters: the keys that count in the objective; buffers only move along.
        budget: bytes of similarities kept between visits; by default a quarter of the parameters', at least 64 MiB.

    Raises:
        ModelError: a tensor is missing or has another shape than its twin.
        NumericalError: the objective is not finite.
    """
    counted = frozenset(parameters)
    keys = tuple(key for key in a if key in counted and a[key].is_floating_point())
    for key in keys:
        if key not in b or b[key].shape != a[key].shape:
            seen = tuple(b[key].shape) if key in b else "nothing"
            raise ModelError(f"tensor {key!r}: A has shape {tuple(a[key].shape)}, B has {seen}")
    families, clusters = _families_and_clusters(spec, {key: tuple(a[key].shape) for key in keys})
    sizes, identity = norms_and_product(a, b, keys)
    _check_finite(sizes, keys)
    if budget is None:
        budget = max(1 << 26, sum(a[key].nbytes for key in keys) // 4)
    touched = tuple(tuple(sorted({tile.key for tile in cluster.tiles})) for cluster in clusters)
    return Problem(spec, a, b, keys, families, clusters, sizes, touched, identity, budget, torch.device(device))


def _families_and_clusters(
    spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Families, tuple[Cluster, ...]]:
    """Families that turn out not to sit alike in every block are taken apart, with whatever is nested in them."""
    alone: set[str] = set()
    while True:
        families = build_families(spec, shapes, alone)
        try:
            return families, build_clusters(families)
        except NotNested as irregular:
            alone |= _with_descendants(spec, set(irregular.family.names))


def _with_descendants(spec: PermutationSpec, names: set[str]) -> set[str]:
    while True:
        more = {g.name for g in spec.groups if g.parent is not None and g.parent.group in names} - names
        if not more:
            return names
        names |= more


def _check_finite(sizes: Norms, keys: Collection[str]) -> None:
    for side, found in (("A", sizes.a), ("B", sizes.b)):
        for key in keys:
            if not found[key] < float("inf"):
                raise NumericalError(
                    f"non-finite similarity in {key}: the tensor of {side} holds NaN, infinite or huge numbers",
                    slug="non_finite_similarity",
                )
