"""Which positions of the parameters the pass reads.

A slice of a table reads its rows and no others. Those others look free, because nothing was said about them, but a
longer input, or a router that picks another expert, would read them too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from rebasin_cli.symmetry.positions import Block, Ids, Layout, Leaf
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.tracing.graph import SCATTER, Call, Trace, refs_in
from rebasin_cli.tracing.operations import ARRANGEMENT, OVERWRITES, PICK, SHAPE_ONLY, has


def numbers_read(trace: Trace) -> frozenset[int]:
    """Values whose numbers an output or a decision can depend on; of the others at most the shape counts."""
    needed = set(trace.outputs)
    deciding = {id(call) for call in trace.decisions}
    for call in reversed(trace.live):
        if id(call) in deciding or any(result in needed for result in call.results):
            needed.update(refs_in([given for name, given in call.arguments.items() if _counts(trace, call, name)]))
    return frozenset(needed)


def _counts(trace: Trace, call: Call, name: str) -> bool:
    """Whether the results' numbers can depend on those of one argument."""
    if has(call.name, SHAPE_ONLY):
        return name != "self"
    if call.name == SCATTER and name == "base":  # the view that was changed may be all of it
        base, part = (prod(trace.values[call.arguments[which].value].shape) for which in ("base", "part"))
        return bool(base > part)
    return not (name == "self" and has(call.name, OVERWRITES))


@dataclass(slots=True)
class Reading:
    """Ids that some operation reads."""

    _blocks: set[Block] = field(default_factory=set)

    def note(self, call: Call, layout_of: Callable[[int], Layout], constants: Collection[int]) -> None:
        """Note what a call reads, once its rule has been applied."""
        if call.name == SCATTER or has(call.name, ARRANGEMENT):  # what is read is what others read of its results
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
        """Who reads a position that follows another one reads that one; linked ones are read together."""
        pairs = [*relations.functions, *relations.links, *((right, left) for left, right in relations.links)]
        if not pairs:
            return
        source = np.concatenate([source for source, _ in pairs])
        target = np.concatenate([target for _, target in pairs])
        count = -1
        while count != int(np.count_nonzero(read)):
            count = int(np.count_nonzero(read))
            read[target[read[source]]] = True
