"""Where activations are added: the values of residual streams, which no norm's scale and shift stand in front of."""

from __future__ import annotations

from collections.abc import Mapping

from rebasin_cli.spec import Site, Tap
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.readout import Irregular, Readout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.tracing.graph import Ref, Trace
from rebasin_cli.tracing.operations import is_counted

SUMS = frozenset({"aten.add", "aten.add_"})


def choose_sums(
    trace: Trace,
    relations: Relations,
    closure: Closure,
    layouts: Mapping[int, AxisLayout],
    names: Mapping[tuple[int, int], str],
) -> tuple[Tap, ...]:
    """Taps where two activations are added, for all groups along the axes of these sums."""
    readout = Readout(closure, relations)
    ordinal, live, weights = -1, {id(call) for call in trace.live}, set(trace.state.values())
    found: list[Tap] = []
    for call in trace.calls:
        counted = not call.synthetic and is_counted(call.overload)
        ordinal += counted
        inputs = [ref.value for ref in call.arguments.values() if isinstance(ref, Ref)]
        if not counted or id(call) not in live or call.name not in SUMS or len(inputs) != 2 or weights & {*inputs}:
            continue
        result = call.results[0]
        if result is None or result not in layouts or not trace.values[result].dtype.is_floating_point:
            continue
        placed: dict[int, list[tuple[str, Site]]] = {}
        try:
            sites = list(readout.sites("", layouts[result]))
        except Irregular:
            continue
        for one in sites:
            name = names.get((one.family, one.fibre))
            if name is not None and one.site.span == 1:
                placed.setdefault(one.site.axis, []).append((name, one.site))
        shape = trace.values[result].shape
        found += [Tap(ordinal, None, axis, shape[axis], tuple(some)) for axis, some in sorted(placed.items())]
    return tuple(found)
