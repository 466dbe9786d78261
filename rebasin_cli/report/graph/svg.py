"""The picture as SVG: one file that any browser shows, light or dark, with details under the pointer.

A node's upper edge has the colours of the groups that it reads, its lower edge those that it makes; lines carry the
colour of the group whose units travel along them. Grey keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

from rebasin_cli.report.graph.layout import Box, Layout, Line, layout_of
from rebasin_cli.report.graph.model import PINNED, Graph, Node, ShownGroup
from rebasin_cli.report.text import counted, printable

MARGIN, TOP, LEGEND_ROW = 24.0, 104.0, 18.0
SUFFIX = ".svg"
MOST_GROUPS = 48
TURN = 34.0
"""A line from the column before comes in so far above the node, clear of a block's frame."""
STYLE = """
text { font-family: ui-sans-serif, system-ui, 'DejaVu Sans', Arial, sans-serif; font-size: 11px; fill: #1d2430 }
.name { font-weight: 600 } .title { font-size: 17px; font-weight: 600 } .detail, .note { fill: #5b6472 }
.frame-name { font-size: 10px; fill: #5b6472 } .page { fill: #ffffff } .box { fill: #ffffff; stroke: #aeb6c2 }
.frame { fill: #f3f5f8; stroke: #d9dee6 } .join { fill: #e6eaf0; stroke: #aeb6c2 } .end { fill: #d9dee6 }
@media (prefers-color-scheme: dark) {
text { fill: #e8ebf0 } .detail, .note, .frame-name { fill: #a3acba } .page { fill: #15181d }
.box { fill: #262b33; stroke: #525b69 } .frame { fill: #1c2027; stroke: #333a45 }
.join { fill: #333a45; stroke: #525b69 } .end { fill: #3d4552 }
}
"""


def draw(graph: Graph) -> str:
    """The whole document; the same text for the same graph."""
    layout = layout_of(graph)
    shown = graph.groups[:MOST_GROUPS]
    legend, below = _legend(graph, shown)
    left = MARGIN + legend
    width = max(left + layout.width, MARGIN + 10.5 * len(graph.title)) + MARGIN
    height = max(TOP + layout.height, below) + MARGIN
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(width)}" height="{_n(height)}" '
        f'viewBox="0 0 {_n(width)} {_n(height)}" role="img">',
        f"<title>{_text(graph.title)}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{_n(width)}" height="{_n(height)}"/>',
        *_key(graph, shown),
        f'<g transform="translate({_n(left)} {_n(TOP)})">',
        *(_frame(box) for _, box in layout.frames),
        *(part for line in layout.lines for part in _line(graph, line)),
        *_back(graph, layout),
        *(_frame_name(graph, block, box) for block, box in layout.frames),
        *(part for node, box in zip(graph.nodes, layout.boxes, strict=True) for part in _node(graph, node, box)),
        "</g></svg>",
    ]
    return "\n".join(body) + "\n"


def _legend(graph: Graph, shown: Iterable[ShownGroup]) -> tuple[float, float]:
    """Width of the legend's column, and where it ends."""
    longest = max((len(_words(group)) for group in shown), default=10)
    rows = sum(2 for _ in shown) + 5
    return max(230.0, longest * 6.0 + 30), TOP + rows * LEGEND_ROW


def _words(group: ShownGroup) -> str:
    words = f"{counted(group.size, 'unit')}, {counted(group.nodes, 'node')}"
    if group.nested:
        words += f"; inside: {counted(group.nested, 'group')} of {counted(group.nested_units, 'unit')}"
    return words if len(words) > len(group.name) else group.name


def _key(graph: Graph, shown: tuple[ShownGroup, ...]) -> Iterator[str]:
    units = sum(group.size + group.nested_units for group in graph.groups)
    summary = f"{counted(len(graph.groups), 'group')} of {counted(units, 'unit')}: one colour moves together"
    yield f'<text class="title" x="{_n(MARGIN)}" y="34">{_text(graph.title)}</text>'
    yield f'<text class="note" x="{_n(MARGIN)}" y="52">{summary}</text>'
    y = TOP - 16
    for group in shown:
        words = f"{counted(group.size, 'unit')}, {counted(group.nodes, 'node')}"
        if group.nested:
            words += f"; inside: {counted(group.nested, 'group')} of {counted(group.nested_units, 'unit')}"
        yield _swatch(y, group.colour)
        yield f'<text class="name" x="{_n(MARGIN + 20)}" y="{_n(y)}">{_text(group.name)}</text>'
        yield f'<text class="note" x="{_n(MARGIN + 20)}" y="{_n(y + 13)}">{words}</text>'
        y += 2 * LEGEND_ROW
    rest = len(graph.groups) - len(shown)
    if rest:
        yield f'<text class="note" x="{_n(MARGIN + 20)}" y="{_n(y)}">and {counted(rest, "group")} more</text>'
        y += LEGEND_ROW
    yield _swatch(y, PINNED)
    yield f'<text class="note" x="{_n(MARGIN + 20)}" y="{_n(y)}">pinned: not permuted</text>'
    notes = ["upper edge: what it reads", "lower edge: what it makes"]
    if len({group.colour for group in graph.groups}) < len(graph.groups):
        notes.append("colours inside blocks come again")
    for line in notes:
        y += LEGEND_ROW
        yield f'<text class="note" x="{_n(MARGIN + 20)}" y="{_n(y)}">{line}</text>'


