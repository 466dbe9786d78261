"""The input of a `transformers` model, from its configuration and the names its `forward` takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from rebasin_cli.model.example_input import ExampleInput, Sampler

TOKENS = 16
DECODER_TOKENS = 8
TOKENS_FOR_EACH_EXPERT = 32
"""A mixture of experts is given so many tokens that a router reaches most experts; those that it does not must stay."""
MOST_TOKENS = 2048
SAMPLES = 16000  # a second of sound


def transformers_input(module: nn.Module, seed: int) -> ExampleInput | None:
    """Keyword arguments for everything that the model cannot do without; None where that is not known.

    Token ids are (1, T), images (1, C, H, W), sound (1, samples) or (1, mel bins, frames).
    """
    config = getattr(module, "config", None)
    takes = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", "input_ids")
    wanted = [main] + [name for name in ("input_ids", "pixel_values") if name in takes and name != main]
    if _entry(config, "vision_config") is None:  # only a model of two towers needs both
        wanted = wanted[:1]
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        wanted.append("decoder_input_ids")
    sample = Sampler(seed)
    kwargs: dict[str, Any] = {}
    for name in wanted:
        value = _value(name, config, sample)
        if value is None:
            return None
        kwargs[name] = value
    if "use_cache" in takes:
        kwargs["use_cache"] = False  # a cache is a second output that holds the same units
    return ExampleInput((), kwargs)


def _value(name: str, config: Any, sample: Sampler) -> torch.Tensor | None:
    if name in ("input_ids", "decoder_input_ids"):
        words = _entry(config, "text_config") or config
        length = max(TOKENS if name == "input_ids" else DECODER_TOKENS, _tokens_for_experts(words))
        longest = getattr(words, "max_position_embeddings", None)
        return sample.integers((1, min(length, longest or length)), int(getattr(words, "vocab_size", 2)))
    if name == "pixel_values":
        picture = _entry(config, "vision_config") or config
        size = getattr(picture, "image_size", None) or 224
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        channels = getattr(picture, "num_channels", None) or getattr(picture, "in_channels", None) or 3
        return sample.normal(1, channels, height, width)
    if name == "input_values":
        return sample.normal(1, SAMPLES)
    if name == "input_features":
        positions = getattr(config, "max_source_positions", None)
        return sample.normal(1, getattr(config, "num_mel_bins", 80), 2 * positions if positions else 256)
    return None


def _tokens_for_experts(config: Any) -> int:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = max((count for name in names if isinstance(count := _entry(config, name), int)), default=0)
    return min(TOKENS_FOR_EACH_EXPERT * experts, MOST_TOKENS)


def _entry(config: Any, name: str) -> Any:
    return getattr(config, name, None)
