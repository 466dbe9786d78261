"""The inputs that a model of transformers may take, from the signature of its `forward` and from its configuration.

Each kind of input (text, images, sound, series) has one or more layouts; their combinations are tried in order.
Most models have one, and nothing is tried. How many places of the text an image takes is not written in all
configurations: the likely numbers are tried, and the text alone comes last.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.transformers_images import Layout, Picture, images
from rebasin_cli.model.transformers_series import series

TOKENS = 16
DECODER_TOKENS = 8
TOKENS_FOR_EACH_EXPERT = 32
"""A mixture of experts needs enough tokens to reach most experts; units of those it does not reach are not permuted."""
MOST_TOKENS = 2048
SAMPLES = 16000  # a second of sound
FRAMES = 256
USUAL_BINS = (80, 128)
MOST_CANDIDATES = 40
SPECIAL = ("image", "video", "audio", "vision", "pad", "media")


def transformers_inputs(module: nn.Module, seed: int) -> tuple[ExampleInput, ...]:
    """Keyword arguments that the model may take, likeliest first; empty if nothing is known.

    Token ids are (1, T), images (1, C, H, W), sound (1, samples) or (1, mel bins, frames).
    """
    config = getattr(module, "config", None)
    takes = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", "input_ids")
    names = list(main) if isinstance(main, (list, tuple)) else [main]
    needed = [name for name, one in takes.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    wanted = list(dict.fromkeys([*(name for name in names if name in takes), *needed])) or names
    found: list[ExampleInput] = []
    for kwargs in islice(_combined(wanted, tuple(takes), config, seed), MOST_CANDIDATES):
        if any(name not in kwargs for name in needed):
            continue
        if "use_cache" in takes:
            kwargs["use_cache"] = False  # a cache is a second output that holds the same units
        found.append(ExampleInput((), kwargs))
    return tuple(found)


def _combined(wanted: Sequence[str], takes: Sequence[str], config: Any, seed: int) -> Iterator[dict[str, Any]]:
    picture = Picture(config, takes)
    alone = picture.is_main(wanted)
    pictures: list[Layout] = list(images(picture, Sampler(seed))) if alone or picture.beside_text else []
    if not alone and picture.beside_text:
        pictures.append(Layout({}))
    reads_text = "input_ids" in takes and (picture.beside_text or "input_ids" in wanted)
    for shown in pictures or [Layout({})]:
        sample = Sampler(seed)
        text = _text(config, takes, sample, shown, reads_text=reads_text)
        others = [_layouts(name, takes, config, sample) for name in wanted if name not in (*text, *shown.values)]
        if "bbox" in takes and "input_ids" in text:
            others.append(_boxes(text["input_ids"].shape[1], config, sample))
        if any(not layouts for layouts in others):
            continue
        for chosen in product(*others):
            kwargs = text | shown.values
            for layout in chosen:
                kwargs |= layout
            yield _in_order(kwargs, wanted)
            if reads_text and not shown.values and "input_features" in takes and "input_features" not in kwargs:
                for sound in _spectrograms("input_features", takes, config, sample):  # some models need both
                    yield _in_order(kwargs | sound, wanted)


def _in_order(kwargs: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    return {name: kwargs[name] for name in (*wanted, *kwargs) if name in kwargs}


def _text(config: Any, takes: Sequence[str], sample: Sampler, shown: Layout, *, reads_text: bool) -> dict[str, Any]:
    """Token ids, with as many places for an image as the layout needs; and those of a decoder."""
    found: dict[str, Any] = {}
    if reads_text:
        found["input_ids"] = ids = token_ids(config, sample)
        if shown.tokens:
            image = shown.token_id
            places = torch.full((1, shown.tokens), image, dtype=ids.dtype)
            found["input_ids"] = ids = torch.cat([ids[:, :2], places, ids[:, 2:]], 1)
            for name in ("mm_token_type_ids", "token_type_ids"):
                if name in takes:
                    found[name] = (ids == image).to(ids.dtype)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        found["decoder_input_ids"] = token_ids(config, sample, DECODER_TOKENS)
    return found


def token_ids(config: Any, sample: Sampler, length: int = TOKENS) -> Tensor:
    """Ids (1, T) of ordinary words: none of them stands for an image, a sound or padding."""
    words = text_config(config)
    length = max(length, _tokens_for_experts(words), _merged_tokens(words))
    longest = getattr(words, "max_position_embeddings", None)
    longest = longest if isinstance(longest, int) and longest > 0 else length
    size = int(getattr(words, "vocab_size", None) or 2)
    ids = sample.integers((1, min(length, longest)), size)
    special = _special_ids(config) | _special_ids(words)
    ordinary = [one for one in range(min(size, len(special) + 2)) if one not in special]
    if special and ordinary:
        for one in special:
            ids[ids == one] = ordinary[one % len(ordinary)]
    return ids


def text_config(config: Any) -> Any:
    """The part of the configuration that describes the text model."""
    found = getattr(config, "text_config", None)
    if found is None and getattr(config, "vocab_size", None) is None and hasattr(config, "get_text_config"):
        try:
            found = config.get_text_config()
        except ValueError:  # several of them
            found = None
    return config if found is None else found


def _special_ids(config: Any) -> set[int]:
    named = vars(config) if hasattr(config, "__dict__") else {}
    return {
        value
        for name, value in named.items()
        if type(value) is int and value >= 0 and name.endswith(("token_id", "token_index")) and name.startswith(SPECIAL)
    }


def _layouts(name: str, takes: Sequence[str], config: Any, sample: Sampler) -> list[dict[str, Any]]:
    """The layouts of one argument, each with the arguments that belong to it; empty if it is unknown."""
    words = text_config(config)
    width = _first(words, "hidden_size", "d_model", "n_embd") or 32
    if name in ("decoder_input_ids", "qformer_input_ids", "input_ids"):
        part = getattr(config, "qformer_config", None) if name.startswith("qformer") else None
        return [{name: token_ids(part or config, sample)}]
    if name == "query_embeds" and "encoder_hidden_states" in takes and _first(config, "encoder_hidden_size"):
        states = sample.normal(1, TOKENS, config.encoder_hidden_size)
        return [{name: sample.normal(1, TOKENS, width), "encoder_hidden_states": states}]
    if name in ("inputs_embeds", "query_embeds", "hidden_states", "noise_embeds"):
        return [{name: sample.normal(1, TOKENS, width)}]
    if name == "input_values" and _first(config, "num_mel_bins") and _first(config, "max_length"):
        return [{name: sample.normal(1, config.max_length, config.num_mel_bins)}]
    if name == "task_inputs":  # the text of a task, as whole numbers or, further on, as embeddings
        length, known = (
            _first(config, "task_seq_len") or TOKENS,
            _first(config, "text_encoder_vocab_size", "vocab_size"),
        )
        return [{name: sample.integers((1, length), known or 2)}, {name: sample.normal(1, length)}]
    if name in ("input_values", "waveform"):
        return [{name: sample.normal(1, SAMPLES)}, {name: sample.normal(1, 1, SAMPLES)}]
    if name in ("input_features", "audio_mel"):
        return _spectrograms(name, takes, config, sample)
    if name == "spectrogram":
        return [{name: sample.normal(1, TOKENS, _first(config, "model_in_dim", "num_mel_bins") or 80)}]
    if name.endswith("mask"):
        return [{}]  # comes with what it masks
    return series(name, takes, config, sample)


def _spectrograms(name: str, takes: Sequence[str], config: Any, sample: Sampler) -> list[dict[str, Any]]:
    """(1, bins, frames) and (1, frames, bins), with a mask of all frames where one is taken."""
    parts = [
        config,
        *(getattr(config, part, None) for part in ("encoder_config", "audio_config", "encoder", "decoder_config")),
    ]
    known = ("num_mel_bins", "n_mels", "input_feat_size", "feature_projection_input_dim", "feature_size", "input_dim")
    named = next((size for part in parts if part is not None and (size := _first(part, *known))), None)
    positions = next((size for part in parts if part is not None and (size := _first(part, "max_source_positions"))), 0)
    frames = 2 * positions if positions else FRAMES
    masks = [mask for mask in (f"{name}_mask", "audio_mel_mask") if mask in takes]
    masks = masks or [mask for mask in ("attention_mask",) if mask in takes and "input_ids" not in takes]
    by_shape = tuple(
        shape
        for bins in (USUAL_BINS if named is None else (named,))
        for shape in ((1, bins, frames), (1, frames, bins), (1, 1, frames, bins), (bins, frames))
    )
    found: list[dict[str, Any]] = []
    for masked in (bool(masks), False) if f"{name}_mask" not in takes else (True, False):
        for shape in by_shape:
            ones = torch.ones(1, frames, dtype=torch.bool if name == "audio_mel" else torch.int64)
            beside = dict.fromkeys(masks, ones) if masked else {}
            found.append({name: sample.normal(*shape), **beside})
        if not masks:
            break
    return found


def _boxes(length: int, config: Any, sample: Sampler) -> list[dict[str, Any]]:
    """A box for each token: left, top, right, bottom, in whole numbers or in shares of the page."""
    size = int(getattr(config, "max_2d_position_embeddings", None) or 1000) // 2
    corner = sample.integers((1, length, 2), size)
    boxes = torch.cat([corner, corner + sample.integers((1, length, 2), size)], 2)
    return [{"bbox": boxes}, {"bbox": boxes / (2 * size)}]


def _tokens_for_experts(config: Any) -> int:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = max((count for name in names if isinstance(count := getattr(config, name, None), int)), default=0)
    return min(TOKENS_FOR_EACH_EXPERT * experts, MOST_TOKENS)


def _merged_tokens(config: Any) -> int:
    """The most tokens that attention merges into one: a shorter text would not reach that code."""
    rates = getattr(config, "compress_rates", None)
    counts = [rate for rate in rates.values() if isinstance(rate, int)] if isinstance(rates, dict) else []
    return min(max(counts, default=0), MOST_TOKENS)


def _first(config: Any, *names: str) -> int | None:
    """The first entry that is a positive number."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
