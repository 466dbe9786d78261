"""What is known of how values change: which alike, which dual to each other, and what limits the maps of their units.

A *node* is one copy of a family's units in one value. Nodes that any allowed map multiplies by the same matrix M, or by
its transposed inverse, are one *part*: a union-find with parity. Two parts may have maps of their own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum

Node = int


class Limit(IntEnum):
    """The largest maps that an operation lets through, from small to large."""

    DIAGONAL = 0
    """A permutation and a diagonal matrix; the exponents of `scales` say which diagonal."""
    ONES = 1
    """Orthogonal, and the vector of ones stays."""
    ORTHOGONAL = 2
    LINEAR = 3


@dataclass(frozen=True, slots=True)
class Product:
    """`out = left * right ** power`, unit by unit.

    Args:
        scale: where `right` is a parameter with one number for each position, and nothing else varies in it: its state
            value; None for any other product.
        offset: what is added to that parameter to give `right`.
        reason: of the limit that the product is to maps that mix units.
    """

    left: Node
    right: Node
    out: Node
    reason: str
    power: int = 1
    scale: int | None = None
    offset: float = 0.0


@dataclass(slots=True)
class Ledger:
    """Everything that the walk through the operations notes.

    Attributes:
        family: of every node.
        limits: (node, limit, reason).
        still: nodes whose units keep their magnitude, with the reason; `unsigned`: their sign.
        even: pairs (node, result, factor): the result is of the `factor`-th power of the magnitude, and never negative.
        votes: nodes that read or are read as values, for or against being called dual.
    """

    keys: dict[Hashable, Node] = field(default_factory=dict)
    family: list[int] = field(default_factory=list)
    limits: list[tuple[Node, Limit, str]] = field(default_factory=list)
    still: list[tuple[Node, str]] = field(default_factory=list)
    unsigned: list[tuple[Node, str]] = field(default_factory=list)
    even: list[tuple[Node, Node, int]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    votes: list[tuple[Node, int]] = field(default_factory=list)
    _parent: list[Node] = field(default_factory=list)
    _parity: list[int] = field(default_factory=list)

    def node(self, key: Hashable, family: int) -> Node:
        if key not in self.keys:
            self.keys[key] = len(self.family)
            self._parent.append(len(self.family))
            self._parity.append(0)
            self.family.append(family)
        return self.keys[key]

    def find(self, node: Node) -> tuple[Node, int]:
        """The part of a node, named by its root, and whether the node is dual to that."""
        path: list[Node] = []
        while self._parent[node] != node:
            path.append(node)
            node = self._parent[node]
        parity = 0
        for below in reversed(path):
            parity ^= self._parity[below]
            self._parent[below], self._parity[below] = node, parity
        return node, parity

    def join(self, one: Node, other: Node, dual: bool, reason: str) -> None:
        """They change alike, or dually. Where they did otherwise already, both hold: orthogonal maps are self-dual."""
        (left, p), (right, q) = self.find(one), self.find(other)
        if left == right:
            if p ^ q ^ dual:
                self.limits.append((one, Limit.ORTHOGONAL, reason))
                self.still.append((one, reason))
            return
        self._parent[right], self._parity[right] = left, p ^ q ^ dual

    def limit(self, node: Node, limit: Limit, reason: str) -> None:
        """Limit the maps to those that keep lengths, and for `ONES` the vector of ones."""
        self.limits.append((node, limit, reason))
        self.still.append((node, reason))
        if limit is Limit.ONES:
            self.unsigned.append((node, reason))

    def diagonal(self, node: Node, reason: str, *, still: bool, unsigned: bool) -> None:
        """Limit the maps to permutations and scales, of no magnitudes where `still`, of no signs where `unsigned`."""
        self.limits.append((node, Limit.DIAGONAL, reason))
        if still:
            self.still.append((node, reason))
        if unsigned:
            self.unsigned.append((node, reason))
