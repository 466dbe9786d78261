"""The state that an optimizer keeps for one parameter: which axes of the parameter each of its tensors has.

Momenta and second moments have the parameter's shape. Adafactor keeps means over the last axis (`exp_avg_sq_row`) and
over the last but one (`exp_avg_sq_col`); `torch.optim.Adafactor` keeps them with an axis of length one in its place.
What is neither (blocks of an 8-bit state, preconditioners, flattened groups) has no axes of the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rebasin_cli.checkpoint.checkpoint import TensorInfo
from rebasin_cli.checkpoint.contents import Leaf, Unreadable, elements, leaves

Axes = tuple[int, ...]
"""For each axis of a tensor, the axis of the parameter that it is (where its length is the parameter's, else 1)."""

_MIXES_UNITS = re.compile(r"cond|kron|absmax|qmap|quant|project|eigen|factor|^GG$|^Qs?$", re.IGNORECASE)
_BY_ELEMENT = re.compile(
    r"exp|avg|moment|buf|acc|sum|prev|step_size|master|param|grad|shadow|slow|delta|var|^(m|v|z|s|p0|eta|mu|ax)$",
    re.IGNORECASE,
)
_ROW = re.compile(r"(^|_)row(_|$)")
_COLUMN = re.compile(r"(^|_)col(_|$)")


def is_optimizer(value: Any) -> bool:
    """Whether this is an optimizer's `state_dict()`."""
    if not isinstance(value, Mapping):
        return False
    state, groups = value.get("state"), value.get("param_groups")
    return (
        isinstance(state, Mapping)
        and isinstance(groups, list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
    )


def axes_of_entry(entry: Any, shape: tuple[int, ...]) -> dict[str, Axes] | None:
    """The axes of every tensor in the state of a parameter of this shape, by path; None if one cannot be explained.

    Single numbers, such as step counts, have no axes and are left out.
    """
    found: dict[str, Axes] = {}
    for name, value in entry.items() if isinstance(entry, Mapping) else ():
        if not isinstance(value, (TensorInfo, Unreadable)):
            if any(is_large(leaf) for leaf in leaves(value)):
                return None
            continue
        if not is_large(value):
            continue
        axes = None if isinstance(value, Unreadable) else axes_of_tensor(str(name), value.shape, shape)
        if axes is None or isinstance(value, Unreadable):
            return None
        found[value.key] = axes
    return found


def axes_of_tensor(name: str, own: tuple[int, ...], shape: tuple[int, ...]) -> Axes | None:
    """The parameter's axes that a tensor of this name and shape has; None if it cannot be told."""
    every = tuple(range(len(shape)))
    if _MIXES_UNITS.search(name):
        return None
    if len(shape) >= 2 and _ROW.search(name) and own == shape[:-1]:
        return every[:-1]
    if len(shape) >= 2 and _COLUMN.search(name) and own == (*shape[:-2], shape[-1]):
        return (*every[:-2], every[-1])
    if len(own) != len(shape) or any(length not in (1, whole) for length, whole in zip(own, shape, strict=True)):
        return None
    # A matrix of an unknown name beside a square parameter may be one of its row space with itself.
    unclear = len(shape) == 2 and shape[0] == shape[1] and not _BY_ELEMENT.search(name)
    return None if unclear else every


def is_large(leaf: Leaf) -> bool:
    """Whether it has more than one element; one that cannot be read counts as such."""
    return isinstance(leaf, Unreadable) or elements(leaf) > 1
