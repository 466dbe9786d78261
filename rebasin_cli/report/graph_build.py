"""From a recorded pass and its groups to the picture's plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rebasin_cli.report.graph_collapse import collapsed
from rebasin_cli.report.graph_colours import colours
from rebasin_cli.report.graph_flow import Flow, FlowNode, flow_of
from rebasin_cli.report.graph_model import Edge, Graph, Node, ShownGroup
from rebasin_cli.report.graph_sides import Names, Sides
from rebasin_cli.report.text import counted
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.tracing.graph import Trace

CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
"""Types that hold others and are no block of their own."""


def graph_of(trace: Trace, spec: PermutationSpec, title: str) -> Graph:
    """Modules, the data's ways between them, and what moves together."""
    types = {module.name: module.type for module in trace.modules}
    calls = {module.name: module.calls for module in trace.modules}
    shapes = {key: trace.values[value].shape for key, value in trace.state.items()}
    flow = collapsed(flow_of(trace), types)
    sides = Sides(spec, shapes)
    blocks = _blocks(flow, types)
    carried = sides.carried(flow)
    nodes = tuple(
        _node(node, block, _sides(flow, place, sides, carried), shapes, calls.get(node.name, 1))
        for place, (node, block) in enumerate(zip(flow.nodes, blocks, strict=True))
    )
    edges = tuple(Edge(source, target, groups, target <= source) for (source, target), groups in carried.items())
    used = dict.fromkeys(block for block in blocks if block)
    return Graph(title, nodes, edges, _groups(spec, sides, nodes), {block: types[block] for block in used})


def _blocks(flow: Flow, types: Mapping[str, str]) -> list[str]:
    """For each node the outermost module around it whose type occurs again, containers aside."""
    holding: dict[str, int] = {}
    for node in flow.nodes:
        for length in range(1, len(node.path)):
            prefix = ".".join(node.path[:length])
            holding[prefix] = holding.get(prefix, 0) + 1
    often = Counter(types[name] for name in holding if name in types and types[name] not in CONTAINERS)
    repeated = {name for name, count in holding.items() if count > 1 and often[types.get(name, "")] > 1}
    blocks = []
    for node in flow.nodes:
        prefixes = (".".join(node.path[:length]) for length in range(1, len(node.path)))
        blocks.append(next((prefix for prefix in prefixes if prefix in repeated), ""))
    return blocks


def _sides(
    flow: Flow, place: int, sides: Sides, carried: Mapping[tuple[int, int], Names]
) -> tuple[Names, Names, Names]:
    """Groups that come in, go out, and stay inside. What a part of the model does with its edges says more than its
    weights.
    """
    node = flow.nodes[place]
    reads, makes = sides.of(node)
    coming = dict.fromkeys(name for (_, target), names in carried.items() if target == place for name in names)
    if node.keys and node.kind != "part":
        return reads if node.contracts else tuple(name for name in reads if name in coming), makes, ()
    going = dict.fromkeys(name for (source, _), names in carried.items() if source == place for name in names)
    inside = tuple(name for name in dict.fromkeys((*reads, *makes)) if name not in coming and name not in going)
    return tuple(coming), tuple(going), inside


def _node(
    node: FlowNode, block: str, sides: tuple[Names, Names, Names], shapes: Mapping[str, tuple[int, ...]], calls: int
) -> Node:
    tensors = tuple(f"{key} {_shape(shapes[key])}" for key in node.keys)
    label = node.name[len(block) + 1 :] if block and node.name.startswith(f"{block}.") else node.name
    largest = max((shapes[key] for key in node.keys), key=len, default=())
    words = [node.type] if node.type else []
    if node.kind == "part":
        words.append(counted(len(tensors), "tensor"))
        if sides[2]:
            words.append(f"{counted(len(sides[2]), 'group')} inside")
    elif largest:
        words.append(_shape(largest))
    detail = "  ".join(words)
    if calls > 1 and node.kind == "module" and node.keys:
        detail += f"  {calls} calls"
    detail += "".join(f" → {name}" for name in dict.fromkeys(node.folded))
    kind = "module" if node.kind == "use" else node.kind
    return Node(node.name, label, detail.strip(), kind, block, *sides, tensors)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _groups(spec: PermutationSpec, sides: Sides, nodes: tuple[Node, ...]) -> tuple[ShownGroup, ...]:
    touched: dict[str, list[str]] = {name: [] for name in dict.fromkeys(sides.root.values())}
    for node in nodes:
        for name in dict.fromkeys((*node.reads, *node.makes, *node.inside)):
            touched[name].append(node.block or node.name)
    touched = {name: blocks for name, blocks in touched.items() if blocks}
    chosen = colours(touched)
    shown = []
    for name, blocks in touched.items():
        family = [group for group in spec.groups if sides.root[group.name] == name]
        own = [group for group in family if group.parent is None]
        inner = [group for group in family if group.parent is not None]
        size = sum(group.size for group in own)
        shown.append(ShownGroup(name, size, len(inner), sum(g.size for g in inner), len(blocks), chosen[name]))
    return tuple(shown)
