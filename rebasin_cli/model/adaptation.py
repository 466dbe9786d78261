"""A factory fitted to a checkpoint: class count and auxiliary parts, found by building and comparing shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rebasin_cli.errors import ModelError
from rebasin_cli.model.class_count import find_class_count, unshared
from rebasin_cli.model.state import Shape, state_shapes

if TYPE_CHECKING:
    from rebasin_cli.model.factory import ModelFactory


def adapted(factory: ModelFactory, shapes: Mapping[str, Shape]) -> tuple[ModelFactory, str | None]:
    """The factory with what the checkpoint's shapes explain, and the sentence that says so; see its `adapt_to`."""
    own = state_shapes(factory.build_weightless())
    if own == dict(shapes):
        return factory, None
    switched, said = _with_switch(factory, shapes, own)
    counted, also = _with_class_count(switched, shapes)
    return counted, "; ".join(part for part in (said, also) if part) or None


def _with_switch(
    factory: ModelFactory, shapes: Mapping[str, Shape], own: Mapping[str, Shape]
) -> tuple[ModelFactory, str | None]:
    """With or without auxiliary parts, when that alone makes the keys the checkpoint's."""
    differing = unshared(own, shapes)
    for argument, value in factory.source.switches() if differing else ():
        other = None if argument in factory.args else _shapes_with(factory, argument, value)
        if other is not None and not unshared(other, shapes):
            verb = "has" if len(other) > len(own) else "lacks"
            seen = f"the checkpoint {verb} {differing[0]} and {len(differing) - 1} more"
            said = f"{seen}: {factory.name} is built with {argument}={value}"
            return factory.with_args(**{argument: value}), said
    return factory, None


def _with_class_count(factory: ModelFactory, shapes: Mapping[str, Shape]) -> tuple[ModelFactory, str | None]:
    """With the number of classes that makes the shapes the checkpoint's."""
    names = [name for name in factory.source.class_count_names() if name not in factory.args]
    if not names:
        return factory, None
    signature = factory.source.signature()
    parameters = signature.parameters if signature else {}
    found = find_class_count(
        state_shapes(factory.build_weightless()),
        shapes,
        names,
        {name: parameters[name].default for name in names if name in parameters},
        lambda argument, value: _shapes_with(factory, argument, value),
    )
    if found is None:
        return factory, None
    keys = found.keys[0] if len(found.keys) == 1 else f"{found.keys[0]} and {len(found.keys) - 1} more"
    built = f"{factory.name} is built with {found.argument}={found.value}"
    counted = factory.with_args(**{found.argument: found.value})
    return counted, f"the checkpoint has {found.value} classes ({keys}): {built}"


def _shapes_with(factory: ModelFactory, argument: str, value: object) -> dict[str, Shape] | None:
    try:
        return state_shapes(factory.with_args(**{argument: value}).build_weightless())
    except ModelError:
        return None
