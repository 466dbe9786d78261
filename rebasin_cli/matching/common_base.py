"""Whether two networks share a base: a test on the weights between hidden layers, unit by unit.

Independently trained networks order their units independently. Once the units of B are matched to those of A, their
weights still correlate for two reasons that say nothing of a common base: the search chooses the best of many matches,
and networks trained on like data learn like features. The test keeps both out:

* Selection: the search sees one random half of the entries of A's tensors and B in a shuffled order, so B's own order
  takes no part; the correlation is measured on the other half.
* Features: those are shared most by the first layer's filters and the last layer's rows, so only tensors of which at
  least two axes have groups are compared; and the hypothesis that is tested is not that there is no correlation, but
  that it is at most `LIMIT`. Networks trained apart have reached less than half of it (docs/comparing.md).

For unit i of A and unit j of B let `C[i, j]` be the correlation of their weights, centred over the units of their
group, and `G[i, j]` that of two units of A. If matched units correlate by exactly `r`, `b_i = r a_i + e_i`, and the
rests `e` do not depend on the pairing, then `sum_i (C - r G)[i, s(i)]` has the same distribution for the identity and
for a random permutation `s`: its rank among random ones gives a p-value for each group. A tensor counts in one group
alone, that of its latest axis, so that no entry is counted twice, and the p-values of the groups are combined as in
Stouffer et al. (1949), weighted by the square roots of their numbers of units.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

from rebasin_cli.matching.plan import Effort
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permuted, random
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

LIMIT = 0.8
"""Correlation of matched units that networks without a common base do not exceed."""
OUTER_LIMIT = 0.9
"""The same for networks that have no weights between hidden layers, so that those at inputs and outputs must do."""
FEWEST_UNITS = 8
"""Units of a group below which it is not tested: too much of each unit is lost with the mean of those held out."""
MOST_UNITS, MOST_COORDINATES = 128, 4096
"""Units of a group and entries of each in one tensor that are used; of more, a random sample."""
DRAWS, MANY_GROUPS, FEWER_DRAWS = 4999, 32, 999
"""Random permutations of each group, and of each where there are many groups."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GroupCorrelation:
    """How the weights of the units of one group correlate with those of the units at the same places of B."""

    name: str
    units: int
    correlation: float


@dataclass(frozen=True, slots=True)
class UnitTest:
    """Units of A against the units at the same places of B.

    Attributes:
        correlation: mean over the units.
        limit: the correlation that is tested.
        p_value: of the hypothesis that the correlation is at most `limit`.
        p_below: of the hypothesis that it is at least `limit`.
        p_order: of the hypothesis that the units at the same places have no relation at all.
        interior: whether the weights between hidden layers were compared; else those at inputs and outputs.
        held_out: whether the weights had no part in finding the places.
    """

    correlation: float
    limit: float
    p_value: float
    p_below: float
    p_order: float
    interior: bool
    held_out: bool
    units: int
    groups: tuple[GroupCorrelation, ...]


