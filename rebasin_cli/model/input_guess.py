"""Guessing the input of an unknown model from its first parameters, by trying on the meta device.

A trial takes no memory and little time: on the meta device a forward pass computes only shapes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.foreign_code import foreign_code
from rebasin_cli.model.weightless import without_weights

IMAGE_SIDES = (32, 64, 28, 224, 96, 128, 256, 384, 512)
CLIP_SIDES = ((8, 112), (16, 112), (16, 224), (8, 32))
LENGTHS = (1024, 128, 16000)
TOKENS = (16, 32, 64, 128, 8, 4)


def candidates(module: nn.Module, seed: int = 0) -> tuple[ExampleInput, ...]:
    """Inputs that the module may take, likeliest first; empty if its parameters do not suggest any.

    Images are (1, C, H, W), clips (1, C, T, H, W), signals (1, C, L), sequences (1, T, D), tokens (1, T) integers.
    """
    sample = Sampler(seed)
    for child in module.modules():
        found = tuple(ExampleInput((tensor,)) for tensor in _for_layer(child, sample))
        if found:
            return found
    for parameter in module.parameters():
        found = tuple(ExampleInput((tensor,)) for tensor in _for_weight(tuple(parameter.shape), sample))
        if found:
            return found
    return ()


def _for_layer(layer: nn.Module, sample: Sampler) -> Iterator[torch.Tensor]:
    if isinstance(layer, nn.Linear):
        yield from _vectors(layer.in_features, sample)
    elif isinstance(layer, nn.Conv2d):
        yield from (sample.normal(1, layer.in_channels, side, side) for side in IMAGE_SIDES)
    elif isinstance(layer, nn.Conv1d):
        yield from (sample.normal(1, layer.in_channels, length) for length in LENGTHS)
    elif isinstance(layer, nn.Conv3d):
        yield from (sample.normal(1, layer.in_channels, frames, side, side) for frames, side in CLIP_SIDES)
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from (sample.integers((1, tokens), layer.num_embeddings) for tokens in TOKENS)
    elif isinstance(layer, nn.RNNBase):
        yield from (sample.normal(1, tokens, layer.input_size) for tokens in TOKENS[:1])
    elif isinstance(layer, nn.RNNCellBase):
        yield from (sample.normal(1, layer.input_size), sample.normal(1, TOKENS[0], layer.input_size))
    elif isinstance(layer, nn.MultiheadAttention):
        yield from (sample.normal(1, tokens, layer.embed_dim) for tokens in TOKENS)
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        yield from reversed(list(_vectors(layer.normalized_shape[0], sample)))


def _for_weight(shape: tuple[int, ...], sample: Sampler) -> Iterator[torch.Tensor]:
    """For code that calls `torch.nn.functional` on parameters of its own; a matrix may be used transposed."""
    if len(shape) == 2:
        yield from (sample.normal(1, width) for width in dict.fromkeys((shape[1], shape[0])))
        yield from (sample.normal(1, TOKENS[0], width) for width in dict.fromkeys((shape[1], shape[0])))
    elif len(shape) == 4:
        yield from (sample.normal(1, shape[1], side, side) for side in IMAGE_SIDES)
    elif len(shape) == 3:
        yield from (sample.normal(1, shape[1], length) for length in LENGTHS)


def _vectors(width: int, sample: Sampler) -> Iterator[torch.Tensor]:
    yield sample.normal(1, width)
    yield from (sample.normal(1, tokens, width) for tokens in TOKENS[:2])
    for channels in (1, 3):  # a network that flattens images itself
        side = round((width / channels) ** 0.5)
        if side > 1 and channels * side * side == width:
            yield sample.normal(1, channels, side, side)


def refusal(module: nn.Module, example: ExampleInput) -> Exception | None:
    """The exception when the module is run on the input's shapes; None if it runs, or if real values are needed."""
    try:
        shadow = without_weights(module, buffers=True)
        with foreign_code(quiet=True), torch.no_grad():
            shadow(*example.to("meta").args, **example.to("meta").kwargs)
    except Exception as error:
        undecided = isinstance(error, NotImplementedError) or any(
            word in str(error) for word in ("meta tensor", "Meta backend", "meta device", "device meta", ".item()")
        )
        return None if undecided else error
    return None


def first_accepted(module: nn.Module, seed: int = 0) -> tuple[ExampleInput | None, Exception | None]:
    """The first candidate that the module accepts; or None and the exception for the first candidate."""
    first_error: Exception | None = None
    for example in candidates(module, seed):
        error = refusal(module, example)
        if error is None:
            return example, None
        first_error = first_error or error
    return None, first_error
