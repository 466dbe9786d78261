"""The record of one forward pass, as data: values, the operations between them, and the modules that called these.

In-place operations and views are resolved while recording, so that every value is assigned once and never changes.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebasin_cli.tracing.operations import DECIDES, OVERWRITES, SHAPE_ONLY, has

SCATTER = "rebasin.scatter"
"""The name of the synthetic call that writes a changed view back into the value it was a view of."""


class Ref(NamedTuple):
    """Stands for a tensor among the arguments of a call: the index of its value."""

    value: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the pass. Its elements are known only if `Trace.constants` contains them."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Call:
    """One operation.

    Args:
        name: namespace and operator without overload and without the underscore of an in-place form (`aten.add`).
        overload: the full name as it was called (`aten.add_.Tensor`).
        arguments: every argument by its name in the operator's schema, defaults filled in, tensors replaced by `Ref`.
        results: value indices of the tensors returned, flattened; None where a result is not a tensor.
        scope: path of the module that called it (empty for the model itself).
        synthetic: added while resolving views, not called by the model.
        place: file and line of the model's code, for operations that return numbers to it (`DECIDES`).
        guard: the numbers are read by a statement that only goes on or raises, see `code_place`.
        inputs: value indices of all tensor arguments, in order, repeats kept.
    """

    name: str
    overload: str
    arguments: dict[str, Any]
    results: tuple[int | None, ...]
    scope: str
    synthetic: bool = False
    place: str = ""
    guard: bool = False
    inputs: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", list(refs_in(self.arguments)))


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of one module: the values of its arguments and of its outputs."""

    name: str
    type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    leaf: bool


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module of the model, its class, and how often it was called."""

    name: str
    type: str
    calls: int


@dataclass(frozen=True)
class Trace:
    """The record of one forward pass.

    Args:
        values: every tensor, by index.
        calls: operations in the order in which they ran.
        state: value index by parameter or buffer name; names of one shared tensor have the same index.
        trainable: names of the parameters among `state`; the others are buffers.
        inputs: values of the example input.
        outputs: values that the model returned.
        constants: numbers of the values that depend on neither parameters nor inputs (and of integer buffers).
        modules: all modules with their number of calls.
        module_calls: every call of a module, innermost first where they end together.
        weightless: whether the pass ran without allocating any parameter.
        owners: path of the module that holds it, by state name.
    """

    values: tuple[Value, ...]
    calls: tuple[Call, ...]
    state: dict[str, int]
    trainable: frozenset[str]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Tensor]
    modules: tuple[ModuleInfo, ...]
    module_calls: tuple[ModuleCall, ...]
    weightless: bool
    owners: dict[str, str] = field(default_factory=dict)

    @cached_property
    def op_counts(self) -> dict[str, int]:
        """How often each overload was called, by name, without attribute queries of fake tensors."""
        counts = Counter(c.overload for c in self.calls if not c.synthetic and not c.overload.startswith("prim."))
        return dict(sorted(counts.items()))

    @cached_property
    def decisions(self) -> tuple[Call, ...]:
        """The calls that returned values which depend on weights or inputs to the model's Python code.

        The record is of the path taken with these values; with others, the path may differ.
        """
        return tuple(
            call
            for call in self.calls
            if has(call.name, DECIDES) and any(value not in self.constants for value in call.inputs)
        )

    @cached_property
    def weight_decisions(self) -> tuple[Call, ...]:
        """The decisions that depend on weights (routes, thresholds) and not on the input alone; guards are left out."""
        from_weights = set(self.state.values()) - set(self.constants)
        for call in self.calls:
            if not from_weights.isdisjoint(call.inputs):
                from_weights.update(value for value in call.results if value is not None)
        return tuple(call for call in self.decisions if not (call.guard or from_weights.isdisjoint(call.inputs)))

    @cached_property
    def live(self) -> tuple[Call, ...]:
        """The calls on which an output or a decision depends, in order; the others constrain nothing.

        Calls on empty tensors (a head on no boxes) are included: other inputs have rows.
        """
        needed = set(self.outputs)
        deciding = {id(call) for call in self.decisions}
        kept: list[Call] = []
        for call in reversed(self.calls):
            if id(call) in deciding or any(result in needed for result in call.results):
                needed.update(call.inputs)
                kept.append(call)
        return tuple(reversed(kept))

    @cached_property
    def read(self) -> frozenset[int]:
        """Values that a live call reads, or that are outputs."""
        return frozenset(value for call in self.live for value in call.inputs) | frozenset(self.outputs)

    @cached_property
    def numbers_read(self) -> frozenset[int]:
        """Values whose elements an output or a decision can depend on; of the others at most the shape is used."""
        needed = set(self.outputs)
        deciding = {id(call) for call in self.decisions}
        for call in reversed(self.live):
            if id(call) in deciding or any(result in needed for result in call.results):
                needed.update(refs_in([given for name, given in call.arguments.items() if self._is_used(call, name)]))
        return frozenset(needed)

    def _is_used(self, call: Call, name: str) -> bool:
        """Whether the elements of the results can depend on those of one argument."""
        if call.name == SCATTER and name == "base":  # none of it is left where the changed view covers all of it
            base, part = (prod(self.values[call.arguments[which].value].shape) for which in ("base", "part"))
            return bool(base > part)
        return not (name == "self" and has(call.name, OVERWRITES | SHAPE_ONLY))

    @cached_property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Maximal chains of module names in which each module feeds the next and nothing else feeds it."""
        return _linear_paths(self)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """For every name of a shared tensor, the first name under which the model holds it."""
        first: dict[int, str] = {}
        return {name: first.setdefault(value, name) for name, value in self.state.items()}


def refs_in(nested: Any) -> Iterator[int]:
    """Value indices of all `Ref`s in nested tuples, lists and dicts."""
    if isinstance(nested, Ref):
        yield nested.value
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from refs_in(item)
    elif isinstance(nested, dict):
        for item in nested.values():
            yield from refs_in(item)


def _linear_paths(trace: Trace) -> tuple[tuple[str, ...], ...]:
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


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's garbage collector disabled, and its state restored afterwards.

    Recording and deriving create millions of small objects, none of which is garbage; every collection would scan all
    of them for nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
