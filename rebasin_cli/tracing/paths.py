"""The linear paths that data takes through the modules: chains without a fork or a join, in the order of the pass."""

from __future__ import annotations

from rebasin_cli.tracing.graph import ModuleCall, Trace


def linear_paths(trace: Trace) -> tuple[tuple[str, ...], ...]:
    """Maximal chains of module names in which each module feeds the next and nothing else feeds it.

    Only modules without children take part; what functional code does between two of them joins or forks the chain.
    """
    calls = [call for call in trace.module_calls if call.leaf and call.outputs]
    before = _feeding(trace, calls)
    after: list[set[int]] = [set() for _ in calls]
    for place, sources in enumerate(before):
        for source in sources:
            after[source].add(place)
    paths: list[tuple[str, ...]] = []
    for start in range(len(calls)):
        if len(before[start]) == 1 and len(after[next(iter(before[start]))]) == 1:
            continue  # in the middle of a chain
        chain, place = [calls[start].name], start
        while len(after[place]) == 1:
            following = next(iter(after[place]))
            if len(before[following]) != 1:
                break
            chain.append(calls[following].name)
            place = following
        paths.append(tuple(chain))
    return tuple(paths)


def _feeding(trace: Trace, calls: list[ModuleCall]) -> list[set[int]]:
    """For each module call, the calls whose outputs reach its inputs without passing through another module."""
    maker: dict[int, int] = {}
    for place, call in enumerate(calls):
        for value in call.outputs:
            if value not in call.inputs:
                maker.setdefault(value, place)
    sources: dict[int, frozenset[int]] = {value: frozenset((place,)) for value, place in maker.items()}
    for operation in trace.calls:
        reaching = frozenset[int]().union(*(sources.get(value, frozenset()) for value in operation.inputs))
        for result in operation.results:
            if result is not None and result not in maker:
                sources[result] = reaching
    return [
        set().union(*(sources.get(value, frozenset()) for value in call.inputs)) - {place}
        for place, call in enumerate(calls)
    ]
