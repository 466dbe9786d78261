"""Runs a model as it was traced and hands out the results of chosen operations: where units' activations are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import Site
from rebasin_cli.trace.graph import Trace
from rebasin_cli.trace.tracer import plain_operations

OnResult = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True)
class Tap:
    """One axis of one operation's result, and the groups whose units lie along it.

    Args:
        ordinal: which operation, counted over those that the model itself called.
        axis: the axis of its first result.
        length: of that axis in the trace.
        sites: for each group that the tap speaks for, its name and its site; sites lie on this axis alone.
    """

    ordinal: int
    axis: int
    length: int
    sites: tuple[tuple[str, Site], ...]


_UNCOUNTED = ("prim.", "aten.alias", "aten.detach", "aten.empty", "aten.lift")
"""Operations that come and go with how tensors are represented, not with what the model does."""


def counts(overload: str) -> bool:
    """Whether an operation is counted when a pass is followed by number."""
    return not overload.startswith(_UNCOUNTED)


def called_operations(trace: Trace) -> list[str]:
    """Overloads of the counted operations in the order in which the model called them."""
    return [call.overload for call in trace.calls if not call.synthetic and counts(call.overload)]


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
        name = f"{func._schema.name.replace('::', '.')}.{func._schema.overload_name or 'default'}"
        if not counts(name):
            return out
        if self.place in self.wanted:
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
