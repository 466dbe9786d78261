"""Pairs saved in layouts that timm, open_clip, torchvision and diffusers convert when they load them.

The conversions to the older layouts are written here by hand, as scripts of the time did; the library loads them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.source import import_optional
from rebasin_cli.model.torchvision_import import import_torchvision
from tests.coverage.configurations import UNETS
from tests.loading.library_pairs import Pair, Tensors

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [16, 32],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """A U-Net of two levels of one layer each, with as many attention layers as the first levels have."""
    depth = config.get("transformer_layers_per_block", 1)
    return config | {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "transformer_layers_per_block": depth if isinstance(depth, int) else 1,
    }


DIT: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
    "force_custom_text": True,
}
Layout = Callable[[Tensors], Tensors]


def seeded(build: Callable[[], Any]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network: nn.Module = build()
        return network

    return make


def saved_as(layout: Layout, suffix: str = "pth") -> Callable[[nn.Module, Path], Path]:
    """Write a network's state in an older layout."""

    def save(network: nn.Module, path: Path) -> Path:
        file = path.with_suffix(f".{suffix}")
        tensors = {
            key: value.detach().contiguous().clone() for key, value in layout(dict(network.state_dict())).items()
        }
        if suffix == "safetensors":
            import_optional("safetensors.torch", "safetensors").save_file(tensors, file)
        else:
            torch.save(tensors, file)
        return file

    return save


def renaming(*rules: tuple[str, str]) -> Layout:
    """Every key by regular expressions, in order."""

    def layout(state: Tensors) -> Tensors:
        found = {}
        for key, value in state.items():
            for pattern, to in rules:
                key = re.sub(pattern, to, key)
            found[key] = value
        return found

    return layout


def without_counters(state: Tensors) -> Tensors:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


# torchvision


