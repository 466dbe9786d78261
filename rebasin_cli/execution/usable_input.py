"""Of several drawn inputs, the first on which the model gives numbers.

What a model is run on is drawn where the user names only shapes. Standard normal values suit most models, but not one
that takes a logarithm, checks a range, or looks rows up in several tables; such a model raises, or gives NaN. Trying
costs one forward pass on random weights.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from rebasin_cli.execution.forward import run
from rebasin_cli.execution.random_state import RandomState
from rebasin_cli.model.example_input import ExampleInput


def first_usable(module: nn.Module, candidates: Iterable[ExampleInput]) -> ExampleInput | None:
    """The first input on which all outputs are numbers; the first of all where there is none; None of an empty list.

    Args:
        module: the model; its parameters may be on the meta device.
        candidates: inputs in order of preference, made when they are asked for.
    """
    state = RandomState(module, 0)
    first: ExampleInput | None = None
    for candidate in candidates:
        first = first or candidate
        try:
            outputs = run(module, state, candidate)
        except Exception:  # whatever the model's code raises: the next candidate may suit it
            continue
        if not any(bool(output.isnan().any()) for output in outputs if output.is_floating_point()):
            return candidate
    return first
