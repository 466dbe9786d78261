"""Inputs like the example: what both sets of weights are run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.model.example_input import ExampleInput


def sample_inputs(example: ExampleInput, samples: int, seed: int) -> Iterator[ExampleInput]:
    """The example itself, then `samples - 1` random inputs of the same shapes, dtypes and structure."""
    generator = torch.Generator().manual_seed(seed)
    yield example
    for _ in range(samples - 1):
        yield ExampleInput(_redraw(example.args, generator), _redraw(example.kwargs, generator))


def _redraw(value: Any, generator: torch.Generator) -> Any:
    """Random values of the same shapes: normal where floating, drawn from the example's own range where integer."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.dtype == torch.bool or value.numel() == 0:
            return value
        low, high = int(value.min()), int(value.max())
        return torch.randint(low, high + 1, value.shape, generator=generator).to(value.dtype)
    return _rebuild(value, lambda leaf: _redraw(leaf, generator))


def _rebuild(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(change(item) for item in value)
    return value
