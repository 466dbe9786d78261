"""Applies the rules to a recorded pass, call by call, and collects the relations.

Whatever is not understood is pinned and reported: an operation without a rule, or used in a way that its rule does not
cover, pins all that it touches. Positions of a parameter that no operation reads are pinned too, because an input of
another size, or another path through the model, may read them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.errors import ModelError, RebasinError
from rebasin_cli.symmetry import rules as _rules  # noqa: F401  (the rules register themselves)
from rebasin_cli.symmetry.algebra import reduce, settle_claims, settle_views
from rebasin_cli.symmetry.cuts import Cut, find_cuts
from rebasin_cli.symmetry.masks import find_masks
from rebasin_cli.symmetry.positions import (
    AxisLayout,
    IdBlock,
    Ids,
    IndexMeaning,
    Leaf,
    RowChoice,
    fixed_layout,
    free_layout,
)
from rebasin_cli.symmetry.registry import INDEX_RULES, RULES, Op, fixed_results, hold_all
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.rules.creation import constant_layout
from rebasin_cli.symmetry.rules.index_meaning import meaning_after, pin_indexed
from rebasin_cli.symmetry.rules.pointwise import pointwise
from rebasin_cli.symmetry.solver import Closure, solve
from rebasin_cli.tracing.graph import SCATTER, Call, Trace, refs_in
from rebasin_cli.tracing.operations import ARRANGEMENT, PICK, has, is_pointwise

MODEL_INPUT = "model input"
MODEL_OUTPUT = "model output"
NOT_TRAINED = "integer or constant buffer"
UNREAD = "not read in this forward pass"
ASKED = "pinned by request"
DECISION = "control flow depends on these values"


@dataclass(frozen=True, slots=True)
class UnknownOp:
    """An operation that no rule covers: everything that it touches is pinned.

    Args:
        op: full name of the operation.
        scope: path of the module that asked for it.
        pinned_axes: how many axes it pinned that were not pinned before.
        reason: why it is not covered.
    """

    op: str
    scope: str
    pinned_axes: int
    reason: str


@dataclass
class Analysis:
    """The relations that the rules find in one recorded pass.

    Attributes:
        trace: the record.
        pins: patterns of tensor names whose axes are all pinned.
        strict: raise where no rule covers an operation, instead of pinning what it touches.
        cautious: pin what the code around every weight-dependent decision handles, also where it skipped no parameter.
        relations: the relations found so far.
        layouts: by value, for everything that is no leaf.
        leaves: parameters, floating buffers and masks, by value, but for those in `cuts`.
        cuts: parameters that are read in segments only.
        unknown: the operations that no rule covers.
        unread: leaves that are not read, or not all of them along an axis that moves; known once the relations are
            closed.
        constants: the numbers of the trace's constants by value, but for masks and what is computed from them.
    """

    trace: Trace
    pins: tuple[str, ...] = ()
    strict: bool = False
    cautious: bool = False
    relations: Relations = field(default_factory=Relations)
    layouts: dict[int, AxisLayout] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    cuts: dict[int, Cut] = field(default_factory=dict)
    unknown: list[UnknownOp] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    constants: dict[int, Tensor] = field(init=False)
    _reading: Reading = field(default_factory=lambda: Reading())

    def __post_init__(self) -> None:
        found = find_masks(self.trace)
        self.constants = {v: numbers for v, numbers in self.trace.constants.items() if v not in found.computed}
        for key, value in self.trace.state.items():
            described = self.trace.values[value]
            if value in self.leaves or value in self.layouts:
                continue
            real = described.dtype.is_floating_point or described.dtype.is_complex
            if value in self.constants or not (real or value in found.masks):
                self.layouts[value] = fixed_layout(described.shape, NOT_TRAINED)
            elif any(fnmatchcase(key, pattern) for pattern in self.pins):
                self.layouts[value] = fixed_layout(described.shape, ASKED)
            else:
                self.leaves[value] = Leaf(key, free_layout(described.shape))
        self.cuts = find_cuts(self.trace, self.leaves)
        for value in self.cuts:
            del self.leaves[value]
        for value in self.trace.inputs:
            self.layouts[value] = fixed_layout(self.trace.values[value].shape, MODEL_INPUT)

    def layout_of(self, value: int) -> AxisLayout:
        if value in self.leaves:
            return self.relations.view(self.leaves[value], range(len(self.shape_of(value))))
        layout = self.layouts.get(value)
        if layout is None:
            numbers = self.constants.get(value)
            shape = self.trace.values[value].shape
            if numbers is None or numbers.layout is not torch.strided:  # a sparse one may be too large to expand
                layout = fixed_layout(shape, NOT_TRAINED)
            else:
                layout = constant_layout(self.relations, numbers)
            self.layouts[value] = layout
        if layout.leaf is not None:
            return self.relations.view(layout.leaf, layout.axes)
        return layout

    @property
    def all_leaves(self) -> list[Leaf]:
        """The leaves, and the pieces of those that were cut into segments."""
        return [*self.leaves.values(), *(piece for cut in self.cuts.values() for piece in cut.pieces)]

    def shape_of(self, value: int) -> tuple[int, ...]:
        return self.trace.values[value].shape

    def _dtype_of(self, value: int) -> torch.dtype:
        return self.trace.values[value].dtype

    def run(self) -> None:
        """Apply a rule to every live call, and pin the outputs.

        Raises:
            ModelError: `strict`, and an operation is not covered.
        """
        decisions = {id(call) for call in self.trace.decisions}
        for call in self.trace.live:
            results = [value for value in call.results if value is not None]
            if id(call) in decisions:
                self._hold_inputs(call)
            if all(value in self.constants for value in results):
                continue
            cut = self.cuts.get(call.inputs[0]) if call.inputs else None
            if cut is not None:
                self.layouts.update(zip(results, cut.results(self.relations, call), strict=True))
                settle_claims(self.relations)
                continue
            facts = (self.layout_of, self.shape_of, self.constants.get, self._dtype_of)
            op = Op(call, self.relations, *facts, self.trace.read.__contains__)
            for value, layout in zip(results, self._apply(op), strict=True):
                if layout is not None:
                    self.layouts[value] = layout
            settle_claims(self.relations)
            self._reading.note(call, self.layout_of, self.constants)
        for value in self.trace.outputs:
            layout = self.layout_of(value)
            if layout.meaning is not None:
                pin_indexed(self.relations, layout.meaning, MODEL_OUTPUT)
            hold_all(self.relations, layout, MODEL_OUTPUT)

    def close(self) -> Closure:
        """The solution of all relations, ids of intermediate results included."""
        self.unread = []
        settle_views(self.relations)
        for value, leaf in self.leaves.items():
            if value not in self.trace.read:
                for axis in range(len(self.shape_of(value))):
                    self.relations.hold_axis(leaf, axis, UNREAD)
                self.unread.append(leaf.key)
        for layout in (*(self.relations.layout(leaf) for leaf in self.all_leaves), *self.layouts.values()):
            for entry in layout.entries:
                if entry.block.ids is None:
                    self.relations.ids(entry)
        partial = self._reading.pin_unread(self.relations, self.all_leaves, UNREAD)
        closure = solve(self.relations)
        # Only where an axis moves can its unread positions fail to match what surrounds them on another input.
        self.unread.extend(dict.fromkeys(key for key, ids in partial if closure.moves(ids)))
        untaken = self.cautious or bool(self.unread)
        return solve(self.relations) if untaken and self._hold_around_untaken_paths() else closure

    def _hold_around_untaken_paths(self) -> bool:
        """Pin all that the code of a module handles if its weight-dependent control flow left its parameters unread.

        Another input may lead it to those parameters. They are pinned, so what they would be given, and what their
        results would be added to, must be pinned too. True if anything was pinned.
        """
        held = False
        owners = {key: self.trace.owners.get(key, "") for key in self.unread}
        for scope, place in dict.fromkeys((call.scope, call.place) for call in self.trace.weight_decisions):
            missed = next(
                (key for key, owner in owners.items() if f"{owner}.".startswith(f"{scope}." if scope else "")), None
            )
            if missed is None and not self.cautious:
                continue
            held = True
            skipped = "may go another way" if missed is None else f"skipped {missed}"
            reason = f"control flow in {scope or 'the model'} ({place or 'compiled code'}) {skipped}"
            for value in self._visible_in(scope):
                if value in self.leaves or value in self.layouts:
                    hold_all(self.relations, self.layout_of(value), reason)
                for piece in self.cuts[value].pieces if value in self.cuts else ():
                    hold_all(self.relations, self.relations.layout(piece), reason)
        return held

    def _visible_in(self, scope: str) -> set[int]:
        """Values that the code of one module handles: its own results, and what passes between it and its children."""
        seen = {
            v
            for call in self.trace.calls
            if call.scope == scope
            for v in (*call.inputs, *call.results)
            if v is not None
        }
        for call in self.trace.module_calls:
            if call.name == scope or call.name.rpartition(".")[0] == scope:
                seen.update((*call.inputs, *call.outputs))
        return seen

    def _hold_inputs(self, call: Call) -> None:
        for value in call.inputs:
            hold_all(self.relations, self.layout_of(value), DECISION)

    def _apply(self, op: Op) -> list[AxisLayout | None]:
        call = op.call
        picking = INDEX_RULES.get(call.name)
        rule = RULES.get(call.name) or (pointwise if is_pointwise(call.overload) else None)
        try:
            result = picking(op) if picking is not None else None
            meaning = self._meaning(op) if result is None else None
            if result is None:
                if rule is None:
                    return self._pin(op, f"no rule for {call.name}")
                result = rule(op)
            found: list[AxisLayout | None] = [result] if isinstance(result, AxisLayout) else list(result)
            found = [self._settled(layout, meaning) for layout in found]
            self._check(op, found)
        except RebasinError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            return self._pin(
                op, f"the rule for {call.name} does not cover this use of it ({type(error).__name__}: {said})", error
            )
        return found

    def _meaning(self, op: Op) -> IndexMeaning | None:
        """What the results' values mean, given the arguments'; indexed positions are pinned where that is lost."""
        given = [layout.meaning for layout in op.tensors if layout.meaning is not None]
        kept = [meaning for meaning in given if meaning_after(op.call.name, meaning) is not None]
        for meaning in given:
            if meaning not in kept:
                pin_indexed(self.relations, meaning, f"index values are used in {op.call.name}")
        return meaning_after(op.call.name, kept[0]) if kept else None

    def _settled(self, layout: AxisLayout | None, meaning: IndexMeaning | None) -> AxisLayout | None:
        """The layout without row choices whose rows are no longer separate, and with its meaning."""
        if layout is not None and any(isinstance(f, RowChoice) for entry in layout.entries for f in entry.factors):
            layout = reduce(self.relations, layout)
        return layout if layout is None or meaning is None else replace(layout, meaning=meaning)

    def _pin(self, op: Op, reason: str, error: Exception | None = None) -> list[AxisLayout | None]:
        if self.strict:
            where = f" (in module {op.call.scope!r})" if op.call.scope else ""
            raise ModelError(f"{reason}{where}", hint="leave out --strict to pin what it touches") from error
        pinned = 0
        for layout in op.tensors:
            if layout.meaning is not None:
                pin_indexed(self.relations, layout.meaning, reason)
            pinned += sum(1 for factor in layout.factors if factor not in layout.fixed)
            hold_all(self.relations, layout, reason)
        self.unknown.append(UnknownOp(op.call.overload, op.call.scope, pinned, reason))
        return list(fixed_results(op, reason))

    def _check(self, op: Op, found: list[AxisLayout | None]) -> None:
        """A rule whose result has a wrong shape does not cover this use."""
        values = [value for value in op.call.results if value is not None]
        for value, layout in zip(values, found, strict=True):
            if layout is not None and layout.shape != self.shape_of(value):
                raise ValueError(f"positions of shape {layout.shape} for a result of shape {self.shape_of(value)}")


@dataclass(slots=True)
class Reading:
    """Ids that some operation reads.

    A slice of a table reads its rows and no others. The others look free, since no operation constrains them, but a
    longer input, or a router that selects another expert, would read them too.
    """

    _blocks: set[IdBlock] = field(default_factory=set)

    def note(self, call: Call, layout_of: Callable[[int], AxisLayout], constants: Collection[int]) -> None:
        """Note what a call reads, once its rule has been applied."""
        if call.name == SCATTER or has(
            call.name, ARRANGEMENT
        ):  # moves positions only; readers of its results read them
            return
        if has(call.name, PICK) and all(
            v in constants for v in refs_in([call.arguments.get("indices"), call.arguments.get("index")])
        ):
            return
        for value in call.inputs:
            self._blocks.update(entry.block for entry in layout_of(value).entries)

    def pin_unread(self, relations: Relations, leaves: Iterable[Leaf], reason: str) -> list[tuple[str, Ids]]:
        """Pin those positions of the leaves (whose ids are all given out) that nothing reads.

        Returns:
            For every entry with such positions, the leaf's name and all ids of the entry.
        """
        read = np.zeros(relations.size, dtype=bool)
        for block in self._blocks:
            if block.ids is not None:
                read[block.ids] = True
        self._spread(relations, read)
        found = []
        for leaf in leaves:
            for entry in relations.layout(leaf).entries:
                ids = relations.ids(entry).ravel()
                if not np.all(read[ids]):
                    relations.pin(ids[~read[ids]], reason)
                    found.append((leaf.key, ids))
        return found

    @staticmethod
    def _spread(relations: Relations, read: np.ndarray) -> None:
        """Reading a child reads its parent; linked positions are read together."""
        pairs = [*relations.functions, *relations.links, *((right, left) for left, right in relations.links)]
        if not pairs:
            return
        source = np.concatenate([source for source, _ in pairs])
        target = np.concatenate([target for _, target in pairs])
        count = -1
        while count != int(np.count_nonzero(read)):
            count = int(np.count_nonzero(read))
            read[target[read[source]]] = True
