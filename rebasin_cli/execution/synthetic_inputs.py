"""Inputs that need no data: noise like the model's example input, white, and for images also with a 1/f spectrum."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from rebasin_cli.execution.sample_inputs import sample_inputs
from rebasin_cli.model.example_input import ExampleInput

NUMBERS = 1 << 20
"""About so many input numbers are drawn in all: 341 images of 32 x 32, 6 of 224 x 224."""
FEWEST, MOST = 8, 256


def white_noise(example: ExampleInput, seed: int) -> Iterator[ExampleInput]:
    """Random inputs like the example: one batch where all its tensors have a first dimension of length 1."""
    samples = sample_inputs(example, _how_many(example) + 1, seed).inputs[1:]
    leaves = [tree_flatten((sample.args, sample.kwargs)) for sample in samples]
    tensors = [leaf for leaf in leaves[0][0] if isinstance(leaf, Tensor)]
    if not tensors or any(tensor.dim() == 0 or tensor.shape[0] != 1 for tensor in tensors):
        yield from samples
        return
    columns = zip(*(flat for flat, _ in leaves), strict=True)
    joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in map(list, columns)]
    args, kwargs = tree_unflatten(joined, leaves[0][1])
    yield ExampleInput(args, kwargs)


def natural_noise(example: ExampleInput, seed: int) -> Iterator[ExampleInput]:
    """White noise with the amplitude spectrum 1/f of natural images, unit variance (Field 1987); images only."""
    for batch in white_noise(example, seed):
        (image,) = batch.args
        yield ExampleInput((_one_over_f(image),), batch.kwargs)


def is_image(example: ExampleInput) -> bool:
    """Whether the model takes one image: a floating tensor (batch, channels, height, width)."""
    args = example.args
    single = len(args) == 1 and not example.kwargs and isinstance(args[0], Tensor)
    return single and args[0].is_floating_point() and args[0].dim() == 4 and min(args[0].shape[2:]) > 3


def _how_many(example: ExampleInput) -> int:
    numbers = sum(tensor.numel() for _, tensor in example.tensors())
    return max(FEWEST, min(MOST, NUMBERS // max(numbers, 1)))


def _one_over_f(image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
    shaped: Tensor = torch.fft.irfft2(torch.fft.rfft2(image.float()) / frequency, s=(height, width))
    return ((shaped - shaped.mean()) / shaped.std()).to(image.dtype)
