"""Small configurations of `transformers` types and of diffusion U-Nets: the structure of the large ones, two layers."""

from __future__ import annotations

from typing import Any

Args = dict[str, Any]

_PLAIN: Args = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
_GROUPED: Args = {**_PLAIN, "num_key_value_heads": 2}
_PICTURE: Args = {**{k: v for k, v in _PLAIN.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
_TEXT: Args = {**_PLAIN, "max_position_embeddings": 32}
_SOUND: Args = {**_PLAIN, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_OLD: Args = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 100, "n_positions": 64}
_BOTH: Args = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 100,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_T5: Args = {"num_layers": 2, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "vocab_size": 100}


def _of(architecture: str, *parts: Args, **more: Any) -> Args:
    merged: Args = {}
    for part in parts:
        merged.update(part)
    return {**merged, **more, "architecture": architecture}


TRANSFORMERS: dict[str, Args] = {
    "gpt2": _of("GPT2LMHeadModel", _OLD),
    "bert": _of("BertForSequenceClassification", _PLAIN),
    "roberta": _of("RobertaForMaskedLM", _PLAIN),
    "distilbert": _of("DistilBertForMaskedLM", n_layers=2, dim=32, hidden_dim=64, n_heads=4, vocab_size=100),
    "t5": _of("T5ForConditionalGeneration", _T5),
    "bart": _of("BartForConditionalGeneration", _BOTH, max_position_embeddings=64),
    "opt": _of(
        "OPTForCausalLM",
        _PLAIN,
        ffn_dim=64,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        drop=("intermediate_size",),
    ),
    "llama": _of("LlamaForCausalLM", _GROUPED),
    "qwen2": _of("Qwen2ForCausalLM", _GROUPED),
    "qwen3": _of("Qwen3ForCausalLM", _GROUPED, head_dim=8),
    "gemma": _of("GemmaForCausalLM", _GROUPED, head_dim=8, pad_token_id=0),
    "phi": _of("PhiForCausalLM", _PLAIN),
    "mixtral": _of("MixtralForCausalLM", _GROUPED, num_local_experts=4),
    "whisper": _of(
        "WhisperForConditionalGeneration", _BOTH, max_source_positions=32, max_target_positions=32, num_mel_bins=16
    ),
    "clip": _of("CLIPModel", text_config=_TEXT, vision_config=_PICTURE, projection_dim=24),
    "vit": _of("ViTForImageClassification", _PICTURE),
    "swin": _of(
        "SwinForImageClassification",
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        image_size=32,
        patch_size=2,
        window_size=4,
    ),
    "wav2vec2": _of("Wav2Vec2ForCTC", _SOUND),
    "mamba": _of("MambaForCausalLM", num_hidden_layers=2, hidden_size=32, vocab_size=100, state_size=8),
    "gemma2": _of("Gemma2ForCausalLM", _GROUPED, head_dim=8, pad_token_id=0),
    "phi3": _of("Phi3ForCausalLM", _GROUPED, pad_token_id=0),
    "mistral": _of("MistralForCausalLM", _GROUPED),
    "gpt_neox": _of("GPTNeoXForCausalLM", _PLAIN),
    "gptj": _of("GPTJForCausalLM", _OLD, rotary_dim=4),
    "bloom": _of("BloomForCausalLM", n_layer=2, hidden_size=32, n_head=4, vocab_size=100),
    "falcon": _of("FalconForCausalLM", num_hidden_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=100),
    "qwen2_moe": _of(
        "Qwen2MoeForCausalLM",
        _GROUPED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=32,
    ),
    "qwen3_moe": _of("Qwen3MoeForCausalLM", _GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "olmoe": _of("OlmoeForCausalLM", _GROUPED, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": _of("GptOssForCausalLM", _GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "phimoe": _of("PhimoeForCausalLM", _GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "granitemoe": _of("GraniteMoeForCausalLM", _GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": _of(
        "DeepseekV3ForCausalLM",
        _PLAIN,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "switch_transformers": _of("SwitchTransformersForConditionalGeneration", _T5, num_experts=4),
    "jamba": _of(
        "JambaForCausalLM",
        _GROUPED,
        num_hidden_layers=4,
        num_experts=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "mamba2": _of(
        "Mamba2ForCausalLM",
        num_hidden_layers=2,
        hidden_size=32,
        vocab_size=100,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
    ),
    "rwkv": _of(
        "RwkvForCausalLM",
        num_hidden_layers=2,
        hidden_size=32,
        vocab_size=100,
        attention_hidden_size=32,
        context_length=64,
    ),
    "electra": _of("ElectraForMaskedLM", _PLAIN, embedding_size=24),
    "albert": _of("AlbertForMaskedLM", _PLAIN, embedding_size=24),
    "mpnet": _of("MPNetForMaskedLM", _PLAIN),
    "modernbert": _of(
        "ModernBertForMaskedLM", _PLAIN, **{f"{n}_token_id": 0 for n in ("pad", "eos", "bos", "cls", "sep")}
    ),
    "longformer": _of("LongformerForMaskedLM", _PLAIN, attention_window=8),
    "fnet": _of("FNetForMaskedLM", num_hidden_layers=2, hidden_size=32, intermediate_size=64, vocab_size=100),
    "dinov2": _of("Dinov2ForImageClassification", _PICTURE, drop=("intermediate_size",)),
    "siglip": _of("SiglipModel", text_config=_TEXT, vision_config=_PICTURE),
    "beit": _of("BeitForImageClassification", _PICTURE, use_relative_position_bias=True),
    "convnext": _of(
        "ConvNextForImageClassification", hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1], image_size=32
    ),
    "segformer": _of(
        "SegformerForSemanticSegmentation",
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 5],
        decoder_hidden_size=32,
    ),
    "hubert": _of("HubertForCTC", _SOUND),
}
for _entries in TRANSFORMERS.values():
    for _name in _entries.pop("drop", ()):
        _entries.pop(_name)

LLAMA_8B: Args = _of(
    "LlamaForCausalLM",
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
)

_UNET: Args = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "act_fn": "silu",
}
SD_15: Args = {
    **_UNET,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
SD_XL: Args = {
    **_UNET,
    "sample_size": 64,  # pictures of 512 pixels: the groups of 1024's, at a quarter of the arithmetic
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
UNETS: dict[str, Args] = {
    "U-Net of SD 1.5, small": {
        **SD_15,
        "sample_size": 16,
        "block_out_channels": [32, 64, 64, 64],
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    "U-Net of SDXL, small": {
        **SD_XL,
        "sample_size": 16,
        "block_out_channels": [32, 64, 64],
        "cross_attention_dim": 24,
        "attention_head_dim": [2, 4, 4],
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
        "norm_num_groups": 8,
    },
    "U-Net of SD 1.5": SD_15,
    "U-Net of SDXL": SD_XL,
}
