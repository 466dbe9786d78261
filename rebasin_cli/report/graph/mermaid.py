"""The picture as text for Mermaid, which many wikis and code hosts show in place."""

from __future__ import annotations

from collections.abc import Iterator

from rebasin_cli.report.graph.model import PINNED, Graph, Node
from rebasin_cli.report.text import printable

SUFFIX = ".mmd"
PLAIN = frozenset(" .,:;+-→_/()=")


def draw(graph: Graph) -> str:
    """A flowchart; the same text for the same graph."""
    lines = [f"%% {_inner(graph.title)}", "flowchart TD", *_nodes(graph, "", "  ")]
    for number, (block, kind) in enumerate(graph.blocks.items()):
        lines.append(f'  subgraph b{number}["{_inner(f"{block}  {kind}")}"]')
        lines.extend([*_nodes(graph, block, "    "), "  end"])
    lines.extend(f"  n{edge.source} {'-.->' if edge.back else '-->'} n{edge.target}" for edge in graph.edges)
    lines.append('  subgraph legend["moves together"]')
    lines.extend(
        f'    g{place}["{_inner(group.name)}<br/>{group.size:,} units"]' for place, group in enumerate(graph.groups)
    )
    lines.extend(['    pinned["pinned"]', "  end"])
    places = {group.name: place for place, group in enumerate(graph.groups)}
    for place, group in enumerate(graph.groups):
        lines.append(f"  classDef c{place} stroke:{group.colour},stroke-width:3px")
        lines.append(f"  class g{place} c{place}")
    lines.extend([f"  classDef still stroke:{PINNED},stroke-width:2px", "  class pinned still"])
    for place, node in enumerate(graph.nodes):
        groups = node.makes or node.reads
        lines.append(f"  class n{place} {f'c{places[groups[0]]}' if groups else 'still'}")
    by_colour: dict[str, list[str]] = {}
    for place, edge in enumerate(graph.edges):
        by_colour.setdefault(graph.colour(edge.groups) or PINNED, []).append(str(place))
    for colour, found in by_colour.items():
        lines.append(f"  linkStyle {','.join(found)} stroke:{colour},stroke-width:2px")
    return "\n".join(lines) + "\n"


def _nodes(graph: Graph, block: str, indent: str) -> Iterator[str]:
    for place, node in enumerate(graph.nodes):
        if node.block == block:
            opening, closing = ("([", "])") if node.kind in ("join", "input", "output") else ("[", "]")
            yield f'{indent}n{place}{opening}"{_label(node)}"{closing}'


def _label(node: Node) -> str:
    return _inner(node.label) if not node.detail else f"{_inner(node.label)}<br/>{_inner(node.detail)}"


def _inner(text: str) -> str:
    """Mermaid's entity codes for everything that could mean something to it."""
    return "".join(c if c.isalnum() or c in PLAIN else f"#{ord(c)};" for c in printable(text))
