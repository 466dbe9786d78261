"""A library's own loading code, run on tensors that the caller gives in place of a file's.

A loader renames, stacks, splits and transposes what a file holds. It is only run here; what it did with the tensors is
recorded by `tracing/loading.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Tensors = dict[str, Tensor]
_MISMATCH = re.compile(r"size mismatch for (\S+): copying a param with shape torch\.Size\((\[[\d, ]*\])\)")
"""PyTorch's own words for a tensor of another size than the module's."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader returned.

    Attributes:
        module: the module with the tensors in it.
        missing: keys of its state dict that the loader reports as missing; None if it reports nothing.
        unexpected: names that it reports as unexpected; None if it reports nothing.
    """

    module: nn.Module
    missing: frozenset[str] | None = None
    unexpected: frozenset[str] | None = None


Loader = Callable[[Callable[[], nn.Module], Tensors], Loaded]
"""Takes what builds the module without weights, and the file's tensors by name; both may be used or not."""


def by_load_state_dict(build: Callable[[], nn.Module], tensors: Tensors) -> Loaded:
    """`load_state_dict` of the module, with all of its hooks and overrides: what a user of plain PyTorch calls."""
    module = build()
    module.load_state_dict(tensors)
    return Loaded(module)


@dataclass(slots=True)
class SeenLoading:
    """What `load_state_dict` reported, by module: the keys that were missing, and those that were unexpected.

    `mismatched`: shapes in which tensors of other sizes than the module's arrived in it, after its load hooks.
    """

    reported: dict[int, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    mismatched: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, loaded: Loaded) -> Loaded:
        """With what was reported for this module, unless its loader reports itself."""
        if loaded.missing is not None or id(loaded.module) not in self.reported:
            return loaded
        return Loaded(loaded.module, *self.reported[id(loaded.module)])


@contextmanager
def tolerant_loading(prepare: Callable[[nn.Module], None] | None = None) -> Iterator[SeenLoading]:
    """Within this context `load_state_dict` loads what fits, and does not raise for keys that are absent or unknown.

    Shapes that differ are not loaded: the caller sees that no element arrived.

    Args:
        prepare: called with each module before tensors are loaded into it.
    """
    original = nn.Module.load_state_dict
    seen = SeenLoading()

    def load_state_dict(
        self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        if prepare is not None:
            prepare(self)
        try:
            result = original(self, state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            found = {key: tuple(map(int, re.findall(r"\d+", shape))) for key, shape in _MISMATCH.findall(str(error))}
            if not found:
                raise
            seen.mismatched |= found
            return nn.modules.module._IncompatibleKeys([], [])
        seen.reported[id(self)] = frozenset(result.missing_keys), frozenset(result.unexpected_keys)
        return result

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def changes_loading(module: nn.Module) -> bool:
    """Whether any part of the module has a load hook, or its own loading code, that does not belong to PyTorch."""
    return any(_changes(part) for part in module.modules())


def _changes(part: nn.Module) -> bool:
    names = ("load_state_dict", "_load_from_state_dict")
    own = (getattr(type(part), name) for name in names)
    instance = (vars(part).get(name) for name in names)
    hooks = (*part._load_state_dict_pre_hooks.values(), *part._load_state_dict_post_hooks.values())
    return any(not _of_torch(code) for code in (*own, *filter(None, instance), *hooks))


def _of_torch(code: Any) -> bool:
    code = getattr(code, "hook", code)  # torch wraps hooks
    code = getattr(code, "func", code)  # functools.partial
    home = getattr(code, "__module__", None) or type(code).__module__
    return str(home).partition(".")[0] == "torch"
