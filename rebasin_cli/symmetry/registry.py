"""Rules by operator name, what a rule is given, and what every rule may use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rebasin_cli.errors import ModelError
from rebasin_cli.symmetry.algebra import reduce
from rebasin_cli.symmetry.positions import (
    AxisLayout,
    dimension,
    fixed_layout,
)
from rebasin_cli.symmetry.relations import Relations, hold_entry
from rebasin_cli.tracing.graph import Call, Ref

Result = AxisLayout | Sequence[AxisLayout | None]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation as its rule sees it: arguments, layouts of its tensors, shapes of its results.

    Arguments go by their names in the operator's schema, defaults filled in.
    """

    call: Call
    relations: Relations
    layout_of: Callable[[int], AxisLayout]
    shape_of: Callable[[int], tuple[int, ...]]
    numbers_of: Callable[[int], Tensor | None]
    dtype_of: Callable[[int], torch.dtype]
    is_read: Callable[[int], bool]

    def __getitem__(self, name: str) -> Any:
        return self.call.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.call.arguments.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        return isinstance(self.call.arguments.get(name), Ref)

    def layout(self, name: str) -> AxisLayout:
        return self.layout_of(self[name].value)

    def layouts(self, name: str) -> list[AxisLayout]:
        """Layouts of a list of tensors."""
        return [self.layout_of(ref.value) for ref in self[name]]

    def numbers(self, name: str) -> Tensor | None:
        """The values of a constant argument; None where they are not known."""
        ref = self.call.arguments.get(name)
        return self.numbers_of(ref.value) if isinstance(ref, Ref) else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shape_of(self[name].value)

    @property
    def tensors(self) -> list[AxisLayout]:
        """Layouts of all tensor arguments."""
        return [self.layout_of(value) for value in self.call.inputs]

    @property
    def result_shapes(self) -> list[tuple[int, ...]]:
        return [self.shape_of(value) for value in self.call.results if value is not None]

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.result_shapes[0]

    def dim(self, name: str, rank: int) -> int:
        """A dimension argument, counted from the front."""
        return int(self[name]) % max(rank, 1)

    def dims(self, name: str, rank: int) -> list[int]:
        """A list of dimensions, counted from the front; all of them where none is given."""
        given = self.get(name)
        if given is None or (isinstance(given, (list, tuple)) and not given):
            return list(range(rank))
        return [int(dim) % max(rank, 1) for dim in (given if isinstance(given, (list, tuple)) else [given])]


Rule = Callable[[Op], Result]
IndexRule = Callable[[Op], Result | None]
_AnyRule = TypeVar("_AnyRule", bound=Callable[[Op], Any])

RULES: dict[str, Rule] = {}

INDEX_RULES: dict[str, IndexRule] = {}
"""Rules that are tried first: they handle integers that are positions, and return None where these are no such."""

_replaceable: set[tuple[int, str, Callable[[Op], Any]]] = set()
"""Rules that a new one may override: table, operator name, rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name (`aten.add`: all overloads and in-place forms).

    Raises:
        ModelError: one of them has another rule.
    """
    return partial(_register, RULES, names)


def index_rule(*names: str) -> Callable[[IndexRule], IndexRule]:
    """Register a rule for operators that make or use indices.

    Raises:
        ModelError: one of them has another rule.
    """
    return partial(_register, INDEX_RULES, names)


def _register(table: dict[str, _AnyRule], names: Sequence[str], function: _AnyRule) -> _AnyRule:
    for name in names:
        given = table.get(name)
        if given is not None and given is not function and (id(table), name, given) not in _replaceable:
            raise ModelError(
                f"{place_of(function)}: {name} already has a rule, at {place_of(given)}",
                hint="keep one rule for each operator",
                slug="duplicate-rule",
            )
        table[name] = function
    return function


def place_of(function: Callable[[Op], Any]) -> str:
    """File and line of a rule."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


@contextmanager
def temporary_rules() -> Iterator[None]:
    """Rules registered inside the context may override those registered before it, and are removed afterwards."""
    tables: tuple[dict[str, Any], ...] = (RULES, INDEX_RULES)
    before = [dict(table) for table in tables]
    outer = set(_replaceable)
    _replaceable.clear()
    _replaceable.update((id(table), name, given) for table in tables for name, given in table.items())
    try:
        yield
    finally:
        _replaceable.clear()
        _replaceable.update(outer)
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


def hold(relations: Relations, layout: AxisLayout, dims: Sequence[int], reason: str) -> AxisLayout:
    """The layout with some dimensions pinned: the operation depends on the order along them."""
    factors = [factor for place in dims for factor in layout.dims[place]]
    if layout.unresolved and not _splits_an_axis(layout, dims):
        return _hold_axes(relations, layout, dims, reason)
    layout = relations.released(layout)
    fixed = {**layout.fixed, **{factor: reason for factor in factors if factor not in layout.fixed}}
    entries = []
    for entry in layout.entries:
        met = {factor: fixed[factor] for factor in entry.factors if factor in factors}
        if any(factor not in layout.fixed for factor in met):
            hold_entry(relations, entry, met if len(met) < len(entry.factors) else dict.fromkeys(entry.factors, reason))
        if any(factor not in fixed for factor in entry.factors):
            entries.append(entry)
    return AxisLayout(layout.dims, tuple(entries), fixed)


def _splits_an_axis(layout: AxisLayout, dims: Sequence[int]) -> bool:
    """Whether these dimensions are some of those that one axis of the leaf was split into, and not all."""
    inside = {layout.axes[place] for place in dims}
    return any(axis in inside for place, axis in enumerate(layout.axes) if place not in dims and axis >= 0)


def _hold_axes(relations: Relations, layout: AxisLayout, dims: Sequence[int], reason: str) -> AxisLayout:
    """An unresolved leaf with pinned axes stays unresolved: its other axes are as unknown as before."""
    assert layout.leaf is not None
    for place in dims:
        if layout.dims[place]:
            relations.hold_axis(layout.leaf, layout.axes[place], reason)
    factors = {factor for place in dims for factor in layout.dims[place]}
    entries = tuple(entry for entry in layout.entries if not factors & set(entry.factors))
    return replace(layout, entries=entries, fixed={**layout.fixed, **dict.fromkeys(factors, reason)})


def hold_all(relations: Relations, layout: AxisLayout, reason: str) -> AxisLayout:
    """The layout with every dimension pinned."""
    return hold(relations, layout, range(len(layout.dims)), reason)


def resized(
    relations: Relations, layout: AxisLayout, places: Sequence[int], shape: Sequence[int], reason: str
) -> AxisLayout:
    """The layout with the given dimensions replaced by fixed ones of the result's sizes.

    Every new position may depend on several old ones, so the other dimensions must be permuted alike at all of them:
    the old dimensions are reduced.
    """
    layout = relations.released(layout)
    kept = reduce(relations, replace(layout, dims=tuple(() if at in places else d for at, d in enumerate(layout.dims))))
    dims = tuple(dimension(shape[at]) if at in places else dim for at, dim in enumerate(layout.dims))
    return replace(kept, dims=dims, fixed={**kept.fixed, **{f: reason for at in places for f in dims[at]}})


def fixed_results(op: Op, reason: str) -> list[AxisLayout]:
    """Results all of whose positions are pinned."""
    return [fixed_layout(shape, reason) for shape in op.result_shapes]
