"""A matching problem prepared once: families, clusters, norms, and the true objective.

The objective is `sum over parameters <A, B permuted>`, in float64, read piece by piece.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from rebasin_cli.errors import ModelError, NumericalError
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Cluster, NotNested, build_clusters
from rebasin_cli.matching.families import GroupFamilies, build_families
from rebasin_cli.matching.products import PIECE, gathered
from rebasin_cli.matching.similarity import Similarity
from rebasin_cli.spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class Norms:
    """Squared norms of both sides over the parameters that count, and over each of them."""

    a: Mapping[str, float]
    b: Mapping[str, float]

    @property
    def scale(self) -> float:
        """`|A| |B|`: the objective in these units is the cosine."""
        return sqrt(sum(self.a.values()) * sum(self.b.values()))

    @property
    def bound(self) -> float:
        """The objective of a perfect match: `|A - B|` is 0 there and nowhere above."""
        return (sum(self.a.values()) + sum(self.b.values())) / 2

    def part(self, keys: Iterable[str]) -> float:
        """`|A| |B|` over some of the tensors."""
        chosen = set(keys)
        return sqrt(sum(self.a[k] for k in chosen) * sum(self.b[k] for k in chosen))

    def distance(self, objective: float) -> float:
        """`|A - B|` where `<A, B>` is the objective."""
        return sqrt(max(0.0, sum(self.a.values()) + sum(self.b.values()) - 2 * objective))


def norms_and_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor], keys: Iterable[str]) -> tuple[Norms, float]:
    """Squared norms of the named tensors, and `<A, B>` over them; each file is read once."""
    squares_a: dict[str, float] = {}
    squares_b: dict[str, float] = {}
    product = 0.0
    for key in keys:
        squares_a[key], squares_b[key], both = _moments(a[key], b[key])
        product += both
    return Norms(squares_a, squares_b), product


def inner_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor], key: str, arrangement: Arrangement) -> float:
    """`<A, B permuted>` of one tensor, float64."""
    if key not in arrangement.families.shapes:
        return _dot(a[key], b[key])
    shape = arrangement.families.shapes[key]
    one, other = a[key].detach().reshape(shape.sizes), b[key].detach().reshape(shape.sizes)
    gathers = [arrangement.gather((key, fold)) for fold in range(len(shape.sizes))]
    if all(gather is None for gather in gathers):
        return _dot(one, other)
    step = max(1, PIECE * shape.sizes[0] // max(1, one.numel()))
    total = 0.0
    for start in range(0, shape.sizes[0], step):
        stop = min(start + step, shape.sizes[0])
        first = gathers[0]
        piece = other[start:stop] if first is None else gathered(other, 0, first[start:stop])
        for fold, gather in enumerate(gathers[1:], start=1):
            if gather is not None:
                piece = gathered(piece, fold, gather)
        total += _dot(one[start:stop], piece)
    return total


def objective(a: Mapping[str, Tensor], b: Mapping[str, Tensor], keys: Iterable[str], arrangement: Arrangement) -> float:
    """The objective over the named tensors."""
    return sum(inner_product(a, b, key, arrangement) for key in keys)


def _moments(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """`<x, x>`, `<y, y>` and `<x, y>`, in the pieces of `_dot`, so that the last is what it gives."""
    flat, against = one.detach().reshape(-1), other.detach().reshape(-1)
    xx = yy = xy = 0.0
    for start in range(0, flat.numel(), PIECE // 4):
        x, y = (side[start : start + PIECE // 4].double() for side in (flat, against))
        xx, yy, xy = xx + float(torch.dot(x, x)), yy + float(torch.dot(y, y)), xy + float(torch.dot(x, y))
    return xx, yy, xy


def _dot(one: Tensor, other: Tensor) -> float:
    flat, against = one.detach().reshape(-1), other.detach().reshape(-1)
    total = 0.0
    for start in range(0, flat.numel(), PIECE // 4):
        piece = slice(start, start + PIECE // 4)
        total += float(torch.dot(flat[piece].double(), against[piece].double()))
    return total


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything about a pair that does not change during a search.

    Attributes:
        keys: the parameters that make up the objective.
        touched: for each cluster, in order, the parameters that it moves.
        identity: the objective with B as it is.
    """

    spec: PermutationSpec
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    keys: tuple[str, ...]
    families: GroupFamilies
    clusters: tuple[Cluster, ...]
    norms: Norms
    touched: tuple[tuple[str, ...], ...]
    identity: float
    budget: int
    device: torch.device

    def similarity(self, arrangement: Arrangement) -> Similarity:
        """A new set of similarities that follows `arrangement`."""
        return Similarity(self.a, self.b, arrangement, budget=self.budget, device=self.device)

    @property
    def full_pass(self) -> int:
        """Multiply-adds of all products of all clusters once: the unit in which work is counted."""
        return sum(map(self.work, self.clusters))

    @property
    def assignments(self) -> int:
        """The time of all assignments once, in multiply-adds: for unrelated weights, a third of the units' cube."""
        return sum(map(assignment_work, self.clusters))

    def work(self, cluster: Cluster) -> int:
        """Multiply-adds of all products of one cluster."""
        return product_work(self.families, cluster)

    def bytes_of(self, cluster: Cluster) -> int:
        """Bytes of a cluster's similarities, at the most."""
        return similarity_bytes(cluster)

    def value(self, arrangement: Arrangement) -> float:
        """The true objective of an arrangement."""
        return self.identity if arrangement.is_identity else objective(self.a, self.b, self.keys, arrangement)


def product_work(families: GroupFamilies, cluster: Cluster) -> int:
    """Multiply-adds of all products of one cluster."""
    total = 0
    for tile in cluster.tiles:
        sizes = families.shapes[tile.key].sizes
        total += 0 if tile.coupled else len(tile.positions) * prod(sizes) * tile.positions.size // sizes[tile.fold]
    return total


def assignment_work(cluster: Cluster) -> int:
    """The time of a cluster's assignment once, in multiply-adds; see `Problem.assignments`."""
    return sum(len(tile.positions) ** 3 // 3 for tile in cluster.tiles[:1])


def similarity_bytes(cluster: Cluster) -> int:
    """Bytes of a cluster's similarities, at the most."""
    cells = {tile.axes: len(tile.positions) for tile in cluster.tiles if not tile.coupled}
    return sum(8 * count**2 for count in cells.values())


class RealParts(Mapping[str, Tensor]):
    """Tensors of which the complex ones have a last axis more, of real and imaginary part: `<A, B>` is then real."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


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
    if any(a[key].is_complex() for key in counted if key in a):
        a, b = RealParts(a), RealParts(b)
    keys = tuple(key for key in a if key in counted and a[key].is_floating_point())
    for key in keys:
        if key not in b or b[key].shape != a[key].shape:
            seen = tuple(b[key].shape) if key in b else "nothing"
            raise ModelError(f"tensor {key!r}: A has shape {tuple(a[key].shape)}, B has {seen}")
    families, clusters = families_and_clusters(spec, {key: tuple(a[key].shape) for key in keys})
    sizes, identity = norms_and_product(a, b, keys)
    _check_finite(sizes, keys)
    if budget is None:
        budget = max(1 << 26, sum(a[key].nbytes for key in keys) // 4)
    touched = tuple(cluster.keys for cluster in clusters)
    return Problem(spec, a, b, keys, families, clusters, sizes, touched, identity, budget, torch.device(device))


def families_and_clusters(
    spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[GroupFamilies, tuple[Cluster, ...]]:
    """The families of a spec and their clusters; families not laid out alike in every block are single groups."""
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
