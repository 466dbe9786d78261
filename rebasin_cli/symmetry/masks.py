"""Masks: integer and boolean buffers that are only combined element by element, so their positions may move.

Other integer buffers are indices, counters, tables of numbers. What they hold is known while rules are applied, and
they keep their order. A mask moves with the units that it masks, as the same mask in floating point does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rebasin_cli.tracing.graph import Call, Trace
from rebasin_cli.tracing.operations import DECIDES, SEGMENT, WHOLE, has, is_pointwise

SUMS = ("aten.any", "aten.all", "aten.mean", "aten.sum")


@dataclass(frozen=True, slots=True)
class Masks:
    """Values of masks in the state dict, and all constants that are computed from them."""

    masks: Collection[int]
    computed: Collection[int]


def find_masks(trace: Trace) -> Masks:
    """The masks of a model; a buffer that anything else than pointwise operations, views and sums read is none."""
    sources = {
        value: {value}
        for value in trace.state.values()
        if value in trace.constants and trace.values[value].shape and not trace.values[value].dtype.is_floating_point
    }
    if not sources:
        return Masks((), ())
    of = dict(sources)
    others: set[int] = set(trace.outputs)
    decisions = {id(call) for call in trace.decisions}
    for call in trace.live:
        met = set().union(*(of.get(value, ()) for value in call.inputs))
        if not met:
            continue
        if id(call) in decisions or not _keeps_positions(call):
            others |= met
        for value in call.results:
            if value is not None and value in trace.constants:
                of[value] = met
    masks = {value for value in sources if value not in others and not any(one in others for one in of[value])}
    return Masks(masks, {value for value, met in of.items() if met & masks})


def _keeps_positions(call: Call) -> bool:
    if has(call.name, DECIDES):
        return False
    return has(call.name, WHOLE | SEGMENT) or call.name in SUMS or is_pointwise(call.overload)
