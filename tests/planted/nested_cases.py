"""Networks whose groups nest, for planted permutations: heads, grouped queries, experts, blocks of a norm's channels.

`SMALL` are for the tests; `FULL` are the sizes that people use, for `tests/benchmarks/planted_zoo.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.source import import_optional
from rebasin_cli.model.weightless import without_weights
from tests.coverage.configurations import TRANSFORMERS
from tests.coverage.entries import unet_factory
from tests.coverage.modules import MODULES, Both, Recurrent

Subject = tuple[nn.Module, ExampleInput]


@dataclass(frozen=True)
class Case:
    """A network without weights and its input, and the package that makes it; `half` keeps its tensors in float16."""

    load: Callable[[], Subject]
    needs: str = ""
    half: bool = False


def _factory(name: str, args: dict[str, Any] | None = None) -> Subject:
    factory = load_factory(name, args or {})
    module = factory.build_weightless()
    return module, factory.example_input(module)


def _unet(name: str) -> Subject:
    factory = unet_factory(name)
    module = factory.build_weightless()
    return module, factory.example_input(module)


def _half_wide_unet() -> Subject:
    factory = unet_factory("U-Net of SD 1.5", block_out_channels=[160, 320, 640, 640])
    module = factory.build_weightless()
    return module, factory.example_input(module)


def _small_open_clip() -> Subject:
    """open_clip's own class, two layers in each tower."""
    model = import_optional("open_clip.model", "open-clip")
    vision = model.CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    text = model.CLIPTextCfg(context_length=16, vocab_size=100, width=24, heads=3, layers=2)
    sample = Sampler(0)
    inputs = ExampleInput((sample.normal(1, 3, 32, 32), sample.integers((1, 16), 100)))
    return model.CLIP(24, vision, text), inputs


def _module(name: str) -> Subject:
    build, example = MODULES[name]
    return build(), example


def _lstm() -> Subject:
    net = Recurrent(nn.LSTM, layers=2, bidirectional=True, units=512)
    return without_weights(net), ExampleInput((Sampler(0).normal(2, 5, 6),))


def _transformer() -> Subject:
    return without_weights(Both(width=512, heads=8, hidden=2048)), MODULES["nn.Transformer"][1]


GROUPED_QUERIES = {
    "architecture": "LlamaForCausalLM",
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "vocab_size": 32000,
}
SPARSE_EXPERTS = {
    "architecture": "MixtralForCausalLM",
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "num_local_experts": 8,
    "vocab_size": 32000,
}

SMALL = {
    "GPT-2": Case(partial(_factory, "transformers:gpt2", TRANSFORMERS["gpt2"]), "transformers"),
    "Llama with grouped queries": Case(partial(_factory, "transformers:llama", TRANSFORMERS["llama"]), "transformers"),
    "Mixtral": Case(partial(_factory, "transformers:mixtral", TRANSFORMERS["mixtral"]), "transformers"),
    "CLIP": Case(_small_open_clip, "open_clip"),
    "LSTM": Case(partial(_module, "nn.LSTM, 2 layers, bidirectional")),
    "U-Net of SD 1.5": Case(partial(_unet, "U-Net of SD 1.5, small"), "diffusers"),
    "nn.Transformer": Case(partial(_module, "nn.Transformer")),
}
FULL = {
    "LSTM, 2 x 512, bidirectional": Case(_lstm),
    "nn.Transformer, 2 + 2 x 512": Case(_transformer),
    "Swin-T": Case(partial(_factory, "torchvision:swin_t")),
    "ViT-B/16": Case(partial(_factory, "torchvision:vit_b_16")),
    "CLIP ViT-B/32": Case(partial(_factory, "open_clip:ViT-B-32"), "open_clip"),
    "GPT-2 small": Case(partial(_factory, "transformers:gpt2", {"architecture": "GPT2LMHeadModel"}), "transformers"),
    "Llama-like, 16 heads on 4": Case(partial(_factory, "transformers:llama", GROUPED_QUERIES), "transformers"),
    "Mixtral-like, 8 experts": Case(partial(_factory, "transformers:mixtral", SPARSE_EXPERTS), "transformers"),
    "U-Net of SD 1.5, half as wide": Case(_half_wide_unet, "diffusers"),
    "U-Net of SD 1.5": Case(partial(_unet, "U-Net of SD 1.5"), "diffusers", half=True),
}
