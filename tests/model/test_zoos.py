"""The optional zoos: named with their cure when absent, built without weights when present."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rebasin_cli.errors import ModelError, ResourceError
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.input_guess import refusal
from rebasin_cli.model.source import import_optional
from rebasin_cli.model.state import ties


def needs(package: str) -> Any:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"the optional package {package} is not installed")


@pytest.mark.parametrize(
    ("package", "extra"),
    [("timm", "timm"), ("open_clip", "open-clip"), ("transformers", "transformers"), ("diffusers", "diffusers")],
)
def test_an_absent_zoo_is_named_with_its_cure(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ResourceError, match=f"the optional package {package} is not installed") as caught:
        load_factory(f"{package}:anything")
    assert caught.value.hint == f"pip install 'rebasin-cli[{extra}]'"
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("text", ["import no_such_package_here", "raise RuntimeError('wrong\\nbuild')"])
def test_a_broken_package_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "zoo_that_breaks.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ResourceError, match="zoo_that_breaks is installed but cannot be imported") as caught:
        import_optional("zoo_that_breaks", "breaks")
    assert "\n" not in str(caught.value)


def _accepts(spec: str, described: str, **args: Any) -> None:
    factory = load_factory(spec, args)
    module = factory.build_weightless()
    example = factory.example_input(module)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert example.describe() == described
    assert refusal(module, example) is None


@needs("timm")
def test_timm() -> None:
    _accepts("timm:resnet18.a1_in1k", "1x3x224x224")
    _accepts("timm:resnet18", "1x1x224x224", in_chans=1)
    _accepts("timm:vit_tiny_patch16_224", "1x3x64x64", img_size=64)
    with pytest.raises(ModelError, match="did you mean resnet"):
        load_factory("timm:resnet5")
    with pytest.raises(ModelError, match="would download weights"):
        load_factory("timm:resnet18", {"pretrained": True}).build()


@needs("open_clip")
def test_open_clip() -> None:
    _accepts("open_clip:ViT-B-32", "1x3x224x224, 1x77:int64")
    with pytest.raises(ModelError, match="from the Hugging Face hub, and nothing is downloaded"):
        load_factory("open_clip:roberta-ViT-B-32")


@needs("transformers")
def test_transformers(tmp_path: Path) -> None:
    _accepts("transformers:gpt2", "input_ids=1x16:int64", n_layer=2)
    _accepts("transformers:vit", "pixel_values=1x3x224x224", num_hidden_layers=2)
    _accepts("transformers:t5", "input_ids=1x16:int64, decoder_input_ids=1x8:int64", num_layers=2)
    config = {"model_type": "gpt2", "n_layer": 1, "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    factory = load_factory(f"transformers:{tmp_path}")
    assert ties(factory.build_weightless()) == {"lm_head.weight": "transformer.wte.weight"}
    with pytest.raises(ModelError, match="takes no argument 'n_layers'; did you mean n_layer"):
        factory.with_args(n_layers=2).build_weightless()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="Python code in the directory"):
        load_factory(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
    with pytest.raises(ModelError, match=r"model_type 'mine', which transformers .* does not know"):
        load_factory(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not readable as JSON"):
        load_factory(f"transformers:{tmp_path}")
    with pytest.raises(ModelError, match="neither a local directory nor a model type"):
        load_factory("transformers:gpt")


UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "sample_size": 16,
    "attention_head_dim": 4,
}


DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "num_layers": 1,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}


@needs("diffusers")
def test_a_diffusion_transformer_gets_noise_a_step_and_a_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DIT))
    factory = load_factory(f"diffusers:{tmp_path}")
    example, module = factory.example_input(), factory.build()
    assert example.describe() == "hidden_states=1x4x8x8, timestep=1:int64, class_labels=1:int64"
    with torch.no_grad():
        assert module(**example.kwargs).sample.shape == (1, 4, 8, 8)


@needs("diffusers")
def test_diffusers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNET))
    factory = load_factory(f"diffusers:{tmp_path}")
    example, module = factory.example_input(), factory.build()
    assert example.describe() == "sample=1x4x16x16, timestep=scalar:int64, encoder_hidden_states=1x77x32"
    with torch.no_grad():
        module(**example.kwargs)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModl"}))
    with pytest.raises(ModelError, match="has no network 'UNet2DModl'; did you mean UNet2DModel"):
        load_factory(f"diffusers:{tmp_path}")
