"""The picture of a model as plain data: nodes, edges, groups and their colors, before any format.

A node shows on its upper side which groups it reads and on its lower side which it makes; an edge shows the group whose
units travel along it. No group means that the axis is pinned.

Groups that reach across blocks (residual streams) have a color of their own; groups inside one block share a paler
palette, in turn, so that neighbors differ. All have contrast with white and with black; grey is for pinned axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """One module, one use of a parameter by functional code, one place where data join, or a part drawn as one.

    Args:
        name: its path in the model; the operation's name for a join.
        label: the name as it is shown, without the block's part of it.
        detail: type, parameter shape and the modules folded into it.
        kind: `module`, `join`, `part`, `input` or `output`.
        block: name of the repeated block it lies in, or empty.
        reads, makes: groups on the side where the data come in, and where they go out.
        inside: groups that neither come in nor go out.
        tensors: its parameters with their shapes.
    """

    name: str
    label: str
    detail: str
    kind: str
    block: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    inside: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """Data go from one node to another (both by index); `back` where the target comes first: a module called again."""

    source: int
    target: int
    groups: tuple[str, ...]
    back: bool = False


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """A group that acts on its own, with all that lies in its blocks; its colour; and how many nodes it touches."""

    name: str
    size: int
    nested: int
    nested_units: int
    nodes: int
    colour: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole picture. Everything is in the order in which the data meets it.

    Args:
        blocks: type by name of the repeated blocks.
    """

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    groups: tuple[ShownGroup, ...]
    blocks: dict[str, str]

    def colour(self, groups: tuple[str, ...]) -> str | None:
        """The colour for what these groups move; None where the order is pinned."""
        if not groups:
            return None
        return next(group.colour for group in self.groups if group.name == groups[0])


STRONG = ("#3b82d6", "#e07b2a", "#2f9e58", "#9a5fd0", "#d64550", "#1b9aaa", "#cf4fa0", "#9a8a1f")
PALE = ("#7d9cc9", "#c99a6b", "#7fb08f", "#b08fc9", "#c98484", "#6fb0b5")
PINNED = "#8a8f98"


def colours(touched: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Colour by group.

    Args:
        touched: for every group, the blocks of the nodes that it touches, in the order of the data.
    """
    if len(touched) <= len(STRONG):
        return dict(zip(touched, STRONG, strict=False))
    wide = sorted((name for name, blocks in touched.items() if len(set(blocks)) > 1), key=lambda n: -len(touched[n]))
    strong = {name: STRONG[place % len(STRONG)] for place, name in enumerate(wide)}
    local = [name for name in touched if name not in strong]
    pale = {name: PALE[place % len(PALE)] for place, name in enumerate(local)}
    return {name: strong.get(name) or pale[name] for name in touched}
