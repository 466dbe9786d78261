"""A small configuration of any model type of transformers, by the names of its entries."""

from __future__ import annotations

import re
from typing import Any

SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|vocab_size", 96),
    (r".*(_|^)(token_id|token_index|tok_id|token)$", 3),
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
    (r".*max_.*positions?.*|n_positions|.*max_position_embeddings|.*max_seq.*|n_ctx", 64),
    (r".*num_mel_bins|num_mel_bins|n_mels", 16),
    (r".*window_size|sliding_window|attention_window", 4),
    (r".*lora_rank|.*rank", 8),
    (r"qk_rope_head_dim", 4),
    (r"qk_nope_head_dim|v_head_dim", 8),
    (r"n_group|topk_group|num_labels", 2),
    (r"num_queries|num_object_queries", 8),
)


def small(config_class: Any, **changes: Any) -> Any:
    """The type's default configuration with small sizes; what the names do not tell stays as it is."""
    entries = _shrunk(config_class().to_dict())
    return config_class.from_dict({**entries, **changes})


def _shrunk(entries: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, dict) and "model_type" in value:
            found[name] = _shrunk(value)
        elif type(value) is int:
            found[name] = _size(name, value)
        else:
            found[name] = value
    layers = next((found[n] for n in ("num_hidden_layers", "num_layers", "n_layer") if type(found.get(n)) is int), None)
    for name in ("layer_types", "mlp_layer_types", "attention_types"):
        if layers and isinstance(found.get(name), list):
            found[name] = found[name][-layers:]
    return found


def _size(name: str, value: int) -> int:
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size) if value > 0 else value
    return value
