"""The best map of one group while everything else stands still, for every class.

What is maximised is `F = sum over sites <A, X B> - |X B|^2 / 2 + |B|^2 / 2`: minus half the squared distance to A, up
to a constant, and the plain inner product where X keeps lengths. X is M at a writer and `M^-T` at a dual site. With
`C = A Bᵀ` and `N = B Bᵀ` of a site's units, `F = <C, X> - <N, XᵀX - 1> / 2`. Per class:

- permutation: linear assignment of C; signed: of `|C|`, where the sign reaches;
- monomial: for every pair of units, the best factor s of `s p + q / s - s^2 u / 2 - v / (2 s^2)`, then the assignment;
- orthogonal: `U Vᵀ` of the singular value decomposition of C (Schönemann, "A generalized solution of the orthogonal
  Procrustes problem", 1966); where the ones vector stays, the same in its complement;
- planes: a complex number `r e^{iφ}` each; φ is in closed form for every r;
- linear: the best of the orthogonal map and of least squares on either side, then Gauss-Newton steps, within the bound
  of the condition number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.freedom import ScaleFreedom, SymmetryClass
from rebasin_cli.maps import (
    LARGEST_CONDITION,
    GroupMap,
    complement_of_ones,
    fixing_ones,
    plane_matrix,
    plane_units,
    rotation,
)
from rebasin_cli.matching.assignment import assign
from rebasin_cli.spec import AxisGroup

WIDEST = 30.0
"""Factors lie within `[1/WIDEST, WIDEST]`, so that the condition number of a diagonal is at most about 10^3."""
GRID = 13
"""Factors that are tried before Newton's iteration, evenly spaced in their logarithm."""
NEWTON = 8
TURNS = 5
"""Rounds over diagonals that share sites."""
ZOOM = 25
"""Factors that are tried at once for planes."""
GAUSS_NEWTON = 5
ENOUGH = 1e-7
"""Relative gain below which the iteration ends."""
RIDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides the map of a group at one of its sites.

    Attributes:
        place: the index of the site in the group.
        dual: as the site says.
        cross: `C = A Bᵀ`, float64 (n, n): A's units with B's.
        own: `N = B Bᵀ`, float64 (n, n); None for classes that keep lengths.
    """

    place: int
    dual: bool
    cross: Tensor
    own: Tensor | None = None


def keeps_lengths(group: AxisGroup) -> bool:
    """Whether every map of the class keeps the norm of what it moves."""
    if group.symmetry in (SymmetryClass.LINEAR, SymmetryClass.PLANES):
        return False
    return all(freedom.sign == "sign" for freedom in group.scales)


def value(group: AxisGroup, terms: Sequence[Terms], one: GroupMap) -> float:
    """F of a map."""
    return sum(float(_site_value(group, term, one)) for term in terms)


def _site_value(group: AxisGroup, term: Terms, one: GroupMap) -> Tensor:
    if one.matrix is not None:
        dual = one.dual
        assert dual is not None
        moved = dual if term.dual else one.matrix
        linear = (term.cross * moved).sum()
        if term.own is None:
            return linear
        return linear - ((moved @ term.own) * moved).sum() / 2 + term.own.diagonal().sum() / 2
    n = term.cross.shape[0]
    rows = torch.arange(n)
    perm = rows if one.perm is None else one.perm
    scale = scale_at(group, one, term.place)
    pairs = term.cross[rows, perm]
    if scale is None:
        return pairs.sum()
    linear = (pairs * scale).sum()
    if term.own is None:
        return linear
    own = term.own.diagonal()
    return linear - (own[perm] * scale.square()).sum() / 2 + own.sum() / 2


def scale_at(group: AxisGroup, one: GroupMap, place: int) -> Tensor | None:
    """The factors (n,) of an index map at one site; None for ones."""
    found: Tensor | None = None
    for freedom, scale in zip(group.scales, one.scales, strict=False):
        for index, power in freedom.sites:
            if index == place:
                factor = scale if power > 0 else 1 / scale
                found = factor if found is None else found * factor
    return found


def best_map(group: AxisGroup, terms: Sequence[Terms], now: GroupMap | None = None, *, rough: bool = False) -> GroupMap:
    """The map of the group's class with the largest F; for general linear maps, the best that is found.

    Args:
        now: the present map; a general linear map continues from it.
        rough: for general linear maps, the orthogonal one.
    """
    kind = group.symmetry
    if not kind.is_matrix:
        return _best_index_map(group, terms)
    cross = sum_of([term.cross for term in terms], group.size)
    if kind is SymmetryClass.ORTHOGONAL:
        return GroupMap(matrix=rotation(cross))
    if kind is SymmetryClass.ORTHOGONAL_ONES:
        return GroupMap(matrix=rotation_fixing_ones(cross))
    if kind is SymmetryClass.PLANES:
        return GroupMap(matrix=plane_matrix(_best_planes(group, terms), group))
    turned = GroupMap(matrix=rotation(cross))
    return turned if rough else _best_linear(group, terms, turned, now)


def rotation_fixing_ones(cross: Tensor) -> Tensor:
    """The orthogonal matrix X with the largest `<C, X>` that keeps the vector of ones."""
    basis = complement_of_ones(cross.shape[0])
    return fixing_ones(rotation(basis.T @ cross @ basis))


def sum_of(matrices: Sequence[Tensor], n: int) -> Tensor:
    """The sum of matrices (n, n)."""
    return sum(matrices, start=torch.zeros(n, n, dtype=torch.float64))


def _best_index_map(group: AxisGroup, terms: Sequence[Terms]) -> GroupMap:
    """The best permutation, each pair of units valued at its best factors.

    Diagonals that share a site are found in turn for every pair, while the others stand still.
    """
    n = group.size
    factors = [torch.ones(n, n, dtype=torch.float64) for _ in group.scales]
    listed = [place for freedom in group.scales for place, _ in freedom.sites]
    for _ in range(TURNS if len(listed) > len(set(listed)) else 1):
        for number, freedom in enumerate(group.scales):
            others = {term.place: _factor_at(group, factors, term.place, number) for term in terms}
            factors[number] = _best_factors(freedom, terms, others, n)
    score = torch.zeros(n, n, dtype=torch.float64)
    for term in terms:
        factor = _factor_at(group, factors, term.place)
        score = score + term.cross * factor
        if term.own is not None:
            score = score - term.own.diagonal() * (factor.square() - 1) / 2
    perm = torch.from_numpy(assign(score.numpy(), group.name))
    rows = torch.arange(n)
    return GroupMap(perm, tuple(factor[rows, perm] for factor in factors))


def _factor_at(group: AxisGroup, factors: Sequence[Tensor], place: int, without: int | None = None) -> Tensor:
    """What all diagonals, or all but one, multiply a site by: (n, n), for every pair of units."""
    found = torch.ones(group.size, group.size, dtype=torch.float64)
    for number, freedom in enumerate(group.scales):
        if number != without:
            for index, power in freedom.sites:
                if index == place:
                    found = found * (factors[number] if power > 0 else 1 / factors[number])
    return found


def _best_factors(freedom: ScaleFreedom, terms: Sequence[Terms], others: Mapping[int, Tensor], n: int) -> Tensor:
    """For every pair of units, the best factor s of a diagonal: (n, n).

    Its part of F is `s p + q / s - s^2 u / 2 - v / (2 s^2)`, up to a constant.

    Args:
        others: what the other diagonals multiply the sites by, by their places.
    """
    powers = dict(freedom.sites)
    p, q, u, v = (torch.zeros(n, n, dtype=torch.float64) for _ in range(4))
    for term in terms:
        power, other = powers.get(term.place), others[term.place]
        if power is None:
            continue
        own = torch.zeros_like(p) if term.own is None else term.own.diagonal() * other.square()
        if power > 0:
            p, u = p + term.cross * other, u + own
        else:
            q, v = q + term.cross * other, v + own
    if freedom.sign == "sign":
        return torch.where(p + q < 0, -1.0, 1.0).to(torch.float64)
    if freedom.sign == "positive":
        return _best_positive(p, q, u, v)[1]
    plus, minus = _best_positive(p, q, u, v), _best_positive(-p, -q, u, v)
    return torch.where(minus[0] > plus[0], -minus[1], plus[1])


def _best_positive(p: Tensor, q: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The largest `f(s) = s p + q / s - (s^2 - 1) u / 2 - (1 / s^2 - 1) v / 2` over positive s, and that s."""

    def f(t: Tensor) -> Tensor:
        s = t.exp()
        found: Tensor = s * p + q / s - (s.square() - 1) * u / 2 - (1 / s.square() - 1) * v / 2
        return found

    width = math.log(WIDEST)
    best, at = f(torch.zeros_like(p)), torch.zeros_like(p)
    for step in range(GRID):
        t = torch.full_like(p, -width + 2 * width * step / (GRID - 1))
        found = f(t)
        better = found > best
        best, at = torch.where(better, found, best), torch.where(better, t, at)
    for _ in range(NEWTON):
        s = at.exp()
        slope = s * p - q / s - s.square() * u + v / s.square()
        bend = s * p + q / s - 2 * s.square() * u - 2 * v / s.square()
        step_by = torch.where(bend < 0, -slope / bend.clamp(max=-1e-300), slope.sign() * 0.1).clamp(-0.5, 0.5)
        t = (at + step_by).clamp(-width, width)
        found = f(t)
        better = found > best
        best, at = torch.where(better, found, best), torch.where(better, t, at)
    return best, at.exp()


