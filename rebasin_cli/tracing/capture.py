"""Runs a model again as it was traced, and passes on what chosen operations read or return."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import Tap
from rebasin_cli.tracing.dispatch import OperationMode, operator, plain_operations, tensors_in
from rebasin_cli.tracing.graph import Trace
from rebasin_cli.tracing.operations import is_counted

_AFFINE, _TWO_STEPS, _SECOND_STEP = "aten.addmm.default", "aten.mm.default", "aten.add.Tensor"
_OPERANDS = {"mat1": "self"}
"""A linear layer is one operation if its input is contiguous, and otherwise two, as in attention on batches."""


class OtherPath(ModelError):
    """The operations differ from those of the trace."""

    default_slug = "other-path"


def called_operations(trace: Trace) -> list[str]:
    """Overloads of the counted operations in the order in which the model called them."""
    return [call.overload for call in trace.calls if not call.synthetic and is_counted(call.overload)]


OnTensor = Callable[[Tap, Tensor, Tensor | None], None]


def capture(
    module: nn.Module, example: ExampleInput, expected: Sequence[str], taps: Collection[Tap], on_tensor: OnTensor
) -> None:
    """Run `module` once and pass the tensor of every tap to `on_tensor`.

    Args:
        module: with real parameters, in eval mode.
        expected: overloads in the order of the trace (`called_operations`).
        taps: what to observe.
        on_tensor: called with the tap, its tensor, and the weights that read this, where the tap names some; it must
            copy what it keeps.

    Raises:
        OtherPath: the operations differ from those of the trace.
    """
    mode = _Capture(expected, taps, on_tensor)
    with torch.no_grad(), plain_operations(), mode:
        module(*example.args, **example.kwargs)
    if mode.place != len(expected):
        raise OtherPath(f"the model did {mode.place} operations where it did {len(expected)} when it was traced")


class _Capture(OperationMode):  # type: ignore[no-untyped-call]
    def __init__(self, expected: Sequence[str], taps: Collection[Tap], on_tensor: OnTensor) -> None:
        super().__init__()
        self.expected, self.on_tensor = expected, on_tensor
        self.taps: dict[int, list[Tap]] = {}
        for tap in taps:
            self.taps.setdefault(tap.ordinal, []).append(tap)
        self.place = 0
        self.pending: str | None = None

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        name = operator(func).overload
        if not is_counted(name):
            return func(*args, **kwargs)
        if name == self.pending:  # the bias of a linear layer in two steps: correlations are invariant to it
            self.pending = None
            return func(*args, **kwargs)
        place, self.place = self.place, self.place + 1
        names: Mapping[str, str] = {}
        if name == _TWO_STEPS and place < len(self.expected) and self.expected[place] == _AFFINE:
            name, names, self.pending = _AFFINE, _OPERANDS, _SECOND_STEP
        if place >= len(self.expected) or self.expected[place] != name:
            known = self.expected[place] if place < len(self.expected) else "the end"
            raise OtherPath(f"the model took another path than when it was traced: {name} where the trace has {known}")
        taps = self.taps.get(place, ())
        if any(tap.operand is not None for tap in taps):
            given = operator(func).bind(args, kwargs)
            for tap in taps:
                if tap.operand is not None:
                    weights = None if tap.reader is None else given[tap.reader[0]]
                    self.on_tensor(tap, given[names.get(tap.operand, tap.operand)], weights)
        out = func(*args, **kwargs)
        for tap in taps:
            if tap.operand is None:
                self.on_tensor(tap, next(tensors_in(out)), None)
        return out
