"""Inputs like the example: what a network is run on when two sets of weights are compared.

Everything that can be seen in the example is kept: shapes, dtypes, ranges, whole numbers, masks, sparsity and sums of
rows. A model may ask for more than can be seen (an order, a valid combination), so there are three distances from the
example, and each sample uses the largest at which the model gives numbers:

1. *like*: new numbers of the same kind, drawn from the example's range;
2. *near*: the example's own numbers, moved by one hundredth of their spread; integers trade places within a column;
3. the example itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.model.example_input import ExampleInput

ACCEPTED_ERRORS = (Exception,)
NEAR = 0.01
SPARSE = 0.3
"""Share of zeros from which on a floating tensor counts as sparse."""

Accepts = Callable[[ExampleInput], bool]
"""Whether the model gives numbers for an input."""

WORDS = {
    "like": "random inputs like the example",
    "near": "inputs near the example",
    "example": "the example alone",
    "data": "the example and data",
}


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs, the example first.

    Args:
        inputs: what the model is run on.
        kind: how the others were made: `like`, `near`, or `example` where there are none, `data` where data was given.
        refused: what the model said to the first input that it did not take; None where it took the first kind tried.
    """

    inputs: tuple[ExampleInput, ...]
    kind: str
    refused: str | None = None

    def describe(self) -> str:
        """For the report, such as `random inputs like the example`."""
        return WORDS.get(self.kind, self.kind)


def sample_inputs(example: ExampleInput, samples: int, seed: int, accepts: Accepts | None = None) -> Samples:
    """The example itself, then up to `samples - 1` others that the model accepts.

    Args:
        accepts: raises, or returns False, for an input that the model does not take; None: all are taken.
    """
    refused: str | None = None
    for kind, draw in (("like", _like), ("near", _near)):
        generator = torch.Generator().manual_seed(seed)
        found: list[ExampleInput] = [example]
        for _ in range(samples - 1):
            drawn = _redrawn(example, draw, generator)
            said = _refusal(drawn, accepts)
            if said is not None:
                refused = refused or said
                break
            found.append(drawn)
        if len(found) == samples:
            return Samples(tuple(found), kind if samples > 1 else "example", refused)
    return Samples((example,), "example", refused)


def _refusal(drawn: ExampleInput, accepts: Accepts | None) -> str | None:
    if accepts is None:
        return None
    try:
        return None if accepts(drawn) else "its outputs are not finite"
    except ACCEPTED_ERRORS as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


Draw = Callable[[Tensor, torch.Generator], Tensor]


def _redrawn(example: ExampleInput, draw: Draw, generator: torch.Generator) -> ExampleInput:
    return ExampleInput(_rebuilt(example.args, draw, generator), _rebuilt(example.kwargs, draw, generator))


def _rebuilt(value: Any, draw: Draw, generator: torch.Generator) -> Any:
    if isinstance(value, Tensor):
        strided = value.layout is torch.strided and not value.is_complex()
        return draw(value, generator) if strided and value.numel() else value
    if isinstance(value, Mapping):
        return {key: _rebuilt(item, draw, generator) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_rebuilt(item, draw, generator) for item in value)
    return value


def _like(value: Tensor, generator: torch.Generator) -> Tensor:
    """New numbers of the kind that the tensor holds."""
    if value.dtype is torch.bool:
        return value  # a mask belongs to the lengths of its rows
    if not value.is_floating_point():
        least, most = int(value.min()), int(value.max())
        return torch.randint(least, most + 1, value.shape, generator=generator).to(value.dtype)
    wide = value.double()
    low, high = float(wide.min()), float(wide.max())
    if low == high or not bool(torch.isfinite(wide).all()):
        return value
    if _is_one_hot(wide) or float((wide == 0).double().mean()) >= SPARSE:
        return _rows_shuffled(value, generator)
    if bool((wide == wide.round()).all()):
        return torch.randint(int(low), int(high) + 1, value.shape, generator=generator).to(value.dtype)
    if low >= 0.0:
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return _with_sums_of(wide, drawn).to(value.dtype)
    mean, spread = float(wide.mean()), float(wide.std())
    if abs(mean) < 0.25 and 0.75 < spread < 1.25:  # normalised, and without bounds of its own
        return torch.randn(value.shape, generator=generator).to(value.dtype)
    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64) * spread + mean
    return drawn.clamp(low, high).to(value.dtype)


