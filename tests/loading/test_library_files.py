"""A dozen files as their libraries write them, or wrote them: aligned, written, and loaded again by the library.

All of them: `python -m tests.benchmarks.library_files`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import pytest

from rebasin_cli.checkpoint import open_checkpoint
from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.weights import Weights
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
    "diffusers: single file of SD 1.5": of("diffusers", "diffusers:single file of SD 1.5, tiny U-Net"),
    "diffusers: single file of SDXL": of("diffusers", "diffusers:single file of SDXL, tiny U-Net"),
    "torchvision: ResNet without counters": of("torchvision", "torchvision:resnet18"),
}

RENAMED = {
    "transformers:mixtral", "transformers:vit", "transformers:qwen2_moe", "timm:convnext_atto", "open_clip",
    "diffusers: VAE with older attention", "diffusers: VAE of a single file",
    "diffusers: single file of SD 1.5", "diffusers: single file of SDXL",
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


OLDER = {
    "densenet121": ((r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2"),),
    "vit_b_16": ((r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")),
    "vit_b_32": ((r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")),
}


@pytest.mark.parametrize("model", list(OLDER))
def test_a_file_with_the_older_names_of_torchvision_is_loaded_under_the_present_ones(
    model: str, tmp_path: Path
) -> None:
    subject = open_subject(ModelChoice(f"torchvision:{model}"))
    older = {key: key for key in subject.shapes if not key.endswith("num_batches_tracked")}
    for pattern, name in OLDER[model]:
        older = {key: re.sub(pattern, name, old) for key, old in older.items()}
    assert any(key != old for key, old in older.items())
    empty_file(tmp_path / "old.safetensors", {old: subject.shapes[key] for key, old in older.items()})
    weights = Weights.of(open_checkpoint(tmp_path / "old.safetensors"), subject)
    assert dict(weights.keys_in_file.to_file) == older
    assert not weights.keys_in_file.extra


def empty_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that takes no space on the disk."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
