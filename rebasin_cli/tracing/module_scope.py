"""Which module is speaking: hooks and pre-hooks that follow a forward pass through the modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.tracing.graph import ModuleCall, ModuleInfo


class ModuleScope:
    """Follows the modules of one forward pass.

    Args:
        root: the model.
        value_of: gives the value index of a tensor, or None for a tensor that was not recorded.

    Attributes:
        failed: path of the innermost module that did not return; empty while all did.
    """

    def __init__(self, root: nn.Module, value_of: Callable[[Tensor], int | None]) -> None:
        self._names = {id(module): name for name, module in root.named_modules()}
        self._root = root
        self._value_of = value_of
        self._stack: list[tuple[str, tuple[int, ...]]] = []
        self._calls: list[ModuleCall] = []
        self._counts: Counter[str] = Counter()
        self.failed = ""

    @property
    def path(self) -> str:
        """Path of the module that is running now; empty for the model itself."""
        return self._stack[-1][0] if self._stack else ""

    @property
    def calls(self) -> tuple[ModuleCall, ...]:
        return tuple(self._calls)

    @property
    def modules(self) -> tuple[ModuleInfo, ...]:
        return tuple(
            ModuleInfo(name, type(module).__name__, self._counts[name]) for name, module in self._root.named_modules()
        )

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hooks on every module for the duration of the context."""
        handles = []
        for module in self._root.modules():
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _values(self, nested: Any) -> tuple[int, ...]:
        found = (self._value_of(leaf) for leaf in tree_leaves(nested) if isinstance(leaf, Tensor))
        return tuple(value for value in found if value is not None)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names.get(id(module), self.path)
        self._counts[name] += 1
        self._stack.append((name, self._values((args, kwargs))))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._stack:
            return
        name, inputs = self._stack.pop()
        if output is None:
            self.failed = self.failed or name
            return
        outputs = self._values(output)
        leaf = next(module.children(), None) is None
        self._calls.append(ModuleCall(name, type(module).__name__, inputs, outputs, leaf))
