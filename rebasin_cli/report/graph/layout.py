"""Positions: rows of nodes from top to bottom with few crossings, cut into columns where they are many.

Row of a node = the longest way to it. An edge that passes rows goes through one *bend* in each of them, and all such
edges of one node share their bends, so that what is read many times (a dense block's features) is one line.
Lengths are in pixels at the natural size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

from rebasin_cli.report.graph.model import Edge, Graph, Node

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


CHARACTER = 6.4
GAP, ROW_GAP, BEND, COLUMN_GAP = 18.0, 26.0, 10.0, 64.0
HEADER = 18.0
"""Room for a block's name above its first row."""
HEIGHTS = {"module": 42.0, "part": 42.0, "join": 22.0, "input": 24.0, "output": 24.0}
SHORTEST = 640.0
"""A column is not worth its turn below this height."""

ASPECT = 2.2


@dataclass(frozen=True, slots=True)
class Box:
    """Upper left corner and size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Line:
    """A link: from the bottom of one box to the top of another; `turn` is the x of the gutter between two columns."""

    upper: Box
    lower: Box
    groups: tuple[str, ...]
    arrow: bool
    turn: float | None


@dataclass(frozen=True)
class Layout:
    """Boxes by node, lines, frames of blocks (a block cut by a column has two), and the size of it all."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    frames: tuple[tuple[str, Box], ...]
    width: float
    height: float


def size_of(node: Node) -> tuple[float, float]:
    """Width and height of a node's box."""
    longest = max(len(node.label) * 1.06, len(node.detail) if node.kind not in ("join",) else 0)
    if node.kind in ("input", "output"):
        longest = len(node.label) + len(node.detail) + 2
    if node.kind == "join":
        longest = len(node.label) + len(node.detail)
    return longest * CHARACTER + 20, HEIGHTS[node.kind]


def layout_of(graph: Graph) -> Layout:
    """Lay the graph out."""
    rows = rows_of(graph)
    sizes = [(BEND, 0.0) if item.bend else size_of(graph.nodes[item.node]) for item in rows.items]
    middles = _middles(rows, [width for width, _ in sizes])
    heights = [max((sizes[item][1] for item in line), default=0.0) for line in rows.order]
    reach = _reach(graph, rows)
    headed = {first for first, _ in reach.values()}
    columns = _columns(rows, heights, list(reach.values()), max(middles, default=0.0) - min(middles, default=0.0) + 160)
    boxes: dict[int, Box] = {}
    left, tallest, column_of = 0.0, 0.0, {}
    for number, column in enumerate(columns):
        items = [item for row in column for item in rows.order[row]]
        first = min(middles[item] - sizes[item][0] / 2 for item in items)
        last = max(middles[item] + sizes[item][0] / 2 for item in items)
        y = 0.0
        for row in column:
            y += HEADER if row in headed and row != column[0] else 0.0
            for item in rows.order[row]:
                width, height = sizes[item]
                height = heights[row] if rows.items[item].bend else height
                x = left + middles[item] - first - width / 2
                boxes[item] = Box(x, y + (heights[row] - height) / 2, width, height)
            column_of[row] = number
            y += heights[row] + ROW_GAP
        tallest = max(tallest, y - ROW_GAP)
        left += last - first + COLUMN_GAP
    starts = {
        number: min(boxes[i].x for row in column for i in rows.order[row]) for number, column in enumerate(columns)
    }
    lines = _lines(rows, boxes, column_of, starts)
    nodes = tuple(boxes[place] for place in range(len(graph.nodes)))
    frames = _frames(graph, rows, nodes, column_of)
    named = (box.x + 18 + CHARACTER * (len(name) + len(graph.blocks[name]) + 2) for name, box in frames)
    return Layout(nodes, lines, frames, max(left - COLUMN_GAP, *named, 0.0), tallest)


def _middles(rows: Rows, widths: Sequence[float]) -> list[float]:
    """x of every item's middle: as near to its neighbours' as the room allows.

    What leads from node to node pulls harder than a bend does, so chains stand straight and lines go round them.
    """
    above, below = rows.neighbours()
    middles = [0.0] * len(rows.items)
    for line in rows.order:
        _place(line, dict.fromkeys(line, 0.0), widths, middles, rows.items)
    for sweep in range(24):
        both = sweep >= 16
        for line in rows.order if sweep % 2 == 0 else reversed(rows.order):
            aims = {}
            for item in line:
                upward, downward = above.get(item, []), below.get(item, [])
                aims[item] = _aim(item, upward + downward if both else downward if sweep % 2 else upward, middles, rows)
            _place(line, aims, widths, middles, rows.items)
    _straighten(rows, widths, middles)
    return middles


def _straighten(rows: Rows, widths: Sequence[float], middles: list[float]) -> None:
    """Lines through many rows become vertical where nothing stands in the way."""
    lines: dict[int, list[int]] = {}
    for place, item in enumerate(rows.items):
        if item.bend:
            lines.setdefault(item.node, []).append(place)
    beside: dict[int, tuple[int | None, int | None]] = {}
    for row in rows.order:
        for left, here, right in zip([None, *row], row, [*row[1:], None], strict=False):
            beside[here] = (left, right)
    for line in lines.values():
        for aim in (max(middles[bend] for bend in line), min(middles[bend] for bend in line)):
            if all(_free(aim, bend, beside[bend], widths, middles) for bend in line):
                for bend in line:
                    middles[bend] = aim
                break


