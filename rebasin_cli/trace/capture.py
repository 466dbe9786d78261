"""Runs a model as it was traced and hands out the results of chosen operations: where units' activations are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.trace.graph import Trace
from rebasin_cli.trace.tracer import plain_operations

OnResult = Callable[[int, Tensor], None]


def called_operations(trace: Trace) -> list[str]:
    """Overloads in the order in which the model called them."""
    return [call.overload for call in trace.calls if not call.synthetic]


def capture(
    module: nn.Module, example: ExampleInput, expected: list[str], wanted: Collection[int], on_result: OnResult
) -> None:
    """Run `module` once and hand the first tensor result of every wanted operation to `on_result`.

    Args:
        module: with real parameters, in eval mode.
        expected: overloads in the order of the trace (`called_operations`).
        wanted: ordinals among them.
        on_result: is given the ordinal and the tensor; it must not keep the tensor without copying it.

    Raises:
        ModelError: the model took another path than when it was traced.
    """
    mode = _Capture(expected, frozenset(wanted), on_result)
    with torch.no_grad(), plain_operations(), mode:
        module(*example.args, **example.kwargs)
    if mode.place < max(wanted, default=-1) + 1:
        raise ModelError("the model took another path on this input than on the one it was traced with")


class _Capture(TorchDispatchMode):
    def __init__(self, expected: list[str], wanted: frozenset[int], on_result: OnResult) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expected, self.wanted, self.on_result = expected, wanted, on_result
        self.place = 0

    def __torch_dispatch__(self, func: OpOverload, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.place in self.wanted:
            name = f"{func._schema.name.replace('::', '.')}.{func._schema.overload_name or 'default'}"
            if self.expected[self.place] != name:
                raise ModelError(
                    f"the model took another path on this input than on the one it was traced with: {name} "
                    f"where the trace has {self.expected[self.place]}"
                )
            result = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
            if result is not None:
                self.on_result(self.place, result)
        self.place += 1
        return out
