"""Nodes into rows, and rows into an order with few crossings.

Row of a node = the longest way to it. An edge that passes rows goes through one *bend* in each of them, and all such
edges of one node share their bends, so that what is read many times (a dense block's features) is one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rebasin_cli.report.graph_model import Edge, Graph

SWEEPS = 6


@dataclass(slots=True)
class Item:
    """Something that takes room in a row: a node, or a bend of the edges that leave `node`."""

    node: int
    bend: bool
    row: int


@dataclass(frozen=True, slots=True)
class Link:
    """A piece of one or more edges between items of neighbouring rows, and the groups of the first of them."""

    upper: int
    lower: int
    groups: tuple[str, ...]


@dataclass
class Rows:
    """Items, the order of each row (indices of items), and the links between neighbouring rows."""

    items: list[Item] = field(default_factory=list)
    order: list[list[int]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def neighbours(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """Items above and below each item."""
        above: dict[int, list[int]] = {}
        below: dict[int, list[int]] = {}
        for link in self.links:
            above.setdefault(link.lower, []).append(link.upper)
            below.setdefault(link.upper, []).append(link.lower)
        return above, below


def rows_of(graph: Graph) -> Rows:
    """The rows, in their final order."""
    forward = [edge for edge in graph.edges if not edge.back]
    row = _rows(graph, forward)
    rows = Rows([Item(place, False, row[place]) for place in range(len(graph.nodes))])
    rows.order = [[] for _ in range(max(row, default=0) + 1)]
    for place, item in enumerate(rows.items):
        rows.order[item.row].append(place)
    _link(rows, row, forward)
    _untangle(rows)
    return rows


def _rows(graph: Graph, forward: Sequence[Edge]) -> list[int]:
    row = [0] * len(graph.nodes)
    for edge in sorted(forward, key=lambda edge: edge.source):
        row[edge.target] = max(row[edge.target], row[edge.source] + 1)
    fed = {edge.target for edge in forward}
    for place in range(len(row)):  # what nothing feeds stands just above its first reader
        readers = [row[edge.target] for edge in forward if edge.source == place]
        if place not in fed and readers:
            row[place] = min(readers) - 1
    return row


def _link(rows: Rows, row: Sequence[int], forward: Sequence[Edge]) -> None:
    """Bends and links; edges of one node to farther and farther rows lengthen the same line."""
    for source in dict.fromkeys(edge.source for edge in forward):
        leaving = sorted((edge for edge in forward if edge.source == source), key=lambda edge: row[edge.target])
        here, at = source, row[source]
        for edge in leaving:
            while at < row[edge.target] - 1:
                at += 1
                rows.items.append(Item(source, True, at))
                rows.order[at].append(len(rows.items) - 1)
                rows.links.append(Link(here, len(rows.items) - 1, edge.groups))
                here = len(rows.items) - 1
            rows.links.append(Link(here, edge.target, edge.groups))


def _untangle(rows: Rows) -> None:
    """Each item goes to the mean place of its neighbours, from above and from below in turn (Sugiyama 1981)."""
    above, below = rows.neighbours()
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for line in rows.order if down else reversed(rows.order):
            _sort(rows, line, above if down else below)


def _sort(rows: Rows, line: list[int], beside: Mapping[int, Sequence[int]]) -> None:
    place = {item: at / max(len(row), 1) for row in rows.order for at, item in enumerate(row)} if len(line) > 1 else {}
    if place:
        aim = {
            item: sum(place[other] for other in beside[item]) / len(beside[item]) if beside.get(item) else place[item]
            for item in line
        }
        line.sort(key=lambda item: aim[item])
