"""From a recorded pass and its groups to the picture's plain data.

A weight makes units along its first axis and reads them along the others, unless its bias is along another one
(transposed convolutions); a norm's parameters do both. An edge carries what its source makes and its target reads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rebasin_cli.report.graph.flow import Flow, FlowNode, collapsed, flow_of
from rebasin_cli.report.graph.model import Edge, Graph, Node, ShownGroup, colours
from rebasin_cli.report.text import counted
from rebasin_cli.spec import AxisGroup, PermutationSpec
from rebasin_cli.tracing.graph import Trace

Names = tuple[str, ...]


@dataclass(frozen=True)
class Sides:
    """What lies on which side of the nodes, by outermost groups."""

    spec: PermutationSpec
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def root(self) -> dict[str, str]:
        """The outermost group by name; groups of one family that have no parent count as one."""
        return {group.name: self._root(group) for group in self.spec.groups}

    def _root(self, group: AxisGroup) -> str:
        while group.parent is not None:
            group = self.spec.by_name[group.parent.group]
        return re.sub(r"(\[\d+\])+$", "", group.name)

    def of(self, node: FlowNode) -> tuple[Names, Names]:
        """Groups that the node reads, and that it makes."""
        rows: dict[str, None] = {}
        columns: dict[str, None] = {}
        vectors: dict[str, None] = {}
        depthwise = False
        for key in node.keys:
            shape = self.shapes[key]
            depthwise = depthwise or (len(shape) > 2 and shape[1] == 1)
            for group, site in self.spec.sites_by_key.get(key, ()):
                if group.size > 1:
                    side = vectors if len(shape) < 2 else columns if site.axis else rows
                    side[self.root[group.name]] = None
        if not any(len(self.shapes[key]) > 1 for key in node.keys):
            return tuple(vectors), tuple(vectors)
        if not node.contracts:
            through = tuple({**rows, **columns, **vectors})
            return through, through
        if vectors and not set(vectors) & set(rows) and set(vectors) & set(columns):
            rows, columns = columns, rows
        made = {**rows, **vectors}
        return tuple(columns or (made if depthwise else {})), tuple(made)

    def carried(self, flow: Flow) -> dict[tuple[int, int], Names]:
        """The groups whose units travel along each edge."""
        sides = [self.of(node) for node in flow.nodes]
        coming: dict[int, dict[str, None]] = {}
        found: dict[tuple[int, int], Names] = {}
        for source, target in sorted(flow.edges):
            giver, taker = flow.nodes[source], flow.nodes[target]
            given: Iterable[str] = sides[source][1] if giver.keys else coming.get(source, {})
            if giver.kind == "part":
                given = (*sides[source][1], *sides[source][0])
            if taker.kind == "output":
                given = ()
            elif taker.keys:
                reads, makes = sides[target]
                given = [name for name in given if name in reads] or [name for name in given if name in makes]
            found[source, target] = tuple(dict.fromkeys(given))
            coming.setdefault(target, {}).update(dict.fromkeys(given))
        return found


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