class HalfOf(Mapping[str, Tensor]):
    """Tensors of which a random half of the entries of the parameters is zero: those that are held out.

    Entries that differ in their first two indices are drawn one by one; kernels of convolutions as a whole.
    """

    def __init__(self, tensors: Mapping[str, Tensor], parameters: Collection[str], seed: int) -> None:
        self._tensors, self._parameters, self._seed = tensors, frozenset(parameters), seed

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        if key not in self._parameters or not tensor.is_floating_point():
            return tensor
        return tensor.masked_fill(self.held_out(key, tensor.shape), 0)

    def held_out(self, key: str, shape: Iterable[int]) -> Tensor:
        """Which entries are held out: bool, of the tensor's shape."""
        sizes = tuple(shape)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {key}".encode()))
        drawn = torch.rand(sizes[:2], generator=generator) < 0.5
        return drawn.reshape(*sizes[:2], *(1 for _ in sizes[2:])).expand(sizes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def units_in_order(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    seed: int = 0,
) -> UnitTest | None:
    """Test whether the units at the same places of A and B have the same origin; None where no group has enough units.

    Args:
        a, b: tensors by model key.
        parameters: the keys that count.
    """
    return _tested(spec, a, b, parameters, None, seed)


def units_matched(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    ties: Mapping[str, str] = MappingProxyType({}),
    effort: Effort = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> UnitTest | None:
    """The same for units that were matched on one half of the weights, whatever B's order, tested on the other half.

    Args:
        ties: as for `permutation.gathers`.
        effort, device: as for `search`.

    Raises:
        ModelError, NumericalError: as for `search`.
    """
    half = HalfOf(a, parameters, seed)
    shuffled = Permuted(b, spec, random(spec, seed + 1), ties)
    found = search(spec, half, shuffled, parameters=parameters, effort=effort, seed=seed, device=device)
    return _tested(spec, a, Permuted(shuffled, spec, found.permutations, ties), parameters, half, seed)


def _tested(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Collection[str],
    half: HalfOf | None,
    seed: int,
) -> UnitTest | None:
    for interior in (True, False):
        sums = _sums(spec, a, b, parameters, half, seed, interior=interior)
        if sums:
            return _evaluated(sums, LIMIT if interior else OUTER_LIMIT, seed, interior, half is not None)
    return None


class _Sums:
    """Products of the weights of the units of one group, summed over the tensors."""

    def __init__(self, group: AxisGroup, seed: int) -> None:
        self.name = group.name
        generator = torch.Generator().manual_seed(seed)
        self.units = torch.randperm(group.size, generator=generator)[:MOST_UNITS].sort().values
        n = len(self.units)
        self.with_b, self.with_a, self.of_b, self.of_a = (torch.zeros(n, n, dtype=torch.float64) for _ in range(4))
        self.square = torch.zeros(n, dtype=torch.float64)

    def add(self, site: Site, size: int, a: Tensor, b: Tensor, held_out: Tensor | None, seed: int) -> None:
        """Count the weights of one tensor: centred over the units, and scaled to one mean square in A and in B."""
        x, y = (_rows(side, site, size, self.units, seed).double() for side in (a, b))
        m = torch.ones_like(x) if held_out is None else _rows(held_out, site, size, self.units, seed).double()
        x = (x - (x * m).sum(0) / m.sum(0).clamp(min=1)) * m
        y = y - y.mean(0)
        scale_a, scale_b = (x.square().sum() / m.sum().clamp(min=1)).sqrt(), y.square().mean().sqrt()
        if not (scale_a > 0 and scale_b > 0):
            return
        x, y = x / scale_a, y / scale_b
        self.with_b += x @ y.T
        self.with_a += x @ x.T
        self.of_b += m @ y.square().T
        self.of_a += m @ x.square().T
        self.square += x.square().sum(1)

    def correlations(self) -> tuple[Matrix, Matrix]:
        """`C` and `G` of the module's text, each (n, n)."""
        own = self.square.sqrt().clamp(min=1e-12)[:, None]
        c = self.with_b / (own * self.of_b.sqrt().clamp(min=1e-12))
        g = self.with_a / (own * self.of_a.sqrt().clamp(min=1e-12))
        return c.numpy(), g.numpy()


def _rows(tensor: Tensor, site: Site, size: int, units: Tensor, seed: int) -> Tensor:
    """What a tensor holds of each of the chosen units: (units, entries), the same sample of entries for all of them."""
    merged = tensor.detach().flatten(site.axis, site.axis + site.span - 1) if site.span > 1 else tensor.detach()
    along = merged.movedim(site.axis, 0)
    rows = torch.tensor(site.rows(size))[units]
    entries = along.index_select(0, rows.reshape(-1)).reshape(len(units), -1)
    if entries.shape[1] <= MOST_COORDINATES:
        return entries
    generator = torch.Generator().manual_seed(seed)
    return entries[:, torch.randperm(entries.shape[1], generator=generator)[:MOST_COORDINATES]]


def _sums(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Collection[str],
    half: HalfOf | None,
    seed: int,
    *,
    interior: bool,
) -> list[_Sums]:
    place = {group.name: number for number, group in enumerate(spec.groups)}
    found: dict[str, _Sums] = {}
    for key in parameters:
        sites = _counted_sites(spec, key, place, interior=interior)
        if not sites or key not in a or key not in b or not a[key].is_floating_point():
            continue
        one, other = a[key], b[key]
        held_out = None if half is None else half.held_out(key, one.shape)
        for group, site in sites:
            sums = found.setdefault(group.name, _Sums(group, seed + place[group.name]))
            sums.add(site, group.size, one, other, held_out, seed)
    return [sums for sums in found.values() if bool((sums.square > 0).any())]


def _counted_sites(
    spec: PermutationSpec, key: str, place: Mapping[str, int], *, interior: bool
) -> list[tuple[AxisGroup, Site]]:
    """The sites of a tensor that count: those on its axis with the latest group, inside blocks where there are such."""
    pairs = [(group, site) for group, site in spec.sites_by_key.get(key, ()) if group.size > 1]
    axes = {site.axis for _, site in pairs}
    if not pairs or (interior and len(axes) < 2):
        return []
    latest = max(pairs, key=lambda pair: (place[pair[0].name], pair[1].axis))[1].axis
    here = [(group, site) for group, site in pairs if site.axis == latest]
    parents = {group.parent.group for group, _ in here if group.parent is not None}
    return [(g, site) for g, site in here if g.name not in parents and g.size >= FEWEST_UNITS]


def _evaluated(sums: list[_Sums], limit: float, seed: int, interior: bool, held_out: bool) -> UnitTest:
    draws = DRAWS if len(sums) <= MANY_GROUPS else FEWER_DRAWS
    rng = np.random.default_rng(seed)
    groups, ranks = [], []
    for one in sums:
        c, g = one.correlations()
        n = len(c)
        groups.append(GroupCorrelation(one.name, n, float(np.trace(c) / n)))
        others = rng.permuted(np.broadcast_to(np.arange(n), (draws, n)), axis=1)
        random_c, random_g = (matrix[np.arange(n), others].sum(axis=1) for matrix in (c, g))
        tested, random_tested = np.trace(c - limit * g), random_c - limit * random_g
        slack = 1e-12 * n
        above = (1 + np.count_nonzero(random_tested >= tested - slack)) / (draws + 1)
        below = (1 + np.count_nonzero(random_tested <= tested + slack)) / (draws + 1)
        order = (1 + np.count_nonzero(random_c >= np.trace(c) - slack)) / (draws + 1)
        ranks.append((above, below, order))
    units = np.array([group.units for group in groups], dtype=np.float64)
    above, below, order = (_combined(column, np.sqrt(units), draws) for column in np.array(ranks).T)
    mean = float(np.average([group.correlation for group in groups], weights=units))
    return UnitTest(mean, limit, above, below, order, interior, held_out, int(units.sum()), tuple(groups))


def _combined(p_values: Matrix, weights: Matrix, draws: int) -> float:
    """One p-value for those of independent groups (Stouffer's method); exact where there is one group."""
    if len(p_values) == 1:
        return float(p_values[0])
    z = -ndtri(np.minimum(p_values, 1 - 0.5 / (draws + 1)))
    return float(ndtr(-(weights @ z) / np.sqrt(weights @ weights)))