def _swatch(y: float, colour: str) -> str:
    return f'<rect x="{_n(MARGIN)}" y="{_n(y - 10)}" width="12" height="12" rx="3" fill="{colour}"/>'


def _frame(box: Box) -> str:
    where = f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}"'
    return f'<rect class="frame" {where} rx="8"/>'


def _frame_name(graph: Graph, block: str, box: Box) -> str:
    name = _text(f"{block}  {graph.blocks[block]}")
    return f'<text class="frame-name" x="{_n(box.x + 9)}" y="{_n(box.y + 14)}">{name}</text>'


def _line(graph: Graph, line: Line) -> Iterator[str]:
    colour = graph.colour(line.groups) or PINNED
    x1, y1 = line.upper.middle, line.upper.y + line.upper.height
    x2, y2 = line.lower.middle, line.lower.y
    end = y2 - 5 if line.arrow else y2
    if line.turn is None:
        bend = (end - y1) * 0.55
        path = f"M{_n(x1)} {_n(y1)}C{_n(x1)} {_n(y1 + bend)} {_n(x2)} {_n(end - bend)} {_n(x2)} {_n(end)}"
    else:
        steps = f"V{_n(y1 + 12)}H{_n(line.turn)}V{_n(y2 - TURN)}H{_n(x2)}V{_n(end)}"
        path = f"M{_n(x1)} {_n(y1)}{steps}"
    yield _stroke(path, colour)
    if not line.arrow or line.upper.width <= 10:
        through = f"M{_n(x1)} {_n(line.upper.y)}V{_n(y1)}"
        if line.upper.width <= 10 and line.upper.height:
            yield _stroke(through, colour)
    if line.arrow:
        yield f'<path d="M{_n(x2 - 4)} {_n(end - 1)}h8l-4 6z" fill="{colour}"/>'


def _stroke(path: str, colour: str, more: str = "") -> str:
    width = "1.5" if colour == PINNED else "2.5"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{more}/>'


def _back(graph: Graph, layout: Layout) -> Iterator[str]:
    """Edges against the flow: a module that is called again."""
    for edge in graph.edges:
        if edge.back:
            source, target = layout.boxes[edge.source], layout.boxes[edge.target]
            x1, y1 = source.x + source.width, source.y + source.height / 2
            x2, y2 = target.x + target.width, target.y + target.height / 2
            lift = 10 if edge.source == edge.target else 0
            out, begin, end = _n(max(x1, x2) + 26), _n(y1 + lift), _n(y2 - lift)
            path = f"M{_n(x1)} {begin}C{out} {begin} {out} {end} {_n(x2)} {end}"
            yield _stroke(path, graph.colour(edge.groups) or PINNED, ' stroke-dasharray="4 3"')


def _node(graph: Graph, node: Node, box: Box) -> Iterator[str]:
    kind = {"join": "join", "input": "end", "output": "end"}.get(node.kind, "box")
    yield f"<g><title>{_text(_hint(node))}</title>"
    yield (
        f'<rect class="{kind}" x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}" '
        f'rx="{6 if kind == "box" else 11}"/>'
    )
    middle = _n(box.middle)
    if kind == "box":
        yield from _band(graph, node.reads, box, box.y)
        yield from _band(graph, node.makes, box, box.y + box.height - 4)
        yield f'<text class="name" text-anchor="middle" x="{middle}" y="{_n(box.y + 18)}">{_text(node.label)}</text>'
        yield f'<text class="detail" text-anchor="middle" x="{middle}" y="{_n(box.y + 32)}">{_text(node.detail)}</text>'
    else:
        words = f"{node.label} {node.detail}".strip()
        yield f'<text text-anchor="middle" x="{middle}" y="{_n(box.y + box.height / 2 + 4)}">{_text(words)}</text>'
    yield "</g>"


def _band(graph: Graph, groups: tuple[str, ...], box: Box, y: float) -> Iterator[str]:
    """A strip of the groups' colours, side by side."""
    parts = [graph.colour((name,)) or PINNED for name in groups] or [PINNED]
    width = (box.width - 8) / len(parts)
    for place, colour in enumerate(parts):
        x = box.x + 4 + place * width
        yield f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="4" fill="{colour}"/>'


def _hint(node: Node) -> str:
    lines = [f"{node.name}  {node.detail}".strip()]
    for word, groups in (("reads", node.reads), ("makes", node.makes), ("inside", node.inside)):
        if groups:
            lines.append(f"{word}: {', '.join(groups)}")
    return " | ".join([*lines, *node.tensors[:12]])


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(value: str) -> str:
    return escape(printable(value))