def torchvision_pairs() -> Iterator[Pair]:
    """All DenseNets as released, ViT of version 0.12, and a ResNet without counters of batches."""
    old_densenet = renaming((r"(denselayer\d+\.(?:norm|relu|conv))(\d)", r"\1.\2"))
    for name in ("densenet121", "densenet161", "densenet169", "densenet201"):
        yield _torchvision(name, lambda state: old_densenet(without_counters(state)), _load_densenet)
    old_vit = renaming((r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2."))
    for name in ("vit_b_16", "vit_b_32"):
        yield _torchvision(name, old_vit, _load_plainly)
    yield _torchvision("resnet18", without_counters, _load_plainly)


def _torchvision(name: str, layout: Layout, load: Callable[[nn.Module, Tensors], None]) -> Pair:
    def loaded(tensors: Tensors) -> nn.Module:
        network = build()
        load(network, tensors)
        return network

    def make(seed: int) -> nn.Module:
        return load_factory(f"torchvision:{name}", seed=seed).build()

    build = load_factory(f"torchvision:{name}").build
    return Pair(
        f"torchvision:{name}",
        "",
        make,
        saved_as(layout),
        loaded,
        lambda _: f"torchvision:{name}",
        most=1 << 30,
    )


def _load_densenet(network: nn.Module, tensors: Tensors) -> None:
    class Published:
        def get_state_dict(self, **_: object) -> Tensors:
            return tensors

    import_torchvision("models").densenet._load_state_dict(network, Published(), False)


def _load_plainly(network: nn.Module, tensors: Tensors) -> None:
    network.load_state_dict(tensors)


# timm


def timm_pairs() -> Iterator[Pair]:
    """Three families in the layouts of their authors."""
    yield _timm("vit_tiny_patch16_224", {"depth": 2}, _flat_patches)
    facebook = renaming(
        (r"stem\.", "downsample_layers.0."),
        (r"stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2"),
        (r"stages\.(\d+)\.downsample\.(\d+)", r"downsample_layers.\1.\2"),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    )
    yield _timm("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64), "conv_mlp": False}, facebook)
    yield _timm("resmlp_12_224", {}, _facebook_mlp)


def _flat_patches(state: Tensors) -> Tensors:
    """The patch embedding as a linear layer."""
    return {k: v.flatten(1) if k == "patch_embed.proj.weight" else v for k, v in state.items()}


def _facebook_mlp(state: Tensors) -> Tensors:
    rules = (("^stem", "patch_embed"), ("linear_tokens", "attn"), ("mlp_channels", "mlp"), (r"\.ls(\d)", r".gamma_\1"))
    flat = {k: v.reshape(-1) if k.endswith((".alpha", ".beta")) else v for k, v in state.items()}
    return renaming(*rules)(flat)


def _timm(name: str, args: dict[str, Any], layout: Layout) -> Pair:
    create = import_optional("timm", "timm").create_model

    def load(tensors: Tensors) -> nn.Module:
        found: nn.Module = create(name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}, **args)
        return found

    return Pair(
        f"timm:{name}",
        "timm",
        seeded(lambda: create(name, **args)),
        saved_as(layout),
        load,
        lambda _: f"timm:{name}",
        args,
    )


# open_clip


def open_clip_pairs() -> Iterator[Pair]:
    """A model with its own text tower, from a file of the time when the text tower had no prefix."""
    factory = import_optional("open_clip.factory", "open-clip")
    name = "ViT-B-32"

    def load(tensors: Tensors) -> nn.Module:
        network: nn.Module = factory.create_model(name, **CLIP)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(tensors, Path(folder) / "file.pt")
            factory.load_checkpoint(network, str(Path(folder) / "file.pt"))
        return network

    yield Pair(
        "open_clip:text tower without prefix",
        "open_clip",
        seeded(lambda: factory.create_model(name, **CLIP)),
        saved_as(renaming((r"^text\.", ""))),
        load,
        lambda _: f"open_clip:{name}",
        CLIP,
    )


# diffusers


def diffusers_pairs() -> Iterator[Pair]:
    """Own layouts, older names of attention, and single files of a whole pipeline."""
    yield _diffusers("U-Net", UNETS["U-Net of SD 1.5, small"], dict)
    yield _diffusers("DiT", DIT, dict)
    yield _diffusers("VAE", VAE, dict)
    yield _diffusers("VAE, older attention", VAE, old_attention)
    for name, prefix in (("SD 1.5", "cond_stage_model.transformer.text_model"), ("SDXL", "conditioner.embedders.0")):
        config = {**UNETS[f"U-Net of {name}, small"], "_class_name": "UNet2DConditionModel"}
        layout = single_file(lambda state, config=config: ldm_unet(state, config), "model.diffusion_model", prefix)
        yield _diffusers(f"single file of {name}, U-Net", config, layout, single=True)
        config = tiny(config)
        layout = single_file(lambda state, config=config: ldm_unet(state, config), "model.diffusion_model", prefix)
        yield _diffusers(f"single file of {name}, tiny U-Net", config, layout, single=True)
    yield _diffusers(
        "single file, VAE", VAE, single_file(ldm_vae, "first_stage_model", "model.diffusion_model"), single=True
    )


def _diffusers(name: str, config: dict[str, Any], layout: Layout, *, single: bool = False) -> Pair:
    package = import_optional("diffusers", "diffusers")
    built = getattr(package, config.get("_class_name", "UNet2DConditionModel"))
    folder = Path(tempfile.mkdtemp(prefix="rebasin-diffusers-"))
    (folder / "config.json").write_text(json.dumps({"_class_name": built.__name__, **config}))

    def load(tensors: Tensors) -> nn.Module:
        if single:
            return built.from_single_file(tensors, config=str(folder), low_cpu_mem_usage=False)  # type: ignore[no-any-return]
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "config.json").write_text((folder / "config.json").read_text())
            file = Path(place) / "diffusion_pytorch_model.safetensors"
            import_optional("safetensors.torch", "safetensors").save_file(tensors, file)
            return built.from_pretrained(place, low_cpu_mem_usage=False)  # type: ignore[no-any-return]

    return Pair(
        f"diffusers:{name}",
        "diffusers",
        seeded(lambda: built.from_config(config)),
        saved_as(layout, "safetensors"),
        load,
        lambda _: f"diffusers:{folder}",
    )


def old_attention(state: Tensors) -> Tensors:
    """The names of attention blocks before version 0.15."""
    names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), (r"to_out\.0", "proj_attn"))
    return renaming(*((rf"attentions\.0\.{new}\.", f"attentions.0.{old}.") for new, old in names))(state)


