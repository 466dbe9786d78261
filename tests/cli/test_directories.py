"""Directories of transformers and diffusers, aligned and loaded again by their library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rebasin_cli.model.source import import_optional
from tests.cli.conftest import Runner


def library() -> Any:
    """transformers, which imports torchvision: that must be mended first where it was built for another PyTorch."""
    pytest.importorskip("transformers")
    return import_optional("transformers", "transformers")


def llama(path: Path, seed: int, **options: object) -> torch.nn.Module:
    transformers = library()
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model: torch.nn.Module = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(path, **options)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "5KB"}], ids=["one file", "shards"])
def test_a_directory_of_transformers_is_loaded_by_it_again(
    run: Runner, place: Path, options: dict[str, object]
) -> None:
    llama(place / "A", 0)
    model = llama(place / "B-1.5", 1, **options)
    (place / "B-1.5" / "tokenizer.json").write_text("{}")
    done = run("align", "A", "B-1.5", "--model", f"transformers:{place / 'A'}", "--effort", "fast")
    assert done.code == 0, done.err
    out = place / "B-1.5-aligned"
    assert json.loads((place / "B-1.5-aligned.json").read_text())["data"]["moved_units"] > 0
    assert (out / "config.json").read_bytes() == (place / "B-1.5" / "config.json").read_bytes()
    assert (out / "tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (place / "B-1.5").iterdir())
    transformers = library()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
        assert not loaded.model.layers[0].mlp.up_proj.weight.equal(model.model.layers[0].mlp.up_proj.weight)


def test_other_copies_of_the_weights_are_left_out_and_named(run: Runner, place: Path) -> None:
    for name, seed in (("A", 0), ("checkpoint-500", 1)):
        llama(place / name, seed)
    torch.save({"weight": torch.ones(3)}, place / "checkpoint-500" / "consolidated.00.pth")
    done = run("align", "A", "checkpoint-500", "--model", f"transformers:{place / 'A'}", "--effort", "fast")
    assert done.code == 0, done.err
    assert "consolidated.00.pth (other weights)" in done.err
    warnings = json.loads((place / "checkpoint-500-aligned.json").read_text())["warnings"]
    assert any("consolidated.00.pth" in text for text in warnings)
    assert not (place / "checkpoint-500-aligned" / "consolidated.00.pth").exists()