def _best_planes(group: AxisGroup, terms: Sequence[Terms]) -> Tensor:
    """The best complex numbers (n/2,).

    With `z = r e^{iφ}` at writers and `1 / conj(z) = e^{iφ} / r` at dual sites, F is
    `Re(e^{-iφ} (r p + q / r)) - r^2 u / 2 - v / (2 r^2)`, so φ is the angle of `r p + q / r`.
    """
    first, second = plane_units(group)
    count = len(first)
    p, q = (torch.zeros(count, dtype=torch.complex128) for _ in range(2))
    u, v = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    for term in terms:
        c, own = term.cross, term.own
        number = torch.complex(c[first, first] + c[second, second], c[second, first] - c[first, second])
        length = torch.zeros(count, dtype=torch.float64)
        if own is not None:
            length = own[first, first] + own[second, second]
        if term.dual:
            q, v = q + number, v + length
        else:
            p, u = p + number, u + length
    width = math.log(WIDEST)

    def f(t: Tensor) -> Tensor:
        r = t.exp()
        found: Tensor = (r * p + q / r).abs() - r.square() * u / 2 - v / (2 * r.square())
        return found

    at, reach = torch.zeros(count, dtype=torch.float64), width
    points = torch.linspace(-1, 1, ZOOM, dtype=torch.float64)[:, None]
    while reach > 1e-10:  # every round looks closer around the best factor so far
        tried = (at + reach * points).clamp(-width, width)
        at = tried.gather(0, f(tried).argmax(0)[None])[0]
        reach = 3 * reach / (ZOOM - 1)
    r = at.exp()
    return torch.polar(r, (r * p + q / r).angle())


