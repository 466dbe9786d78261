"""A small configuration of any model type of transformers, by the names of its entries.

Three ways are tried until one builds and runs on shapes alone: every size small; sizes of heads kept and the rest
divided by one number, which keeps relations between sizes; and these with single entries left at their defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|vocab_size|.*_vocab", 96),
    (r".*(_|^)(token_id|token_index|tok_id|token)$", 3),
    (r"rotary_dim", 4),
    (r".*_d_head", 8),
    (r"(num_)?(hidden_|encoder_|decoder_|transformer_|n_)?layers?|.*_layers|.*_depth|depth|n_layers?|num_blocks", 2),
    (r".*(kv_heads|key_value_heads|num_key_value_head|attention_groups)$|n_head_kv|multi_query_group_num", 2),
    (r".*(_heads|_head|attention_head)$|n_heads?|num_heads", 4),
    (r".*head_dim$|d_kv|kv_channels|attention_key_dim", 8),
    (
        r"(.*_)?(intermediate|ffn|ff|feed_forward|mlp|inner|feedforward|ffn_hidden)_?(size|dim|hidden_size)?|d_ff|n_inner",
        48,
    ),
    (r".*moe_intermediate_size.*|.*shared_expert.*size.*", 24),
    (
        r"(.*_)?(hidden_size|hidden_dim|embed_dim|embedding_size|d_model|n_embd|model_dim|proj_dim|projection_dim|dim)",
        32,
    ),
    (r"(.*_)?(num|n)_(local_|routed_)?experts$|moe_num_experts|num_local_experts", 4),
    (r".*experts_per_tok(en)?|.*top_?k|.*num_selected_experts", 2),
    (r".*image_size|.*input_size|img_size", 32),
    (r".*patch_size", 8),
    (r".*max_.*positions?.*|n_positions|.*max_position_embeddings|.*max_seq.*|n_ctx", 128),
    (r".*num_mel_bins|num_mel_bins|n_mels", 16),
    (r".*window_size|sliding_window|attention_window", 4),
    (r".*lora_rank|.*rank", 8),
    (r"n_group|topk_group|num_labels", 2),
    (r"num_queries|num_object_queries", 8),
    (r"prediction_length", 4),
    (r"label_length", 2),
)
KEPT = (
    r"num_feat_extract_layers|num_feature_levels|num_conv_.*layers|.*_token_dim|.*stem.*"
    r"|.*conv_.*groups"
)
"""Entries whose names match a size, and which other entries count."""

HEAD_COUNTS = r".*(_heads|_head|attention_head)$|n_heads?|num_heads"
HEAD_SIZES = r".*head_dim$|.*_d_head|d_kv|kv_channels|rotary_dim|qk_.*_dim"
WIDTHS = (
    r"(.*_)?(hidden_size|hidden_dim|embed_dim|embedding_size|d_model|n_embd|model_dim|intermediate_size|d_ff|n_inner)"
)
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "depth", "num_blocks")
CHANNEL_LISTS = r".*(sizes|dims?|channels|filters|width|widths|features|hidden_size|embed_dim)"
DEPTH_LISTS = r".*(depths?|num_layers|layers_per_stage|num_blocks|stage_numb_of_layers|num_encoder_blocks|stage_layers)"
INDEX_LISTS = r".*(ind(ex|exes|ices)|idxs?|layers|layer_ids|feature_layer)"
MOST_TRIALS = 24

Entries = dict[str, Any]
Accepts = Callable[[Any], bool]


def small(config_class: Any, accepts: Accepts, **changes: Any) -> Any:
    """A small configuration for which `accepts` is true; the smallest one that can be made if there is none.

    What the names of entries do not tell stays as it is.
    """
    first = None
    for number, make in enumerate(_ways(config_class, changes)):
        try:
            config = make()
        except Exception:  # the type's own validation
            continue
        first = config if first is None else first
        if accepts(config):
            return config
        if number > MOST_TRIALS:
            break
    if first is None:
        raise ValueError("no small configuration passes the type's validation")
    return first


def _ways(config_class: Any, changes: Mapping[str, Any]) -> Iterator[Callable[[], Any]]:
    default = config_class()
    entries = default.to_dict()
    absolute = [_shrunk(entries, divisor, fill=fill) for divisor in (8, 4, 2) for fill in (False, True)]
    proportional = [_linked(_divided(_shrunk(entries, 8, fill=fill), entries), entries) for fill in (False, True)]
    for found in (absolute[0], proportional[0], *absolute[1:], *proportional[1:]):
        yield partial(config_class.from_dict, {**found, **changes})
    for found in (absolute[0], proportional[0]):
        yield partial(_assigned, config_class, found, changes)
    for found in (absolute[0], proportional[0]):
        for path in _changed(found, entries):
            yield partial(config_class.from_dict, {**_without(found, entries, path), **changes})


def _assigned(config_class: Any, entries: Entries, changes: Mapping[str, Any]) -> Any:
    """The default configuration with its entries assigned, for a class that does not read what it writes."""
    config = config_class()

    def assign(owner: Any, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            inner = getattr(owner, name, None)
            if isinstance(value, dict) and hasattr(inner, "to_dict"):
                assign(inner, value)
            elif type(value) in (int, list):
                setattr(owner, name, value)

    assign(config, {**entries, **changes})
    return config


def _is_part(name: str, value: Any) -> bool:
    return isinstance(value, dict) and ("model_type" in value or name.endswith("config")) and name != "per_layer_config"


def _shrunk(entries: Entries, divisor: int, *, fill: bool = False) -> Entries:
    """Sizes made small by their names, channels of stages divided; `fill` gives sizes to entries that have none."""
    old, new = _layers(entries)
    found: Entries = {}
    for name, value in entries.items():
        if _is_part(name, value):
            found[name] = _shrunk(value, divisor, fill=fill)
        elif type(value) is int:
            found[name] = new if name in LAYER_COUNTS and value == old else _size(name, value)
        elif name == "backbone" and value == "resnet50":
            found[name] = "resnet18"
        elif isinstance(value, (list, tuple)) and value:
            found[name] = _list(name, list(value), old, new, divisor)
        elif (
            isinstance(value, dict)
            and value
            and all(str(key).isdigit() for key in value)
            and name == "per_layer_config"
        ):
            found[name] = {key: one for key, one in value.items() if int(key) < new}
        elif value is None and fill and re.fullmatch("image_token_(id|index)", name):
            found[name] = 3
        elif value is None and fill and (size := _size(name, 1 << 20)) < 1 << 20 and "token" not in name:
            found[name] = size
        else:
            found[name] = value
    found.pop("stage_names", None)
    if isinstance(found.get("out_indices"), list):
        found.pop("out_features", None)
    heads, shared = (
        next((n for n in found if re.fullmatch(p, n)), "") for p in (r"num_attention_heads|n_head", ".*key_value_heads")
    )
    if heads and shared and entries[heads] == entries[shared]:
        found[shared] = found[heads]
    return found


def _sections(found: Entries, rope: Mapping[str, Any]) -> list[int]:
    """Rotary frequencies for time, height and width of heads of 32, which there are from now on."""
    heads = next((found[name] for name in ("num_attention_heads", "num_heads") if found.get(name)), 4)
    found |= {name: 32 * heads for name in ("hidden_size",) if name in found} | {"head_dim": 32}
    sections = rope["mrope_section"]
    pairs = int(16 * (rope.get("partial_rotary_factor") or found.get("partial_rotary_factor") or 1))
    shares = [max(1, pairs * one // sum(sections)) for one in sections[:-1]]
    return [*shares, pairs - sum(shares)]


def _layers(entries: Entries) -> tuple[int, int]:
    """The number of layers, and the small one: as many as are read out, or as there are kinds of layers."""
    old = next((entries[name] for name in LAYER_COUNTS if type(entries.get(name)) is int), 0)
    features = entries.get("out_features") or entries.get("out_indices") or ()
    kinds = [len(set(map(str, value))) for name, value in entries.items() if name.endswith("layer_types") and value]
    return old, min(old, max(2, len(features), *kinds))


def _list(name: str, values: list[Any], old: int, new: int, divisor: int) -> list[Any]:
    if name == "subsampling_conv_channels":  # the first is the number of bins, too
        return values
    whole = all(type(value) is int for value in values)
    if name == "out_features" and old:
        return [f"stage{new - len(values) + place + 1}" for place in range(len(values))]
    if name == "out_indices" and old > new:
        return [new - len(values) + place + 1 for place in range(len(values))]
    if old and len(values) == old and old != new:
        return _spread(values, new)
    if whole and re.fullmatch(DEPTH_LISTS, name):
        return [min(value, 1) for value in values]
    if whole and old > new and re.fullmatch(INDEX_LISTS, name) and all(-old <= value <= old for value in values):
        return sorted({value if value < 0 else value * new // old for value in values})
    if whole and re.fullmatch(CHANNEL_LISTS, name) and max(values) >= 24 and not re.search("size$|scale|image", name):
        return [value // divisor if value % divisor == 0 and value > 4 else value for value in values]
    if whole and re.fullmatch(".*image_size|.*input_size", name):
        return [min(value, 32) for value in values]
    return values


def _spread(values: list[Any], count: int) -> list[Any]:
    """Some of a list in order, each of its kinds among them where there is room, the last one in any case."""
    chosen = {len(values) - 1}
    for place, value in enumerate(values):
        if len(chosen) < count and all(values[other] != value for other in chosen):
            chosen.add(place)
    chosen.update(place for place in range(len(values)) if len(chosen) < count and not chosen.add(place))
    return [values[place] for place in sorted(chosen)][-count:]


def _size(name: str, value: int) -> int:
    if re.fullmatch(KEPT, name):
        return value
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size) if value > 0 else value
    return value


def _divided(found: Entries, entries: Entries) -> Entries:
    """Sizes of heads as they were; numbers of heads and widths divided by one number."""
    heads = next(
        (n for n in ("num_attention_heads", "n_head", "num_heads", "n_heads") if type(entries.get(n)) is int), ""
    )
    factor = max(1, entries[heads] // 2) if heads else 8
    result = dict(found)
    for name, value in entries.items():
        if _is_part(name, value):
            result[name] = _divided(found[name], value)
        elif type(value) is int and re.fullmatch(HEAD_SIZES, name):
            result[name] = value
        elif type(value) is int and value > 0 and re.fullmatch(HEAD_COUNTS, name):
            result[name] = max(1, value // factor)
        elif type(value) is int and value > factor and re.fullmatch(WIDTHS, name):
            result[name] = value // factor
    return result


def _linked(found: Entries, entries: Entries) -> Entries:
    """The width of what an image becomes in the text is that of the text, where it was."""
    text, vision = (entries.get(f"{part}_config") for part in ("text", "vision"))
    if isinstance(text, dict) and isinstance(vision, dict):
        same = [name for name in vision if name == "out_hidden_size" and vision[name] == text.get("hidden_size")]
        widths = dict.fromkeys(same, found["text_config"].get("hidden_size"))
        return {**found, "vision_config": {**found["vision_config"], **widths}}
    return found


def _changed(found: Entries, entries: Entries, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the entries that were made small."""
    for name, value in found.items():
        if _is_part(name, value) and isinstance(entries.get(name), dict):
            yield from _changed(value, entries[name], (*prefix, name))
        elif value != entries.get(name):
            yield (*prefix, name)


def _without(found: Entries, entries: Entries, path: tuple[str, ...]) -> Entries:
    name, *rest = path
    if rest:
        return {**found, name: _without(found[name], entries[name], tuple(rest))}
    return {**found, name: entries[name]}