def single_file(layout: Layout, prefix: str, beside: str) -> Layout:
    """One network under its prefix, and tensors of others that must stay as they are."""

    def whole(state: Tensors) -> Tensors:
        own = {f"{prefix}.{key}": value for key, value in layout(state).items()}
        return own | {f"{beside}.other.weight": torch.arange(24.0).view(4, 6), "betas": torch.linspace(0, 1, 8)}

    return whole


def ldm_unet(state: Tensors, config: dict[str, Any]) -> Tensors:
    """A U-Net under the names of the original code."""
    depth, layers = len(config["block_out_channels"]), config["layers_per_block"]
    attends = ["Attn" in block for block in config["up_block_types"]]
    places = [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.attentions.0.", "middle_block.1."),
        *((f"mid_block.resnets.{i}.", f"middle_block.{2 * i}.") for i in range(2)),
    ]
    for level in range(depth):
        for i in range(layers):
            place = level * (layers + 1) + i + 1
            places.append((f"down_blocks.{level}.resnets.{i}.", f"input_blocks.{place}.0."))
            places.append((f"down_blocks.{level}.attentions.{i}.", f"input_blocks.{place}.1."))
        for i in range(layers + 1):
            place = level * (layers + 1) + i
            places.append((f"up_blocks.{level}.resnets.{i}.", f"output_blocks.{place}.0."))
            places.append((f"up_blocks.{level}.attentions.{i}.", f"output_blocks.{place}.1."))
        down, up = (layers + 1) * (level + 1), level * (layers + 1) + layers
        places.append((f"down_blocks.{level}.downsamplers.0.conv.", f"input_blocks.{down}.0.op."))
        places.append((f"up_blocks.{level}.upsamplers.0.", f"output_blocks.{up}.{2 if attends[level] else 1}."))
    inner = (
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("time_emb_proj.", "emb_layers.1."),
        ("conv_shortcut.", "skip_connection."),
    )
    return _placed(state, places, inner)


def ldm_vae(state: Tensors) -> Tensors:
    """An autoencoder under the names of the original code, whose attention was a convolution."""
    depth, layers = len(VAE["block_out_channels"]), VAE["layers_per_block"]
    places = []
    for side in ("encoder", "decoder"):
        places += [
            (f"{side}.conv_norm_out.", f"{side}.norm_out."),
            (f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."),
            *((f"{side}.mid_block.resnets.{i}.", f"{side}.mid.block_{i + 1}.") for i in range(2)),
        ]
    for level in range(depth):
        other = depth - 1 - level
        places.append((f"encoder.down_blocks.{level}.downsamplers.0.", f"encoder.down.{level}.downsample."))
        places.append((f"decoder.up_blocks.{level}.upsamplers.0.", f"decoder.up.{other}.upsample."))
        for i in range(layers + 1):
            places.append((f"encoder.down_blocks.{level}.resnets.{i}.", f"encoder.down.{level}.block.{i}."))
            places.append((f"decoder.up_blocks.{level}.resnets.{i}.", f"decoder.up.{other}.block.{i}."))
    inner = (
        ("conv_shortcut.", "nin_shortcut."),
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    )
    found = _placed(state, places, inner)
    return {
        k: _as_convolution(v) if re.search(r"attn_1\.\w+\.weight", k) and v.dim() == 2 else v for k, v in found.items()
    }


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[:, :, None, None]


def _placed(state: Tensors, places: list[tuple[str, str]], inner: tuple[tuple[str, str], ...]) -> Tensors:
    found = {}
    for key, value in state.items():
        place = next(((new, old) for new, old in places if key.startswith(new)), None)
        if place is not None:
            rest = key.removeprefix(place[0])
            for new, old in inner if "resnets" in place[0] or place[0].endswith("attentions.0.") else ():
                if rest.startswith(new) and ("resnets" in place[0] or "mid.attn" in place[1]):
                    rest = old + rest.removeprefix(new)
            key = place[1] + rest
        found[key] = value
    return found
