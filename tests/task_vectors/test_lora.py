"""LoRA adapters in PEFT's files are permuted like their layers: base and adapter together compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rebasin_cli import ModelError, UsageError, trace, transfer
from rebasin_cli.permutation import Permuted, random

NET = """
from torch import nn
import torch


class Conv1D(nn.Module):
    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.table, self.up, self.middle = nn.Embedding(11, 8), nn.Linear(8, 12), Conv1D(10, 12)
        self.norm, self.head = nn.LayerNorm(10), nn.Linear(10, classes)

    def forward(self, ids):
        x = self.middle(self.up(self.table(ids)).relu())
        return self.head(self.norm(x).relu().mean(1))


def build(num_classes=3):
    return Net(num_classes)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
"""
IDS = torch.arange(8).view(2, 4) % 11
RANK, ALPHA = 3, 5.0


def module(place: Path, name: str = "Net") -> nn.Module:
    space: dict[str, Any] = {}
    exec((place / "net.py").read_text(), space)
    made: nn.Module = space[name]()
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def bases(place: Path, name: str = "build", *inputs: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A base and a permuted copy of it, written as old.safetensors and new.safetensors."""
    torch.manual_seed(0)
    old = {key: value.clone() for key, value in module(place, "Net" if name == "build" else name).state_dict().items()}
    spec = trace(model=f"net.py:{name}", inputs=inputs).spec
    new = {key: value.contiguous() for key, value in Permuted(old, spec, random(spec, 3)).items()}
    assert not torch.equal(new["head.weight"], old["head.weight"])
    save_file(old, place / "old.safetensors")
    save_file(new, place / "new.safetensors")
    return old, new


