"""The picture as text for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from rebasin_cli.report.graph.model import PINNED, Graph, Node
from rebasin_cli.report.text import printable

SUFFIX = ".dot"
SHAPES = {"join": "ellipse", "input": "oval", "output": "oval"}


def draw(graph: Graph) -> str:
    """A `digraph`; the same text for the same graph."""
    lines = [
        "digraph model {",
        f'  graph [label={_quoted(graph.title)}, labelloc=t, bgcolor="white", fontname="sans-serif", ranksep=0.35]',
        '  node [shape=box, style="filled,rounded", fillcolor="white", penwidth=2, fontname="sans-serif", fontsize=11]',
        "  edge [penwidth=2, arrowsize=0.7]",
        *_nodes(graph, "", "  "),
    ]
    for number, (block, kind) in enumerate(graph.blocks.items()):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f'    label={_quoted(f"{block}  {kind}")}; color="#c3cad4"; style="rounded"; fontsize=10')
        lines.extend([*_nodes(graph, block, "    "), "  }"])
    for edge in graph.edges:
        colour = graph.colour(edge.groups) or PINNED
        again = ", style=dashed, constraint=false" if edge.back else ""
        tip = _quoted(", ".join(edge.groups) or "pinned")
        lines.append(f'  n{edge.source} -> n{edge.target} [color="{colour}", tooltip={tip}{again}]')
    lines.extend([*_legend(graph), "}"])
    return "\n".join(lines) + "\n"


def _nodes(graph: Graph, block: str, indent: str) -> Iterator[str]:
    for place, node in enumerate(graph.nodes):
        if node.block == block:
            colour = graph.colour(node.makes) or graph.colour(node.reads) or PINNED
            shape = f", shape={SHAPES[node.kind]}" if node.kind in SHAPES else ""
            yield f'{indent}n{place} [label={_label(node)}, color="{colour}", tooltip={_quoted(node.name)}{shape}]'


def _label(node: Node) -> str:
    return _quoted(node.label) if not node.detail else f'"{_inner(node.label)}\\n{_inner(node.detail)}"'


def _legend(graph: Graph) -> Iterator[str]:
    yield '  subgraph cluster_legend {\n    label="moves together"; color="#c3cad4"; style="rounded"; fontsize=10'
    for place, group in enumerate(graph.groups):
        words = f'"{_inner(group.name)}\\n{group.size:,} units"'
        yield f'    g{place} [label={words}, color="{group.colour}", fontcolor="{group.colour}"]'
    yield f'    pinned [label="pinned", color="{PINNED}", fontcolor="{PINNED}"]\n  }}'


def _quoted(text: str) -> str:
    return f'"{_inner(text)}"'


def _inner(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
