"""A dispatch mode that is shown plain operations only.

Operators that take functions (`flex_attention`, `cond`, `scan`, …) are followed through what they are made of; and so
are those that PyTorch composes of others, which reach a mode whole from within the former and from inference mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from rebasin_cli.errors import ModelError

_FLEX, _DIRECTLY = "torch.nn.attention.flex_attention", "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
"""By this switch `flex_attention` calls its operator itself; otherwise by the compiler, which no mode can follow."""


class Operations(TorchDispatchMode):
    """Base of modes that see every operation, `operation` being called for each.

    Attributes:
        takes_apart: whether composed operations that arrive whole are shown as what they are made of.
    """

    supports_higher_order_operators = True
    takes_apart = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._switches: list[bool | None] = []

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """What `func` gives for these arguments."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            with self:
                return _written_out(func)(*args, **(kwargs or {}))
        if self.takes_apart and _is_composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return self.operation(func, args, kwargs or {})

    def __enter__(self) -> Any:
        flex = sys.modules.get(_FLEX)
        self._switches.append(getattr(flex, _DIRECTLY, None))
        if self._switches[-1] is not None:
            setattr(flex, _DIRECTLY, True)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        before = self._switches.pop()
        if before is not None:
            setattr(sys.modules[_FLEX], _DIRECTLY, before)


@lru_cache(maxsize=4096)
def _is_composite(func: OpOverload) -> bool:
    if func.namespace == "prim":  # what a tensor is asked about itself; the dispatcher does not know these
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func._name, "CompositeImplicitAutograd"))


def _written_out(func: HigherOrderOperator) -> Callable[..., Any]:
    """The operator's plain implementation, which calls its functions and other operators.

    Raises:
        ModelError: it has none.
    """
    name: str = func._name
    own: dict[str, Callable[..., Any]] = {"cond": _branch, "while_loop": _loop}
    kernel = own.get(name) or func.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
    if kernel is None:
        raise ModelError(f"the operator {name} takes functions and cannot be followed into them")
    return kernel


def _branch(condition: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: tuple[Any, ...] = ()) -> Any:
    return (yes if condition else no)(*operands)


def _loop(
    condition: Callable[..., Any], body: Callable[..., Any], carried: tuple[Any, ...], beside: tuple[Any, ...] = ()
) -> Any:
    while condition(*carried, *beside):
        carried = body(*carried, *beside)
    return carried
