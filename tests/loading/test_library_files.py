"""A dozen files as their libraries write them, or wrote them: aligned, written, and loaded again by the library.

All of them: `python -m tests.benchmarks.library_files`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rebasin_cli.model.names import is_installed
from rebasin_cli.model.source import import_optional
from tests.loading import other_libraries
from tests.loading.library_pairs import Pair, round_trip, transformers_pair


def of_transformers(model_type: str, architecture: str) -> Callable[[], Pair]:
    def made() -> Pair:
        package = import_optional("transformers", "transformers")
        return transformers_pair(model_type, (getattr(package, architecture),), package.CONFIG_MAPPING[model_type])

    return made


def of(pairs: str, name: str) -> Callable[[], Pair]:
    return lambda: next(pair for pair in getattr(other_libraries, f"{pairs}_pairs")() if pair.name == name)


PAIRS: dict[str, Callable[[], Pair]] = {
    "transformers:mixtral": of_transformers("mixtral", "MixtralForCausalLM"),
    "transformers:vit": of_transformers("vit", "ViTForImageClassification"),
    "transformers:gpt_neox": of_transformers("gpt_neox", "GPTNeoXForCausalLM"),
    "transformers:qwen2_moe": of_transformers("qwen2_moe", "Qwen2MoeForCausalLM"),
    "transformers:gpt2": of_transformers("gpt2", "GPT2LMHeadModel"),
    "transformers:bert": of_transformers("bert", "BertForMaskedLM"),
    "transformers:aya_vision": of_transformers("aya_vision", "AyaVisionModel"),
    "transformers:deepseek_v3": of_transformers("deepseek_v3", "DeepseekV3ForCausalLM"),
    "timm:convnext_atto": of("timm", "timm:convnext_atto"),
    "timm:vit_tiny_patch16_224": of("timm", "timm:vit_tiny_patch16_224"),
    "open_clip": of("open_clip", "open_clip:text tower without prefix"),
    "diffusers: VAE with older attention": of("diffusers", "diffusers:VAE, older attention"),
    "diffusers: VAE of a single file": of("diffusers", "diffusers:single file, VAE"),
}

RENAMED = {
    "transformers:mixtral", "transformers:vit", "transformers:qwen2_moe", "timm:convnext_atto", "open_clip",
    "diffusers: VAE with older attention", "diffusers: VAE of a single file",
}  # fmt: skip
"""Files with other keys than the module's; `gpt_neox` among them in versions that renamed its head."""


@pytest.mark.parametrize("name", list(PAIRS))
def test_a_file_of_the_library_is_aligned_and_loaded_by_it_again(name: str, tmp_path: Path) -> None:
    package = name.partition(":")[0]
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    outcome = round_trip(PAIRS[name](), tmp_path)
    assert outcome.kind == "same", outcome
    assert outcome.moved > 8
    if name in RENAMED:
        assert outcome.layout == "renamed"