def _best_linear(group: AxisGroup, terms: Sequence[Terms], turned: GroupMap, now: GroupMap | None) -> GroupMap:
    found = [turned, *_least_squares(group, terms)]
    if now is not None and now.matrix is not None:
        found.append(now)
    start = max(found, key=lambda one: value(group, terms, one))
    improved = _gauss_newton(group, terms, start)
    return max((start, improved), key=lambda one: value(group, terms, one))


def _least_squares(group: AxisGroup, terms: Sequence[Terms]) -> list[GroupMap]:
    """The maps that bring B's writers, or its readers, closest to A's regardless of the others: `C N^-1`."""
    found = []
    for dual in (False, True):
        chosen = [term for term in terms if term.dual == dual and term.own is not None]
        if not chosen:
            continue
        cross = sum_of([term.cross for term in chosen], group.size)
        own = sum_of([term.own for term in chosen if term.own is not None], group.size)
        ridge = RIDGE * float(own.diagonal().mean()) + 1e-300
        solved = torch.linalg.solve(own + ridge * torch.eye(group.size, dtype=own.dtype), cross.T).T
        bounded = bounded_condition(solved)
        if bounded is not None:
            found.append(GroupMap(matrix=torch.linalg.inv(bounded).T.contiguous() if dual else bounded))
    return found


def bounded_condition(matrix: Tensor, most: float = LARGEST_CONDITION) -> Tensor | None:
    """The matrix with its small singular values raised so that the condition number is at most `most`."""
    left, values, right = torch.linalg.svd(matrix)
    if not bool(torch.isfinite(values).all()) or float(values[0]) <= 0:
        return None
    bounded: Tensor = (left * values.clamp(min=float(values[0]) / most * 1.01)) @ right
    return bounded


def _gauss_newton(group: AxisGroup, terms: Sequence[Terms], start: GroupMap) -> GroupMap:
    """Improve a general linear map M by steps `(1 + X) M`, within the bound of the condition number.

    To first order the readers become `(1 - Xᵀ) B`. With C and N of the writers (1) and the readers (2) under the
    present map, the X of least squares solves Sylvester's equation `X N1 + N2 X = C1 - N1 - C2ᵀ + N2`.
    """
    best, reached = start, value(group, terms, start)
    for _ in range(GAUSS_NEWTON):
        matrix, dual = best.matrix, best.dual
        assert matrix is not None
        assert dual is not None
        crosses, owns = [torch.zeros_like(matrix) for _ in range(2)], [torch.zeros_like(matrix) for _ in range(2)]
        for term in terms:
            change = dual if term.dual else matrix
            crosses[term.dual] = crosses[term.dual] + term.cross @ change.T
            if term.own is not None:
                owns[term.dual] = owns[term.dual] + change @ term.own @ change.T
        step = _sylvester(owns[1], owns[0], crosses[0] - owns[0] - crosses[1].T + owns[1])
        before = reached
        for length in (1.0, 0.5, 0.25, 0.125):
            tried = bounded_condition(matrix + length * step @ matrix)
            found = None if tried is None else GroupMap(matrix=tried)
            if found is not None and value(group, terms, found) > reached:
                best, reached = found, value(group, terms, found)
                break
        if reached <= before + ENOUGH * abs(before):
            return best
    return best


def _sylvester(left: Tensor, right: Tensor, what: Tensor) -> Tensor:
    """X with `left X + X right = what`, for positive semidefinite matrices."""
    ours, one = torch.linalg.eigh(left)
    theirs, other = torch.linalg.eigh(right)
    sums = ours[:, None] + theirs[None, :]
    solved: Tensor = one @ ((one.T @ what @ other) / sums.clamp(min=RIDGE * float(sums.max()) + 1e-300)) @ other.T
    return solved
