"""Images and videos as the vision models of transformers take them.

A picture is (1, C, H, W), or (1, images, C, H, W), or cut into patches (N, C p p), whose grid is a further argument. In
a text, some tokens stand for the picture; how many depends on the model, so the likely numbers are offered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.model.example_input import Sampler

PARTS = ("vision_config", "backbone_config", "vision_encoder_config", "perceiver_config", "encoder")
NAMES = ("pixel_values", "pixel_values_videos", "hidden_states", "patch_embeds", "flattened_patches")
GRIDS = ("image_grid_thw", "grid_thw", "image_grid_hw", "grid_hws")
TOKEN_IDS = ("image_token_id", "image_token_index", "media_placeholder_token_id")
SIDE = 224
GRID = 4
FRAMES = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """Arguments that show a picture, and the tokens that stand for it in a text."""

    values: dict[str, Any]
    tokens: int = 0
    token_id: int = 0


class Picture:
    """What a configuration and a signature tell about the pictures of a model."""

    def __init__(self, config: Any, takes: Sequence[str]) -> None:
        parts = [part for name in PARTS if (part := getattr(config, name, None)) is not None]
        self.config = next((part for part in parts if _number(part, "image_size", "patch_size")), None) or config
        self.whole = config
        self.takes = takes
        self.beside_text = "pixel_values" in takes and "input_ids" in takes and bool(parts)
        self.channels = _number(self.config, "num_channels", "in_channels", "in_chans", "image_channels") or 3
        self.patch = _number(self.config, "patch_size", "spatial_patch_size") or 16
        self.grids = [name for name in GRIDS if name in takes]
        self.token_id = next((value for name in TOKEN_IDS if (value := getattr(config, name, None)) is not None), None)

    def is_main(self, wanted: Sequence[str]) -> bool:
        """Whether the model reads pictures first of all."""
        return any(name in NAMES[:2] or name == "flattened_patches" for name in wanted) or (
            bool(self.grids) and any(name in wanted for name in NAMES)
        )

    def sides(self) -> tuple[int, int]:
        size = getattr(self.config, "image_size", None) or getattr(self.whole, "image_size", None) or SIDE
        if isinstance(size, dict):
            size = (size.get("height", SIDE), size.get("width", SIDE))
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return int(height), int(width)


def images(picture: Picture, sample: Sampler) -> Iterator[Layout]:
    """The layouts that the model may take, likeliest first, each with every likely number of tokens."""
    for values, counts in (*_patches(picture, sample), *_pixels(picture, sample)):
        if picture.token_id is None or "input_ids" not in picture.takes:
            yield Layout(values)
        else:
            yield from (Layout(values, count, int(picture.token_id)) for count in counts)


def _patches(picture: Picture, sample: Sampler) -> Iterator[tuple[dict[str, Any], list[int]]]:
    name = next((name for name in NAMES if name in picture.takes), "pixel_values")
    area = picture.channels * picture.patch**2
    merge = _number(picture.config, "spatial_merge_size", "merge_size") or 2
    side = GRID if GRID % merge == 0 else 2 * merge
    count = side * side
    tokens = list(dict.fromkeys([count // merge**2, count, count // 4]))
    if "flattened_patches" in picture.takes:
        places = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5)).float()[None]
        yield {"flattened_patches": torch.cat([places, sample.normal(1, 16, area)], 2)}, tokens
    if "spatial_shapes" in picture.takes:
        masks = [mask for mask in ("pixel_attention_mask",) if mask in picture.takes]
        shapes = {"spatial_shapes": torch.tensor([[side, side]]), **dict.fromkeys(masks, torch.ones(1, count).long())}
        yield {name: sample.normal(1, count, area), **shapes}, tokens
    if "pixel_position_ids" in picture.takes or "image_position_ids" in picture.takes:
        positions = "pixel_position_ids" if "pixel_position_ids" in picture.takes else "image_position_ids"
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side))[None]
        yield {name: sample.uniform(1, count, area), positions: places}, tokens
    if "target_sizes" in picture.takes:
        strip = sample.normal(1, picture.channels, picture.patch, count * picture.patch)
        yield {name: strip, "target_sizes": torch.tensor([[side, side]])}, tokens
    for grid in picture.grids:
        shape = torch.tensor([[side, side]] if "hw" in grid.replace("thw", "") else [[1, side, side]])
        frames = _number(picture.config, "temporal_patch_size") or 1
        beside = {grid: shape, **({"merge_sizes": torch.tensor([merge])} if "merge_sizes" in picture.takes else {})}
        for size in dict.fromkeys((area * frames, area)):
            yield {name: sample.normal(count, size), **beside}, tokens
        yield {name: sample.normal(count, picture.channels, picture.patch, picture.patch), **beside}, tokens
        yield {name: sample.normal(1, count, area), **beside}, tokens


def _pixels(picture: Picture, sample: Sampler) -> Iterator[tuple[dict[str, Any], list[int]]]:
    height, width = picture.sides()
    shape = (picture.channels, height, width)
    tokens = _token_counts(picture, height, width)
    name = "pixel_values" if "pixel_values" in picture.takes else "pixel_values_videos"
    sizes = {"image_sizes": torch.tensor([[height, width]])} if "image_sizes" in picture.takes else {}
    frames = _number(picture.config, "num_frames", "frames_per_clip")
    if frames or name == "pixel_values_videos":
        yield {name: sample.normal(1, frames or FRAMES, *shape)}, tokens
    bins = _number(picture.config, "num_mel_bins")
    if bins:
        yield {name: sample.normal(1, _number(picture.config, "max_length") or 64, bins)}, tokens
    yield {name: sample.normal(1, *shape), **sizes, **_beside(picture, shape, sample)}, tokens
    if "input_ids" in picture.takes or not frames:
        yield {name: sample.normal(1, 1, *shape), **sizes}, tokens
        yield {name: sample.normal(1, 2, *shape), **sizes}, [2 * count for count in tokens]


def _beside(picture: Picture, shape: tuple[int, int, int], sample: Sampler) -> dict[str, Tensor]:
    """Further pictures of the same kind that some models compare with the first."""
    found: dict[str, Tensor] = {}
    if "prompt_pixel_values" in picture.takes:
        found["prompt_pixel_values"] = sample.normal(1, *shape)
        found["prompt_masks"] = sample.normal(1, *shape)
    if "high_res_pixel_values" in picture.takes:
        high = getattr(picture.whole, "high_res_vision_config", None)
        side = _number(high, "image_size") or shape[1]
        found["high_res_pixel_values"] = sample.normal(1, shape[0], side, side)
    return found


def _token_counts(picture: Picture, height: int, width: int) -> list[int]:
    """What configurations say, the number of patches, and the same pooled or with a class token."""
    patches = (height // picture.patch) * (width // picture.patch)
    named = ("image_seq_length", "mm_tokens_per_image", "image_seq_len", "num_image_tokens", "num_query_tokens")
    said = [count for name in named if (count := _number(picture.whole, name))]
    pooled = [patches // side**2 for side in (2, 4, 3) if isqrt(patches) >= side]
    counts = [patches, *pooled, *said, patches + 1, 1]
    return [count for count in dict.fromkeys(counts) if 0 < count <= 4096]


def _number(config: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (tuple, list)) and value:
            value = value[-1]
        if isinstance(value, int) and value > 0:
            return value
    return None
