"""Large models: whole parts are drawn as one node, as few levels as it takes to stay legible."""

from __future__ import annotations

from rebasin_cli.report.graph_flow import Flow, FlowNode

MOST_NODES = 150
"""More than so many boxes are no longer seen at once."""


def collapsed(flow: Flow, types: dict[str, str], most: int = MOST_NODES) -> Flow:
    """The flow with everything below one depth of the module tree drawn as one node, or as it is where it is small."""
    depth = max((len(node.path) for node in flow.nodes), default=0)
    while len(flow.nodes) > most and depth > 1:
        depth -= 1
        smaller = _cut(flow, types, depth)
        if len(smaller.nodes) <= most or depth == 1:
            return smaller
    return flow


def _cut(flow: Flow, types: dict[str, str], depth: int) -> Flow:
    cut = Flow()
    parts: dict[str, int] = {}
    place_of: list[int] = []
    for node in flow.nodes:
        prefix = ".".join(node.path[:depth])
        if len(node.path) <= depth:
            place_of.append(cut.add(node, ()))
            continue
        if prefix not in parts:
            parts[prefix] = cut.add(FlowNode(prefix, types.get(prefix, ""), "part", node.path[:depth]), ())
        place_of.append(parts[prefix])
        part = cut.nodes[parts[prefix]]
        part.keys.update(node.keys)
        part.contracts |= node.contracts
    for source, target in flow.edges:
        cut.feed(place_of[target], [place_of[source]])
    return cut
