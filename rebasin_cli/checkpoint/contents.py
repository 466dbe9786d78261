"""What a file holds beside its state dict: nested mappings and lists whose leaves are tensors' header entries.

An optimizer's state, averaged weights, random states: each format turns what it read into this one form, so that the
code that finds copies of the weights in it needs no format. The key of an entry is its path in the file
(`optimizer.state.0.exp_avg`), which is also the name under which `Checkpoint.beside_tensor` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from rebasin_cli.checkpoint.checkpoint import TensorInfo

MOST_BESIDE = 800_000
_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor that is not a dense one, so that it can only be copied."""

    path: str
    reason: str


Leaf = TensorInfo | Unreadable


def neutral_tree(
    root: Any, is_tensor: Callable[[Any], bool], described: Callable[[str, Any], Leaf], left_out: Iterable[object]
) -> Any:
    """`root` as mappings, lists, plain values and leaves; whatever else is in it becomes None.

    Every part is visited once, under the path that leads to it first: a small pickle can refer to one part many times.

    Args:
        described: from a path, unique in the tree, and a tensor to its leaf.
        left_out: what the chosen state dict consists of; None stands in the place of each.
    """
    chosen = {id(one) for one in left_out}
    done: dict[int, Any] = {}
    paths: set[str] = set()

    def visit(value: Any, path: tuple[str, ...]) -> Any:
        if id(value) in chosen or len(path) > _DEEPEST:
            return None
        if isinstance(value, (str, int, float, bool)) or value is None:
            return value
        if id(value) in done:
            return done[id(value)]
        done[id(value)] = None
        if is_tensor(value):
            name = ".".join(path)
            while name in paths:
                name += "'"
            paths.add(name)
            result: Any = described(name, value) if len(paths) <= MOST_BESIDE else Unreadable(name, "too many tensors")
        elif isinstance(value, Mapping):
            result = {
                key if isinstance(key, int) else str(key): visit(item, (*path, str(key))) for key, item in value.items()
            }
        elif isinstance(value, (list, tuple)):
            result = [visit(item, (*path, str(place))) for place, item in enumerate(value)]
        else:
            result = None
        done[id(value)] = result
        return result

    return visit(root, ())


def leaves(tree: Any) -> Iterator[Leaf]:
    """Every leaf, each once, in the order of the file."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (TensorInfo, Unreadable)):
            if id(value) not in seen:
                seen.add(id(value))
                yield value
        elif isinstance(value, (Mapping, list)) and id(value) not in seen:
            seen.add(id(value))
            inner = list(value.values() if isinstance(value, Mapping) else value)
            waiting += reversed(inner)


def under(tree: Any, name: str) -> Any:
    """The same tree with every path inside `name`."""
    done: dict[int, Any] = {}

    def visit(value: Any) -> Any:
        if id(value) in done:
            return done[id(value)]
        result = value
        if isinstance(value, TensorInfo):
            result = replace(value, key=f"{name}.{value.key}")
        elif isinstance(value, Unreadable):
            result = replace(value, path=f"{name}.{value.path}")
        elif isinstance(value, Mapping):
            result = {key: visit(item) for key, item in value.items()}
        elif isinstance(value, list):
            result = [visit(item) for item in value]
        done[id(value)] = result
        return result

    return visit(tree)


def elements(info: TensorInfo) -> int:
    """Number of elements."""
    return prod(info.shape)
