"""`transfer` on directories of transformers and on networks that were really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rebasin_cli import trace, transfer
from rebasin_cli.model.torchvision_import import declare_missing_operators
from rebasin_cli.permutation import Permuted, random
from tests.benchmarks.small_pairs import load_images
from tests.benchmarks.transfer_table import accuracy, digits, fine_tune, task

IDS = torch.arange(18).view(2, 9) * 7 % 50


def gpt2(place: Path, name: str, state: dict[str, Tensor] | None = None) -> nn.Module:
    """A tiny GPT-2, saved in several shards."""
    declare_missing_operators()
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=3,
                                     bos_token_id=1, eos_token_id=1)  # fmt: skip
    made: Any = transformers.GPT2LMHeadModel(config).eval()
    if state is not None:
        made.load_state_dict(state)
    made.save_pretrained(place / name, max_shard_size="20KB")
    module: nn.Module = made
    return module


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module, nn.Module]:
    """A base in `old` and a permuted copy in `new`; packed attention and tied embeddings are permuted too."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    old = gpt2(tmp_path, "old")
    spec = trace(model="transformers:old").spec
    ties = {"lm_head.weight": "transformer.wte.weight"}
    new = gpt2(tmp_path, "new", dict(Permuted(old.state_dict(), spec, random(spec, 5), ties)))
    return tmp_path, old, new


def test_a_sharded_directory_comes_out_whole(bases: tuple[Path, nn.Module, nn.Module]) -> None:
    place, old, _ = bases
    state = {key: value + 0.01 * torch.randn_like(value) for key, value in old.state_dict().items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    tuned = gpt2(place, "tuned", state)
    result = transfer("old", "tuned", "new", model="transformers:new", out="out")
    assert not result.lora
    names = {path.name for path in (place / "out").iterdir()}
    assert names == {path.name for path in (place / "new").iterdir()}
    loaded = type(old).from_pretrained(place / "out").eval()  # type: ignore[attr-defined]
    assert torch.allclose(logits(loaded), logits(tuned), atol=1e-6)
    assert not torch.allclose(logits(loaded), logits(old), atol=1e-3)


def test_an_adapter_of_packed_attention_is_carried_over(bases: tuple[Path, nn.Module, nn.Module]) -> None:
    place, old, new = bases
    key = "transformer.h.0.attn.c_attn"
    adapter = place / "adapter"
    adapter.mkdir()
    factors = {"A": torch.randn(2, 24), "B": torch.randn(72, 2)}
    save_file({f"base_model.model.{key}.lora_{name}.weight": value for name, value in factors.items()},
              adapter / "adapter_model.safetensors")  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    transfer("old", "adapter", "new", model="transformers:new", out="moved")
    moved = load_file(place / "moved" / "adapter_model.safetensors")
    before = logits(old)
    with torch.no_grad():
        old.get_submodule(key).weight += 2 * (factors["B"] @ factors["A"]).T  # type: ignore[operator]
        a, b = (moved[f"base_model.model.{key}.lora_{name}.weight"] for name in "AB")
        new.get_submodule(key).weight += 2 * (b @ a).T
    assert torch.allclose(logits(old), logits(new), atol=1e-5)
    assert not torch.allclose(logits(old), before, atol=1e-2)


def test_a_fine_tuning_of_a_stranger_helps_more_aligned_than_not(tmp_path: Path) -> None:
    """An MLP fine-tuned on turned digits, and another one that was trained apart: 39 % against 13 % when written."""
    load_images("digits", tmp_path, tmp_path)
    bases = next(iter(digits(tmp_path)))
    tuned = fine_tune(bases, task("turned", bases.train), 10, 1e-3, tmp_path / "tuned.safetensors")
    for name, tensors in (("old", bases.a), ("new", bases.b), ("tuned", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    found = {}
    for align in ("reference", "none"):
        out = tmp_path / f"{align}.safetensors"
        transfer(tmp_path / "old.safetensors", tmp_path / "tuned.safetensors", tmp_path / "new.safetensors",
                 model=bases.model, model_args=bases.args, inputs=("1,1,8,8",), out=out, align=align)  # fmt: skip
        found[align] = accuracy(bases, load_file(out), task("turned", bases.test), None)
    assert found["reference"] > found["none"] + 0.1