def _near(value: Tensor, generator: torch.Generator) -> Tensor:
    """The tensor's own numbers, slightly moved."""
    if value.dtype is torch.bool:
        return value
    if not value.is_floating_point():
        return _rows_shuffled(value, generator, axis=0) if value.dim() > 1 else value
    wide = value.double()
    low, high = float(wide.min()), float(wide.max())
    if bool((wide == wide.round()).all()) or not bool(torch.isfinite(wide).all()):
        return value
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * NEAR * (high - low)
    return _with_sums_of(wide, torch.where(wide == 0, wide, (wide + noise).clamp(low, high))).to(value.dtype)


def _is_one_hot(value: Tensor) -> bool:
    return value.dim() > 0 and value.shape[-1] > 1 and bool(((value == 0) | (value == 1)).all())


def _rows_shuffled(value: Tensor, generator: torch.Generator, axis: int = -1) -> Tensor:
    """Every line along an axis in an order of its own: counts, sums and ranges along it stay as they are."""
    if value.dim() == 0:
        return value
    order = torch.rand(value.shape, generator=generator).argsort(axis)
    return value.gather(axis, order)


def _with_sums_of(value: Tensor, drawn: Tensor) -> Tensor:
    """The drawn numbers with rows of equal sums where the rows of the example have (probabilities)."""
    if value.dim() == 0 or value.shape[-1] < 2:
        return drawn
    sums = value.sum(-1, keepdim=True)
    equal = sums.numel() > 0 and bool((sums - sums.flatten()[0]).abs().max() <= 1e-5 * sums.flatten()[0].abs())
    if not equal or (sums.numel() == 1 and abs(float(sums) - 1.0) > 1e-5):
        return drawn
    made = drawn.sum(-1, keepdim=True)
    return torch.where(made > 0, drawn * sums / made.clamp_min(1e-300), drawn)


def larger_inputs(example: ExampleInput) -> Iterator[ExampleInput]:
    """The example at larger sizes, most telling first: all sizes that can grow together, then one kind at a time.

    Sizes that occur at one place of several tensors (batch, length) grow together, and new numbers repeat the example's
    own, so that ranges and masks stay valid. The sizes of an image grow to the next multiples of 32 (from 128 up), or
    double; other sizes double; a batch grows by one.
    """
    tensors = [tensor for _, tensor in example.tensors()]
    if not tensors or all(tensor.dim() == 0 for tensor in tensors):
        return
    lead = max(tensors, key=lambda tensor: tensor.dim())
    spatial = tuple(range(2, lead.dim())) if lead.dim() >= 4 else ()
    batch = {(0, lead.shape[0]): lead.shape[0] + 1}
    inner = {(axis, lead.shape[axis]): _grown(lead.shape[axis]) for axis in spatial}
    lengths: list[dict[tuple[int, int], int]] = [inner] if spatial else []
    if not spatial:
        axes = [axis for axis in range(1, lead.dim()) if axis < lead.dim() - 1 or not lead.is_floating_point()]
        axes += [axis for axis in range(1, lead.dim()) if axis not in axes and lead.dim() > 2]
        lengths = [{(axis, lead.shape[axis]): 2 * lead.shape[axis]} for axis in axes]
        lengths += [{(0, lead.shape[0]): 2 * lead.shape[0]}] if lead.dim() > 2 else []
    changes = [{**batch, **length} for length in lengths] + lengths + [batch]
    for change in changes:
        if prod(change.get((axis, size), size) for axis, size in enumerate(lead.shape)) <= 16 * max(lead.numel(), 256):
            yield ExampleInput(_resized(example.args, change), _resized(example.kwargs, change))


def _grown(size: int) -> int:
    return (size // 32 + 1) * 32 if size >= 128 else 2 * size


def _resized(value: Any, change: Mapping[tuple[int, int], int]) -> Any:
    def resize(tensor: Tensor, generator: torch.Generator) -> Tensor:
        for axis, size in enumerate(tensor.shape):
            wanted = change.get((axis, size), size)
            if wanted != size:
                tensor = tensor.index_select(axis, torch.arange(wanted) % size)
        return tensor

    return _rebuilt(value, resize, torch.Generator())