def adapter(place: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder = place / "adapter"
    folder.mkdir()
    named = {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "old", **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    (folder / "README.md").write_text("an adapter\n")
    return folder


def text_adapter() -> dict[str, Tensor]:
    torch.manual_seed(1)
    shapes = {
        "table.lora_embedding_A": (RANK, 11),
        "table.lora_embedding_B": (8, RANK),
        "up.lora_A.weight": (2, 8),  # another rank
        "up.lora_B.weight": (12, 2),
        "up.lora_B.bias": (12,),
        "middle.lora_A.weight": (RANK, 12),
        "middle.lora_B.weight": (10, RANK),
        "head.weight": (3, 10),
        "head.bias": (3,),
    }
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def with_adapter(state: dict[str, Tensor], found: dict[str, Tensor], *, dora: bool = False) -> dict[str, Tensor]:
    """The text network with an adapter merged in, written out by hand for each layer."""
    merged = {key: value.double() for key, value in state.items()}
    x = {key.removeprefix("base_model.model."): value.double() for key, value in found.items()}
    merged["table.weight"] += ALPHA / RANK * (x["table.lora_embedding_B"] @ x["table.lora_embedding_A"]).T
    merged["up.weight"] += 7 / 2 * x["up.lora_B.weight"] @ x["up.lora_A.weight"]
    merged["middle.weight"] += ALPHA / RANK * (x["middle.lora_B.weight"] @ x["middle.lora_A.weight"]).T
    if dora:
        for name, outputs in (("up", 0), ("middle", 1)):
            weight = merged[f"{name}.weight"]
            factor = x[f"{name}.lora_magnitude_vector"] / weight.norm(dim=1 - outputs)
            merged[f"{name}.weight"] = weight * (factor[:, None] if outputs == 0 else factor)
    else:
        merged["up.bias"] += 7 / 2 * x["up.lora_B.bias"]
    merged["head.weight"], merged["head.bias"] = x["head.weight"], x["head.bias"]
    return merged


def outputs(place: Path, state: dict[str, Tensor]) -> Tensor:
    made = module(place).double()
    made.load_state_dict(state)
    with torch.no_grad():
        result: Tensor = made(IDS)
    return result


PATTERNS = {"rank_pattern": {"up": 2}, "alpha_pattern": {"up": 7}, "fan_in_fan_out": True, "lora_bias": True}


def test_a_moved_adapter_computes_on_the_new_base_what_it_did_on_the_old(place: Path) -> None:
    old, new = bases(place, "build", "ids=2,4:int64")
    tensors = text_adapter()
    folder = adapter(place, tensors, modules_to_save=["head"], **PATTERNS)
    result = transfer("old.safetensors", folder, "new.safetensors", model="net.py:build", inputs=("ids=2,4:int64",),
                      out="moved")  # fmt: skip
    assert result.lora
    assert result.verified_finetuned.same
    moved = load_file(place / "moved" / "adapter_model.safetensors")
    before, after = outputs(place, with_adapter(old, tensors)), outputs(place, with_adapter(new, moved))
    assert torch.allclose(before, after, rtol=1e-12, atol=1e-12)
    unmoved = outputs(place, with_adapter(new, {f"base_model.model.{key}": value for key, value in tensors.items()}))
    assert not torch.allclose(before, unmoved, rtol=0.1)
    assert {key: value.shape for key, value in moved.items()} == {
        f"base_model.model.{key}": value.shape for key, value in tensors.items()
    }


def test_the_output_is_an_adapter_directory_that_names_the_new_base(place: Path) -> None:
    bases(place, "build", "ids=2,4:int64")
    folder = adapter(place, text_adapter(), modules_to_save=["head"], **PATTERNS)
    transfer("old.safetensors", folder / "adapter_model.safetensors", "new.safetensors", model="net.py:build",
             inputs=("ids=2,4:int64",), out="moved")  # fmt: skip
    names = sorted(path.name for path in (place / "moved").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((place / "moved" / "adapter_config.json").read_text())
    assert config.pop("base_model_name_or_path") == "new.safetensors"
    before = json.loads((folder / "adapter_config.json").read_text())
    assert before.pop("base_model_name_or_path") == "old"
    assert config == before


def test_the_magnitudes_of_dora_follow_the_outputs(place: Path) -> None:
    old, new = bases(place, "build", "ids=2,4:int64")
    tensors = text_adapter()
    del tensors["up.lora_B.bias"]
    tensors |= {"up.lora_magnitude_vector": torch.rand(12) + 0.5, "middle.lora_magnitude_vector": torch.rand(10) + 0.5}
    folder = adapter(place, tensors, modules_to_save=["head"], use_dora=True, **PATTERNS)
    words: dict[str, Any] = {"model": "net.py:build", "inputs": ("ids=2,4:int64",)}
    result = transfer("old.safetensors", folder, "new.safetensors", out="moved", **words)
    assert result.verified_finetuned.same
    moved = load_file(place / "moved" / "adapter_model.safetensors")
    before = outputs(place, with_adapter(old, tensors, dora=True))
    assert torch.allclose(before, outputs(place, with_adapter(new, moved, dora=True)), rtol=1e-12, atol=1e-12)
    with pytest.raises(UsageError, match="DoRA"):
        transfer("old.safetensors", folder, "new.safetensors", out="again", scale=0.5, **words)


def test_scale_halves_the_change(place: Path) -> None:
    """Written out by the merged weights of one layer: half of what the adapter adds."""
    _, _new = bases(place, "build", "ids=2,4:int64")
    tensors = {key: value for key, value in text_adapter().items() if key.startswith("middle.")}
    folder = adapter(place, tensors, fan_in_fan_out=True)
    words: dict[str, Any] = {"model": "net.py:build", "inputs": ("ids=2,4:int64",)}
    for scale, out in ((1.0, "whole"), (0.5, "half")):
        transfer("old.safetensors", folder, "new.safetensors", out=out, scale=scale, **words)
    whole, half = (load_file(place / out / "adapter_model.safetensors") for out in ("whole", "half"))
    key = "base_model.model.middle.lora_"
    assert torch.equal(half[f"{key}B.weight"], whole[f"{key}B.weight"] / 2)
    assert torch.equal(half[f"{key}A.weight"], whole[f"{key}A.weight"])


def test_the_factors_of_convolutions_follow_channels(place: Path) -> None:
    old, new = bases(place, "Image", "2,2,7,7")
    torch.manual_seed(2)
    tensors = {"second.lora_A.weight": torch.randn(RANK, 6, 3, 3), "second.lora_B.weight": torch.randn(5, RANK, 1, 1)}
    folder = adapter(place, tensors)
    transfer("old.safetensors", folder, "new.safetensors", model="net.py:Image", inputs=("2,2,7,7",), out="moved")
    moved = load_file(place / "moved" / "adapter_model.safetensors")
    x, found = torch.randn(2, 2, 7, 7), []
    for state, b, a in (
        (old, tensors["second.lora_B.weight"], tensors["second.lora_A.weight"]),
        (new, *(moved[f"base_model.model.second.lora_{letter}.weight"] for letter in "BA")),
    ):
        made = module(place, "Image")
        delta = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
        made.load_state_dict({**state, "second.weight": state["second.weight"] + ALPHA / RANK * delta})
        with torch.no_grad():
            found.append(made(x))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_what_is_no_lora_or_belongs_to_another_model_is_refused(place: Path) -> None:
    bases(place, "build", "ids=2,4:int64")
    words: dict[str, Any] = {"model": "net.py:build", "inputs": ("ids=2,4:int64",), "out": "moved"}
    folder = adapter(place, {"nowhere.lora_A.weight": torch.zeros(2, 8), "nowhere.lora_B.weight": torch.zeros(12, 2)})
    with pytest.raises(ModelError, match=r"nowhere\.weight"):
        transfer("old.safetensors", folder, "new.safetensors", **words)
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelError, match="IA3"):
        transfer("old.safetensors", folder, "new.safetensors", **words)
    assert not (place / "moved").exists()


def test_a_head_of_another_size_is_the_adapters_own_and_permuted(place: Path) -> None:
    old, new = bases(place, "build", "ids=2,4:int64")
    tensors = {**text_adapter(), "head.weight": torch.randn(4, 10), "head.bias": torch.randn(4)}
    folder = adapter(place, tensors, modules_to_save=["head"], **PATTERNS)
    words: dict[str, Any] = {"model": "net.py:build", "inputs": ("ids=2,4:int64",), "out": "moved"}
    with pytest.raises(ModelError, match=r"head\.weight") as refused:
        transfer("old.safetensors", folder, "new.safetensors", **words)
    assert refused.value.exit_code == 4
    assert "--ignore-mismatched-sizes" in str(refused.value.hint)
    result = transfer("old.safetensors", folder, "new.safetensors", ignore_mismatched_sizes=True, **words)
    assert result.own == ("base_model.model.head.bias", "base_model.model.head.weight")
    moved = load_file(place / "moved" / "adapter_model.safetensors")
    own, order = moved["base_model.model.head.weight"], new["head.weight"]
    places = [int((old["head.weight"] == column[:, None]).all(0).nonzero()) for column in order.T]
    assert torch.equal(own, tensors["head.weight"][:, places])


def test_peft_itself_computes_the_same_on_the_new_base(place: Path) -> None:
    peft = pytest.importorskip("peft")
    old, new = bases(place, "build", "ids=2,4:int64")
    tuned = module(place)
    tuned.load_state_dict(old)
    config = peft.LoraConfig(r=3, target_modules=["table", "up"], modules_to_save=["head"], init_lora_weights=False)
    made = peft.get_peft_model(tuned, config).eval()
    made.save_pretrained(place / "adapter")
    transfer("old.safetensors", "adapter", "new.safetensors", model="net.py:build", inputs=("ids=2,4:int64",),
             out="moved")  # fmt: skip
    other = module(place)
    other.load_state_dict(new)
    loaded = peft.PeftModel.from_pretrained(other, place / "moved").eval()
    with torch.no_grad():
        assert torch.allclose(made.base_model.model(IDS), loaded.base_model.model(IDS), atol=1e-5)