def _free(
    aim: float, item: int, beside: tuple[int | None, int | None], widths: Sequence[float], middles: Sequence[float]
) -> bool:
    left, right = beside
    near = [(other, sign) for other, sign in ((left, 1.0), (right, -1.0)) if other is not None]
    return all(sign * (aim - middles[other]) >= (widths[other] + widths[item]) / 2 + GAP / 2 for other, sign in near)


def _aim(item: int, beside: Sequence[int], middles: Sequence[float], rows: Rows) -> float:
    alike = rows.items[item].bend
    pulls = [(middles[other], 10.0 if rows.items[other].bend == alike else 1.0) for other in beside]
    total = sum(weight for _, weight in pulls)
    return sum(middle * weight for middle, weight in pulls) / total if pulls else middles[item]


def _place(
    line: Sequence[int],
    aims: Mapping[int, float],
    widths: Sequence[float],
    middles: list[float],
    items: Sequence[Item],
) -> None:
    """Nearest places (least weighted squares) that keep the order and the gaps: pool adjacent violators."""
    offset, offsets = 0.0, []
    pools: list[tuple[float, float, int]] = []
    for place, item in enumerate(line):
        if place:
            offset += (widths[line[place - 1]] + widths[item]) / 2 + GAP
        offsets.append(offset)
        weight = 0.1 if items[item].bend else 3.0
        pool = (aims[item] - offset, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            value, other, count = pools.pop()
            total = other + pool[1]
            pool = ((value * other + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    spread = [value for value, _, count in pools for _ in range(count)]
    for item, value, moved in zip(line, spread, offsets, strict=True):
        middles[item] = value + moved


def _reach(graph: Graph, rows: Rows) -> dict[str, tuple[int, int]]:
    """First and last row of every block."""
    found: dict[str, list[int]] = {}
    for item in rows.items:
        block = "" if item.bend else graph.nodes[item.node].block
        if block:
            found.setdefault(block, []).append(item.row)
    return {block: (min(lines), max(lines)) for block, lines in found.items()}


def _columns(rows: Rows, heights: Sequence[float], reach: Sequence[tuple[int, int]], width: float) -> list[list[int]]:
    """Rows of each column: cut near equal heights, best between blocks and where few lines cross."""
    total = sum(heights) + ROW_GAP * len(heights)
    count = max(1, min(10, int(total / SHORTEST), round(sqrt(ASPECT * total / max(width, 160.0)))))
    crossing = [0] * len(heights)
    cut = [sum(first < row <= last for first, last in reach) for row in range(len(heights))]
    for link in rows.links:
        crossing[rows.items[link.lower].row] += 1
    starts, reached = [0.0], 0.0
    for height in heights[:-1]:
        reached += height + ROW_GAP
        starts.append(reached)
    cuts: list[int] = []
    for number in range(1, count):
        aim, slack = total * number / count, total / count * 0.3
        near = [row for row in range(1, len(heights)) if abs(starts[row] - aim) <= slack and row > max(cuts, default=0)]
        if near:
            cuts.append(min(near, key=lambda row: (cut[row], crossing[row], abs(starts[row] - aim))))
    edges = [0, *cuts, len(heights)]
    return [list(range(begin, end)) for begin, end in pairwise(edges)]


def _lines(
    rows: Rows, boxes: Mapping[int, Box], column_of: Mapping[int, int], starts: Mapping[int, float]
) -> tuple[Line, ...]:
    lines, turns, turned = [], dict[tuple[int, int], float](), dict.fromkeys(starts, 0)
    for link in rows.links:
        upper, lower = rows.items[link.upper], rows.items[link.lower]
        turn = None
        if column_of[upper.row] != column_of[lower.row]:
            column = column_of[lower.row]
            if (link.upper, column) not in turns:
                turns[link.upper, column] = starts[column] - 18 - 5 * (turned[column] % 7)
                turned[column] += 1
            turn = turns[link.upper, column]
        lines.append(Line(boxes[link.upper], boxes[link.lower], link.groups, not lower.bend, turn))
    return tuple(lines)


def _frames(
    graph: Graph, rows: Rows, boxes: Sequence[Box], column_of: Mapping[int, int]
) -> tuple[tuple[str, Box], ...]:
    held: dict[tuple[str, int], list[Box]] = {}
    for place, node in enumerate(graph.nodes):
        if node.block:
            held.setdefault((node.block, column_of[rows.items[place].row]), []).append(boxes[place])
    frames = []
    for (block, _), found in held.items():
        x, y = min(box.x for box in found) - 8, min(box.y for box in found) - 8 - HEADER
        right, bottom = max(box.x + box.width for box in found) + 8, max(box.y + box.height for box in found) + 7
        frames.append((block, Box(x, y, right - x, bottom - y)))
    return tuple(frames)
