"""What an operator's schema says, read once: names and defaults of its arguments, which it writes to or looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload


@dataclass(frozen=True, slots=True)
class Operator:
    """One overload of an operator.

    Args:
        schema: the schema's own name (`aten::add_`).
        name: namespace and operator without overload and without the underscore of an in-place form (`aten.add`).
        overload: namespace, operator and overload (`aten.add_.Tensor`).
        arguments: name, whether it can be given by name alone, and default, of every argument in order.
        mutable: whether it changes any argument.
        written: names of the arguments that it changes.
        outs: names of the arguments that serve only to be written to.
        viewed: the argument that the results look at, for a view operation; None for all others.
        drawn: whether it draws random numbers.
    """

    schema: str
    name: str
    overload: str
    arguments: tuple[tuple[str, bool, Any], ...]
    mutable: bool
    written: tuple[str, ...]
    outs: frozenset[str]
    viewed: str | None
    drawn: bool

    def bind(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument by its name, defaults filled in."""
        given = len(args)
        return {
            name: kwargs[name] if name in kwargs else args[place] if place < given and not by_name else default
            for place, (name, by_name, default) in enumerate(self.arguments)
        }


@lru_cache(maxsize=4096)
def operator(func: OpOverload) -> Operator:
    """What the schema of `func` says."""
    schema = func._schema
    full = schema.name.replace("::", ".")
    aliases = [(a.name, a.alias_info) for a in schema.arguments if a.alias_info is not None]
    looks = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return Operator(
        schema=schema.name,
        name=full[:-1] if full.endswith("_") and not full.endswith("__") else full,
        overload=f"{full}.{schema.overload_name or 'default'}",
        arguments=tuple(
            (a.name, a.kwarg_only, a.default_value if a.has_default_value() else None) for a in schema.arguments
        ),
        mutable=schema.is_mutable,
        written=tuple(name for name, alias in aliases if alias.is_write),
        outs=frozenset(argument.name for argument in schema.arguments if argument.is_out),
        viewed=aliases[0][0] if looks and aliases else None,
        drawn=torch.Tag.nondeterministic_seeded in func.tags,
    )


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """All tensors among an operation's arguments or results, in order, repeats kept."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from tensors_in(item)
    elif isinstance(nested, dict):
        for item in nested.values():
            yield from tensors_in(item)
