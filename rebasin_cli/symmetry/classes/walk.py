"""Goes through the operations of a trace and notes what each means for the units that it touches.

Operations are told apart by their properties in the operation table; what is in none of the known kinds limits all
units that it touches to permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from rebasin_cli.freedom import Pairing
from rebasin_cli.symmetry.analysis import Analysis
from rebasin_cli.symmetry.classes.ledger import Ledger, Limit, Node, Product
from rebasin_cli.symmetry.classes.slots import Slot, SlotReader, paired
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.tracing.graph import Call, Ref, Trace
from rebasin_cli.tracing.operations import ARRANGEMENT, PICK, SEGMENT, SHAPE_ONLY, VIEW, has, segments

Place = Hashable
"""A value's index, or (index, number of the piece) for a parameter that is read in segments."""

MANY = 8
"""Copies of units in one value from which on it pays to merge those that change alike."""

ZEROS = ("aten.zeros_like", "aten.new_zeros", "aten.zero", "aten.zeros")


@dataclass(slots=True)
class Reading:
    """A weight multiplied with values: its state value, where its result gets a bias, and of which parameter.

    `plain` is false where the bias cannot take a constant over (a convolution that pads with zeros).
    """

    weight: int
    bias: int | None = None
    plain: bool = True


@dataclass(slots=True)
class Walk:
    """One trace, its solved relations, and what is noted.

    Attributes:
        source: by value, the state value whose numbers it holds in some arrangement.
        added: of a `source`, the number that was added to the parameter.
        squares: values that hold squares of units, with the nodes squared.
        readings: for every weight that reads values, how.
        zeros: values that hold nothing but zeros.
        crossed: pairs of nodes multiplied block by block and summed over what no group moves, and over how much.
        normed: nodes that were normalised inside their blocks.
        taken_apart: nodes of blocks whose insides were divided along another dimension, and into which pairs.
        mean_free: nodes that a layer norm takes the mean away from.
    """

    trace: Trace
    analysis: Analysis
    closure: Closure
    ledger: Ledger = field(default_factory=Ledger)
    source: dict[int, int] = field(default_factory=dict)
    added: dict[int, float] = field(default_factory=dict)
    squares: dict[int, list[Node]] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    zeros: set[int] = field(default_factory=set)
    crossed: list[tuple[Node, Node, int]] = field(default_factory=list)
    normed: list[Node] = field(default_factory=list)
    taken_apart: list[tuple[Node, Pairing]] = field(default_factory=list)
    mean_free: set[Node] = field(default_factory=set)
    _results: dict[int, Reading] = field(default_factory=dict)
    _reader: SlotReader = field(init=False)
    _slots: dict[Place, tuple[Slot, ...]] = field(default_factory=dict)
    _same: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = SlotReader(self.analysis.relations, self.closure)
        self.source = {value: value for value in self.analysis.leaves}

    def run(self, handler_of: Callable[[Call], Handler]) -> None:
        """Visit every live call."""
        for call in self.trace.live:
            results = [value for value in call.results if value is not None]
            if all(value in self.trace.constants for value in results):
                continue
            if call.inputs and call.inputs[0] in self.analysis.cuts:
                self._cut(call)
                continue
            self._follow(call)
            self._read_squares(call)
            for value in call.inputs:
                if value in self.trace.constants and self.slots(value):
                    self.fix(self.nodes(value), self.where(call, "a constant that depends on the unit"))
            if any(self.slots(value) for value in (*call.inputs, *results)):
                handler_of(call)(self, call)
                for value in results:
                    self._merge_copies(value)

    def _merge_copies(self, value: int) -> None:
        """Copies of units that change alike here are told apart no further: many places in time may have one each."""
        first: dict[tuple[int, tuple[int, ...], Node, int], int] = {}
        slots = self.slots(value)
        if len(slots) < MANY:
            return
        for slot in slots:
            kept = first.setdefault((slot.family, slot.dims, *self.ledger.find(self.node(value, slot))), slot.tag)
            if kept != slot.tag:
                self._same[slot.tag] = kept

    # What a handler asks.

    def slots(self, place: Place) -> tuple[Slot, ...]:
        """The slots of a value, or of a piece of a parameter."""
        if place not in self._slots:
            if isinstance(place, tuple):
                value, piece = place
                layout = self.analysis.relations.layout(self.analysis.cuts[value].pieces[piece])
            elif place in self.analysis.cuts:
                self._slots[place] = ()
                return ()
            else:
                assert isinstance(place, int)
                layout = self.analysis.layout_of(place)
            self._slots[place] = self._merged(self._reader.slots(layout))
        return self._slots[place]

    def _merged(self, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
        if not self._same or not any(slot.tag in self._same for slot in slots):
            return slots
        found: dict[tuple[int, tuple[int, ...], int], Slot] = {}
        for slot in slots:
            tag = self._kept(slot.tag)
            found.setdefault((slot.family, slot.dims, tag), replace(slot, tag=tag))
        return tuple(found.values())

    def tags_of(self, slots: Sequence[Slot]) -> list[int]:
        """The colours of these copies, and of those that were merged with them."""
        kept = {slot.tag for slot in slots}
        return [*kept, *(tag for tag in self._same if self._kept(tag) in kept)]

    def _kept(self, tag: int) -> int:
        while tag in self._same:
            tag = self._same[tag]
        return tag

    def node(self, place: Place, slot: Slot) -> Node:
        return self.ledger.node((place, slot.family, slot.dims, slot.tag), slot.family)

    def nodes(self, value: int) -> list[Node]:
        return [self.node(value, slot) for slot in self.slots(value)]

    def shape(self, value: int) -> tuple[int, ...]:
        return self.trace.values[value].shape

    def is_zero(self, value: int) -> bool:
        """Whether it is known that a value holds zeros only."""
        numbers = self.trace.constants.get(value)
        return value in self.zeros or (numbers is not None and not bool(numbers.any()))

    def where(self, call: Call, what: str | None = None) -> str:
        """What an operation is called in a reason, and where it is."""
        name = what or call.name.partition(".")[2].strip("_").replace("native_", "").replace("_", " ")
        return f"{name} at {call.scope}" if call.scope else f"{name} in the model"

    # What a handler notes.

    def fix(self, nodes: Iterable[Node], reason: str) -> None:
        """Permutations and no more."""
        for node in nodes:
            self.ledger.diagonal(node, reason, still=True, unsigned=True)

    def fix_all(self, call: Call, reason: str | None = None) -> None:
        for value in (*call.inputs, *(value for value in call.results if value is not None)):
            self.fix(self.nodes(value), reason or self.where(call))

    def alike(
        self, call: Call, value: int, result: int, dims: Sequence[int | None] | None = None
    ) -> list[tuple[Node, Node]]:
        """A value's units are those of the result, unchanged: the pairs of nodes, which are joined.

        Args:
            dims: for each dimension of the value, that of the result; None where the order of positions is kept.
        """
        pairs = self.pairs(call, value, result, dims)
        for one, other in pairs:
            self.ledger.join(one, other, False, self.where(call))
        return pairs

    def pairs(
        self, call: Call, value: int, result: int, dims: Sequence[int | None] | None = None
    ) -> list[tuple[Node, Node]]:
        """The pairs of nodes that hold the same copies; what has no clear partner is fixed."""
        found: list[tuple[Node, Node]] = []
        groups: dict[tuple[int, tuple[int | None, ...]], list[Slot]] = {}
        for slot in self.slots(value):
            wanted = () if dims is None else tuple(sorted((dims[d] for d in slot.dims), key=lambda d: (d is None, d)))
            groups.setdefault((slot.family, wanted), []).append(slot)
        for (family, wanted), own in groups.items():
            other = [s for s in self.slots(result) if s.family == family and (dims is None or s.dims == wanted)]
            if not other and has(call.name, SEGMENT | PICK):
                continue  # these positions are not among those that are taken
            if not other:
                self.fix([self.node(value, s) for s in own], self.where(call))
                self.fix([self.node(result, s) for s in self.slots(result) if s.family == family], self.where(call))
            found += [(self.node(value, s), self.node(result, t)) for s, t in paired(own, other)]
        return found

    def pairs_kept(
        self, call: Call, value: int, result: int, gone: set[int], dims: Sequence[int | None]
    ) -> list[tuple[Node, Node]]:
        """The pairs of nodes along dimensions that a reduction over the dimensions `gone` keeps."""
        found: list[tuple[Node, Node]] = []
        for slot in self.slots(value):
            if not slot.dims or set(slot.dims) & gone:
                continue
            wanted = tuple(sorted(d for dim in slot.dims if (d := dims[dim]) is not None))
            there = [s for s in self.slots(result) if (s.family, s.dims) == (slot.family, wanted)]
            if not there:
                self.fix([self.node(value, slot)], self.where(call))
            found += [(self.node(value, one), self.node(result, other)) for one, other in paired([slot], there)]
        return found

    def unite(self, call: Call | None, value: int, slots: Sequence[Slot]) -> Node:
        """All copies in these slots, taken for one that changes alike."""
        nodes = [self.node(value, slot) for slot in slots]
        for node in nodes[1:]:
            self.ledger.join(nodes[0], node, False, "" if call is None else self.where(call))
        return nodes[0]

    def uniform_terms(
        self, call: Call, terms: Iterable[int], result: int, number: float = 0.0, apart: int | None = None
    ) -> None:
        """Terms of a sum that are equal along units, or a number, move every unit by the same: the ones must stay.

        Args:
            apart: a dimension along which the terms lie one after the other, so that units along it meet none of them.
        """
        for value in terms:
            if self.is_zero(value) or not self.trace.values[value].dtype.is_floating_point:
                continue
            there = {slot.family for slot in self.slots(value)}
            met = [s for s in self.slots(result) if s.family not in there and apart not in s.dims]
            self._ones(call, met, result)
        if number:
            self._ones(call, self.slots(result), result)

    def _ones(self, call: Call, slots: Iterable[Slot], result: int) -> None:
        for slot in slots:
            self.ledger.limit(self.node(result, slot), Limit.ONES, self.where(call, "a number added to every unit"))

    def multiply(self, call: Call, left: int, right: int, result: int, dims: Sequence[Sequence[int]]) -> None:
        """A product, unit by unit, of two values that both hold units.

        Args:
            dims: for both, for each dimension that of the result.
        """
        of_left = dict[Node, list[Node]]()
        for node, out in self.pairs(call, left, result, dims[0]):
            of_left.setdefault(out, []).append(node)
        seen: set[Node] = set()
        for node, out in self.pairs(call, right, result, dims[1]):
            for other in of_left.get(out, []):
                self.note_product(call, other, node, out, left, right)
            if out not in of_left:
                self.ledger.join(node, out, False, self.where(call))
            seen.add(out)
        for out, nodes in of_left.items():
            if out not in seen:
                for node in nodes:
                    self.ledger.join(node, out, False, self.where(call))

    def note_product(self, call: Call, left_node: Node, right_node: Node, out: Node, left: int, right: int) -> None:
        """`out = left * right`; the one that is a parameter with one number for each position is called right."""
        if self.scale_of(left) is not None and self.scale_of(right) is None:
            left_node, right_node, left, right = right_node, left_node, right, left
        scale = None if self.scale_of(left) is not None else self.scale_of(right)
        reason = self.where(call, "the scale of" if scale is not None else "multiplied by each other")
        self.ledger.products.append(
            Product(left_node, right_node, out, reason, scale=scale, offset=self.added.get(right, 0.0))
        )

    def scale_of(self, value: int) -> int | None:
        """The parameter that a value holds, if all its numbers lie along one axis."""
        found = self.source.get(value)
        if found is None or found in self.trace.constants:
            return None
        shape = self.shape(found)
        return found if prod(shape) == max(shape, default=0) > 1 else None

    def note_reading(self, call: Call, weight: int, bias: int | None, plain: bool, result: int) -> None:
        """A parameter that is multiplied with values, and what is added to the result."""
        origin = self.source.get(weight)
        if origin is None:
            return
        added = None if bias is None else self.source.get(bias)
        reading = Reading(origin, added, plain and (bias is None or added is not None))
        self.readings.append(reading)
        if added is None and reading.plain:
            self._results[result] = reading

    def note_added(self, one: int, other: int) -> None:
        """A bias that is added after its product."""
        for value, bias in ((one, other), (other, one)):
            reading = self._results.get(value)
            if reading is not None and reading.bias is None and self.source.get(bias) is not None:
                reading.bias = self.source[bias]

    # What holds for every call.

    def _read_squares(self, call: Call) -> None:
        """Squares that are not summed over units are the result of a pointwise function."""
        if has(call.name, ARRANGEMENT | VIEW) or call.name in ("aten.sum", "aten.mean"):
            return
        for value in call.inputs:
            for node in self.squares.get(value, ()):
                self.ledger.diagonal(node, self.where(call, "a square read"), still=False, unsigned=False)

    def _follow(self, call: Call) -> None:
        """Keep track of parameters, zeros and squares through views and copies."""
        results = [value for value in call.results if value is not None]
        if call.name in ZEROS or (call.name == "aten.fill" and call.arguments.get("value") == 0):
            self.zeros.update(results)
            return
        if has(call.name, SHAPE_ONLY) or len(call.inputs) != 1:
            return
        value = call.inputs[0]
        if has(call.name, ARRANGEMENT | VIEW):
            if value in self.zeros:
                self.zeros.update(results)
            if value in self.squares:
                self.squares.update(dict.fromkeys(results, self.squares[value]))
            if value in self._results:
                self._results.update(dict.fromkeys(results, self._results[value]))
            if value in self.source and all(prod(self.shape(r)) == prod(self.shape(value)) for r in results):
                self.source.update(dict.fromkeys(results, self.source[value]))
                if value in self.added:
                    self.added.update(dict.fromkeys(results, self.added[value]))

    def _cut(self, call: Call) -> None:
        """Segments of a parameter are its pieces."""
        value = call.inputs[0]
        cut = self.analysis.cuts[value]
        spans = segments(call.arguments, cut.edges[-1])
        for span, result in zip(spans, call.results, strict=True):
            if result is None:
                continue
            for piece, start in enumerate(cut.edges[:-1]):
                if span.start <= start < span.stop:
                    for family in {slot.family for slot in self.slots((value, piece))}:
                        own = [s for s in self.slots((value, piece)) if s.family == family]
                        other = [s for s in self.slots(result) if s.family == family]
                        for one, same in paired(own, other):
                            reason = self.where(call)
                            self.ledger.join(self.node((value, piece), one), self.node(result, same), False, reason)
                        if not other:
                            self.fix([self.node((value, piece), s) for s in own], self.where(call))
            if len(spans) == 1 or prod(self.shape(result)) > 0:
                self.source[result] = value


Handler = Callable[[Walk, Call], None]


def value_of(argument: Any) -> int | None:
    """The value that an argument stands for, if it is a tensor."""
    return argument.value if isinstance(argument, Ref) else None
