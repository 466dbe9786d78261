"""The ledger of classes: models of many libraries, what each of their groups allows and why no more.

`python -m tests.symmetry.class_ledger --write [NAME …]` derives the models (all, or those named), maps all groups of
each by random elements of their classes, and keeps the classes as the golden file that the tests compare with.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebasin_cli.execution.class_check import narrowed, verify_classes
from rebasin_cli.execution.soundness import SoundnessCheck
from rebasin_cli.execution.subject import ModelChoice, example_for, open_subject
from rebasin_cli.model.example_input import ExampleInput, as_example
from rebasin_cli.model.torchvision_import import import_torchvision
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.tracer import trace_model
from tests.symmetry.small_zoo import load, zoo_names

GOLDEN = Path(__file__).parents[1] / "golden" / "classes.json"

LIBRARIES = (
    "torchvision:vit_b_16",
    "torchvision:resnet18",
    "torchvision:vgg11_bn",
    "torchvision:swin_t",
    "torchvision:convnext_tiny",
    "torchvision:mobilenet_v3_small",
    "timm:vit_tiny_patch16_224",
    "timm:eva02_tiny_patch14_224",
    "timm:mixer_s32_224",
    "open_clip:ViT-S-32",
)

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "intermediate_size": 48,
}
_DECODER: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
_IDS: dict[str, Any] = {"input_ids": torch.arange(14).reshape(2, 7)}

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "tie_word_embeddings": False}, _IDS),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "tie_word_embeddings": True}, _IDS),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 8, "tie_word_embeddings": False}, _IDS),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "head_dim": 8, "tie_word_embeddings": False}, _IDS),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
        _IDS,
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 50,
            "n_positions": 32,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        _IDS,
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", _SIZES, _IDS),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 50},
        {**_IDS, "decoder_input_ids": torch.arange(10).reshape(2, 5)},
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**_SIZES, "image_size": 16, "patch_size": 4},
        {"pixel_values": torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)},
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4},
        _IDS,
    ),
}
"""By name: the class of the model, that of its configuration, the entries of this, and the input."""


@dataclass(frozen=True)
class Entry:
    """One model: how it is built, and its input."""

    build: Callable[[], nn.Module]
    example: ExampleInput

    def derive(self) -> Derivation:
        return derive(trace_model(self.build(), self.example, with_numbers=self.build))

    def check(self, spec: PermutationSpec, seed: int = 0) -> SoundnessCheck:
        return verify_classes(self.build, self.example, spec, seed)


def names() -> list[str]:
    return [*zoo_names(), *(f"transformers/{name}" for name in TRANSFORMERS), *LIBRARIES]


def entry(name: str) -> Entry:
    """The model of one of `names`."""
    if name.startswith("transformers/"):
        return _of_transformers(name.removeprefix("transformers/"))
    if ":" in name:
        choice = ModelChoice(name)
        subject = open_subject(choice)
        return Entry(subject.weightless, example_for(choice, subject))
    model = load(name)
    return Entry(lambda: model.module.build().eval(), model.example())


def _of_transformers(name: str) -> Entry:
    import_torchvision()
    import transformers

    model, config, sizes, given = TRANSFORMERS[name]
    build = partial(getattr(transformers, model), getattr(transformers, config)(**sizes))
    return Entry(lambda: build().eval(), as_example(given))


def summary(spec: PermutationSpec) -> dict[str, list[Any]]:
    """By group, like ones in the blocks of one group together: class, reason, how many and of how many units."""
    found: dict[str, list[Any]] = {}
    for group in spec.groups:
        stem = re.sub(r"\[\d+\](?=(#\w+)?$)", "[]", group.name)
        row = found.setdefault(stem, [group.symmetry.value, group.class_reason, group.size, 0])
        assert row[0] == group.symmetry.value, f"{group.name}: unlike others of its family"
        row[3] += 1
    return found


def _report(name: str) -> Mapping[str, Any]:
    model = entry(name)
    spec = model.derive().classified
    check = model.check(spec)
    print(f"{name}: {'holds' if check.ok else 'BROKEN'}, {check.floors:.3g} noise floors", flush=True)
    if not check.ok:
        print("  ", narrowed(spec, lambda part: model.check(part).ok)[1])
    return summary(spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    golden.update({name: _report(name) for name in given.names or names()})
    if given.write:
        kept = {name: golden[name] for name in names() if name in golden}
        lines = ",\n".join(
            f" {json.dumps(name)}: {{\n"
            + ",\n".join(f"  {json.dumps(group)}: {json.dumps(row)}" for group, row in groups.items())
            + "\n }"
            for name, groups in kept.items()
        )
        GOLDEN.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
