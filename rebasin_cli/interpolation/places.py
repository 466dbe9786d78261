"""Which networks are evaluated: every point of every curve, and each checkpoint once however many curves meet in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rebasin_cli.interpolation.path import Line, Point


@dataclass(frozen=True, slots=True)
class Place:
    """One network on the way. `end` is the number of a checkpoint in `Places.ends`, or None between two.

    `between` holds the numbers of the two checkpoints that it lies between, for what is measured on them first.
    """

    name: str
    line: Line
    point: Point
    end: int | None
    between: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Places:
    """All networks, without repetition, and for each curve its points with the name of the network there."""

    all: tuple[Place, ...]
    curves: Mapping[str, tuple[tuple[Point, str], ...]]

    @property
    def by_name(self) -> dict[str, Place]:
        return {place.name: place for place in self.all}

    @property
    def ends(self) -> tuple[Place, ...]:
        return tuple(place for place in self.all if place.end is not None)

    @property
    def inner(self) -> tuple[Place, ...]:
        return tuple(place for place in self.all if place.end is None)


def lay_out(lines: Mapping[str, Line], points: Sequence[Point]) -> Places:
    """The networks at `points` on each of the lines, by curve name.

    Two curves that share a checkpoint (the very same mapping) share its evaluation, as do the two segments that meet in
    a checkpoint in the middle of a longer line.
    """
    numbers: dict[int, int] = {}
    for line in lines.values():
        for checkpoint in line.checkpoints:
            numbers.setdefault(id(checkpoint), len(numbers))
    found: dict[str, Place] = {}
    curves: dict[str, tuple[tuple[Point, str], ...]] = {}
    for curve, line in lines.items():
        row = []
        for point in points:
            number = point.end
            end = None if number is None else numbers[id(line.checkpoints[number])]
            segment = f", segment {point.segment + 1}" if len(line.checkpoints) > 2 else ""
            name = f"checkpoint {end}" if end is not None else f"{curve}{segment}, lam {point.lam!r}"
            left, right = line.checkpoints[point.segment], line.checkpoints[point.segment + 1]
            found.setdefault(name, Place(name, line, point, end, (numbers[id(left)], numbers[id(right)])))
            row.append((point, name))
        curves[curve] = tuple(row)
    return Places(tuple(sorted(found.values(), key=lambda place: place.end is None)), curves)
