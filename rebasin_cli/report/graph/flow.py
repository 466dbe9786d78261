"""The data flow of a recorded pass: a node for each leaf module, each functional use of a parameter, and each
place where data join.

A leaf module without parameters that keeps the shape (an activation, a dropout) is folded into what feeds it, where it
is the only reader. In large models, whole parts are one node, at as few levels as it takes to stay legible.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rebasin_cli.tracing.graph import Call, Trace
from rebasin_cli.tracing.operations import is_pointwise

CARRYING = frozenset(f"aten.{name}" for name in ("cat", "copy", "embedding", "index", "index_select", "stack"))
"""Operations beside the pointwise ones whose results have the units of their parameters."""


@dataclass
class FlowNode:
    """A node while the record is read.

    Args:
        path: what it is collapsed by.
        keys: the parameters it reads, in order.
        contracts: whether some operation sums over an axis of a parameter, as matrix products do; sums of tensors,
            tables and concatenations carry the units of their parameters through.
        folded: types of the modules folded into it.
    """

    name: str
    type: str
    kind: str
    path: tuple[str, ...]
    keys: dict[str, None] = field(default_factory=dict)
    contracts: bool = False
    folded: list[str] = field(default_factory=list)


@dataclass
class Flow:
    """Nodes in the order of the pass, and pairs of indices in the order in which they were met."""

    nodes: list[FlowNode] = field(default_factory=list)
    edges: dict[tuple[int, int], None] = field(default_factory=dict)

    def add(self, node: FlowNode, sources: Iterable[int]) -> int:
        self.nodes.append(node)
        return self.feed(len(self.nodes) - 1, sources)

    def feed(self, place: int, sources: Iterable[int]) -> int:
        self.edges.update(dict.fromkeys((source, place) for source in sources if source != place))
        return place


def flow_of(trace: Trace) -> Flow:
    """Read the record."""
    return _Reader(trace).read()


class _Reader:
    def __init__(self, trace: Trace) -> None:
        self.trace, self.flow = trace, Flow()
        self.types = {module.name: module.type for module in trace.modules}
        self.leaves = {call.name for call in trace.module_calls if call.leaf and call.name}
        self.owned: dict[str, list[str]] = {}
        self.parameters: dict[int, dict[str, None]] = {}
        for key, value in trace.state.items():
            if key in trace.trainable:
                self.owned.setdefault(trace.owners.get(key, ""), []).append(key)
                self.parameters.setdefault(value, {key: None})
        self.source: dict[int, int] = {}
        self.modules: dict[str, int] = {}
        self.alone = self._shape_keeping() - self._one_of_several()
        self.scope = ""

    def read(self) -> Flow:
        for value in self.trace.inputs:
            shape = "x".join(map(str, self.trace.values[value].shape))
            self.source[value] = self.flow.add(FlowNode("input", shape, "input", ("input",)), ())
        for call in self.trace.live:
            self._read(call)
            if not call.synthetic:
                self.scope = call.scope
        given = dict.fromkeys(self.source[value] for value in self.trace.outputs if value in self.source)
        self.flow.add(FlowNode("output", "", "output", ("output",)), given)
        return self.flow

    def _read(self, call: Call) -> None:
        name = call.name.rsplit(".", 1)[-1]
        if name.startswith("new_") or name.endswith("_like"):
            return  # only the shape of the argument is used
        sources = list(dict.fromkeys(self.source[value] for value in call.inputs if value in self.source))
        keys: dict[str, None] = {}
        for value in call.inputs:
            keys.update(self.parameters.get(value, {}))
        if not sources and not (keys and self._leaf(call) and self._gives_data(call)):
            if keys:
                self.parameters.update({value: keys for value in call.results if value is not None})
            return
        place = self._place(call, sources, keys)
        self.flow.nodes[place].contracts |= bool(keys) and not (call.name in CARRYING or is_pointwise(call.overload))
        self.source.update({value: place for value in call.results if value is not None})

    def _leaf(self, call: Call) -> bool:
        return call.scope in self.leaves

    def _gives_data(self, call: Call) -> bool:
        """Whether an operation on parameters alone looks something up in them: the indices are not followed."""
        return call.name == "aten.embedding"

    def _place(self, call: Call, sources: list[int], keys: dict[str, None]) -> int:
        if self._leaf(call):
            return self._module(call.scope, sources, keys)
        if keys:
            return self._use(sources, keys)
        if len(sources) == 1:
            return sources[0]
        name = call.name.split(".", 1)[1].strip("_")
        return self.flow.add(FlowNode(name, "", "join", (*_parts(call.scope), "#")), sources)

    def _module(self, name: str, sources: list[int], keys: dict[str, None]) -> int:
        nodes = self.flow.nodes
        if name not in self.owned and name in self.modules and self.scope != name:
            del self.modules[name]  # called again: without parameters, nothing ties it to its first use
        if name not in self.modules:
            if name in self.alone and len(sources) == 1 and nodes[sources[0]].kind != "input":
                nodes[sources[0]].folded.append(self.types[name])
                self.modules[name] = sources[0]
                return sources[0]
            node = FlowNode(name, self.types[name], "module", _parts(name))
            self.modules[name] = self.flow.add(node, ())
        place = self.modules[name]
        nodes[place].keys.update(keys)
        return self.flow.feed(place, sources)

    def _use(self, sources: list[int], keys: dict[str, None]) -> int:
        """Functional code meets parameters; a bias or a scale belongs to what it is added to."""
        first, nodes = next(iter(keys)), self.flow.nodes
        owner = self.trace.owners.get(first, "")
        if all(len(self.trace.values[self.trace.state[key]].shape) < 2 for key in keys) and len(sources) == 1:
            feeding = nodes[sources[0]]
            if feeding.kind == "use" and any(self.trace.owners.get(key, "") == owner for key in feeding.keys):
                feeding.keys.update(keys)
                return sources[0]
        whole = bool(owner) and set(self.owned[owner]) <= set(keys)
        name, kind = (owner, self.types[owner]) if whole else (first, "")
        return self.flow.add(FlowNode(name, kind, "use", _parts(name), dict(keys)), sources)

    def _shape_keeping(self) -> set[str]:
        """Leaf modules without parameters whose one result has the shape of their one argument, in every call."""
        shapes = self.trace.values
        kept: dict[str, bool] = {}
        for call in self.trace.module_calls:
            same = len(call.inputs) == len(call.outputs) == 1 and (
                shapes[call.inputs[0]].shape == shapes[call.outputs[0]].shape
            )
            kept[call.name] = kept.get(call.name, True) and same and call.leaf and call.name not in self.owned
        return {name for name, holds in kept.items() if holds}

    def _one_of_several(self) -> set[str]:
        """Leaf modules whose argument somebody else reads too: what they do is done on one branch only."""
        readers: dict[int, set[str]] = {}
        for call in self.trace.live:
            for value in call.inputs:
                readers.setdefault(value, set()).add(call.scope if call.scope in self.leaves else "")
        return {
            call.name for call in self.trace.module_calls for value in call.inputs if len(readers.get(value, ())) > 1
        }


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


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
