"""Which groups a node reads and which it makes, as far as the spec and the shapes of its parameters tell.

A weight makes units along its first axis and reads them along the others, unless its bias lies along another one
(transposed convolutions); a norm's parameters do both. An edge carries what its source makes and its target reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rebasin_cli.report.graph_flow import Flow, FlowNode
from rebasin_cli.spec import AxisGroup, PermutationSpec

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
