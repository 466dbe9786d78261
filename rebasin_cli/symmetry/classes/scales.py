"""The diagonals of a family: every part's units may be multiplied by D to the power of an exponent of its own.

Operations give linear equations between the exponents of the parts: equal where units pass, opposite where they are
summed over (that is parity, and solved by the union-find), a sum where they are multiplied, zero where a function is
not homogeneous. Magnitudes and signs have equations of their own: magnitudes over the rational numbers, signs over the
numbers modulo two. A basis of the solutions is a basis of the family's freedoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from rebasin_cli.freedom import Sign
from rebasin_cli.symmetry.classes.ledger import Ledger, Node, Product

Exponents = dict[Node, int]
"""By part, the power of D; parts that stay are absent."""


@dataclass(frozen=True, slots=True)
class Freedom:
    """One diagonal D, and its power at every part that it reaches."""

    sign: Sign
    exponents: Exponents


@dataclass(slots=True)
class Equations:
    """Those of one family, between its parts."""

    parts: list[Node]
    magnitudes: list[Mapping[Node, int]]
    signs: list[Mapping[Node, int]]


def equations_of(
    ledger: Ledger, parts: Sequence[Node], products: Sequence[Product], still: Sequence[Node] = ()
) -> Equations:
    """The equations between parts of one family.

    Args:
        products: those of the family.
        still: parts that are held besides what the ledger says.
    """
    inside = set(parts)
    found = Equations(list(parts), [{part: 1} for part in still], [{part: 1} for part in still])
    for nodes, equations in ((ledger.still, found.magnitudes), (ledger.unsigned, found.signs)):
        held = {ledger.find(node)[0] for node, _ in nodes} & inside
        equations.extend({part: 1} for part in sorted(held))
    for product in products:
        terms = [(product.out, -1), (product.left, 1), (product.right, product.power)]
        found.magnitudes.append(_sum(ledger, terms))
        found.signs.append(_sum(ledger, terms))
    for node, result, factor in ledger.even:
        if ledger.find(node)[0] in inside:
            found.magnitudes.append(_sum(ledger, [(result, -1), (node, factor)]))
            found.signs.append({ledger.find(result)[0]: 1})
    return found


def _sum(ledger: Ledger, terms: Sequence[tuple[Node, int]]) -> dict[Node, int]:
    """Coefficients by part; what is dual to its part has the opposite exponent."""
    found: dict[Node, int] = {}
    for node, factor in terms:
        part, parity = ledger.find(node)
        found[part] = found.get(part, 0) + (-factor if parity else factor)
    return found


def freedoms(equations: Equations) -> list[Freedom]:
    """A basis of what the equations allow: first all numbers but zero, then positive ones, then signs alone."""
    place = {part: number for number, part in enumerate(equations.parts)}
    count = len(place)
    magnitudes = _kernel([_row(equation, place) for equation in equations.magnitudes], count)
    odd = list(dict.fromkeys(_bits(_row(equation, place)) for equation in equations.signs))
    signs = _binary_kernel(odd, count)
    found: list[Freedom] = []
    spanned: list[int] = []
    for vector in magnitudes:
        bits = _bits(vector)
        whole = all(not (bits & equation).bit_count() % 2 for equation in odd)
        found.append(Freedom("any" if whole else "positive", _exponents(vector, equations.parts)))
        if whole:
            spanned.append(bits)
    for bits in signs:
        if not _in_span(bits, spanned):
            spanned.append(bits)
            vector = {number: 1 for number in range(count) if bits >> number & 1}
            found.append(Freedom("sign", _exponents(vector, equations.parts)))
    return sorted(found, key=lambda freedom: ("any", "positive", "sign").index(freedom.sign))


def _row(equation: Mapping[Node, int], place: Mapping[Node, int]) -> dict[int, int]:
    return {place[part]: factor for part, factor in equation.items()}


def _exponents(vector: Mapping[int, int], parts: Sequence[Node]) -> Exponents:
    return {parts[number]: power for number, power in sorted(vector.items()) if power}


Row = dict[int, Fraction]
"""A sparse vector by place."""


def _kernel(rows: Sequence[Mapping[int, int]], count: int) -> list[dict[int, int]]:
    """A basis, of whole numbers without common factor, of the vectors that all rows annihilate."""
    pivots: dict[int, Row] = {}
    for given in rows:
        row = {place: Fraction(number) for place, number in given.items() if number}
        for place in [place for place in row if place in pivots]:
            row = _minus(row, row[place], pivots[place])
        if not row:
            continue
        lead = min(row)
        row = {place: entry / row[lead] for place, entry in row.items()}
        for pivot in [pivot for pivot, other in pivots.items() if lead in other]:
            pivots[pivot] = _minus(pivots[pivot], pivots[pivot][lead], row)
        pivots[lead] = row
    found = []
    for free in (place for place in range(count) if place not in pivots):
        vector = {free: Fraction(1), **{pivot: -row[free] for pivot, row in pivots.items() if free in row}}
        scale = lcm(*(entry.denominator for entry in vector.values()))
        found.append({place: int(entry * scale) for place, entry in vector.items()})
    return found


def _minus(row: Row, factor: Fraction, other: Row) -> Row:
    found = dict(row)
    for place, entry in other.items():
        left = found.get(place, Fraction(0)) - factor * entry
        if left:
            found[place] = left
        else:
            found.pop(place, None)
    return found


def _bits(vector: Mapping[int, int]) -> int:
    """The vector modulo two, one bit for each entry."""
    return sum((entry & 1) << place for place, entry in vector.items())


def _binary_kernel(rows: Sequence[int], count: int) -> list[int]:
    """A basis of the vectors whose product with every row is even."""
    pivots: dict[int, int] = {}
    for row in rows:
        for pivot, other in pivots.items():
            if row >> pivot & 1:
                row ^= other
        if row:
            lead = (row & -row).bit_length() - 1
            pivots = {pivot: other ^ row if other >> lead & 1 else other for pivot, other in pivots.items()}
            pivots[lead] = row
    return [
        1 << free | sum(1 << pivot for pivot, row in pivots.items() if row >> free & 1)
        for free in range(count)
        if free not in pivots
    ]


def _in_span(vector: int, basis: Sequence[int]) -> bool:
    """Whether a vector modulo two is a sum of others."""
    reduced: list[int] = []
    for row in basis:
        for other in sorted(reduced, reverse=True):
            row = min(row, row ^ other)
        if row:
            reduced.append(row)
    for other in sorted(reduced, reverse=True):
        vector = min(vector, vector ^ other)
    return vector == 0
