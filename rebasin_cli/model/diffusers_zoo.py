"""`diffusers:DIR`: one network of a pipeline (U-Net, autoencoder …) from its local `config.json`."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebasin_cli.errors import ModelError, did_you_mean
from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.loading import Loaded, Loader, Tensors
from rebasin_cli.model.source import ModelSource, import_optional, read_config, unknown_argument

SIDE = 64
TEXT_TOKENS = 77
FRAMES = 5


@dataclass(frozen=True, slots=True)
class DiffusersModel(ModelSource):
    """A class of `diffusers` and the configuration to build it from; arguments change its entries."""

    name: str
    built: Any
    config: Mapping[str, Any]
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        known = list(inspect.signature(self.built.__init__).parameters)[1:]
        for argument in args:
            if argument not in known:
                raise unknown_argument(self.name, argument, known)
        return self.built.from_config({**self.config, **args})

    @property
    def library(self) -> str:
        return "diffusers"

    def loaders(self, args: Mapping[str, Any]) -> tuple[Loader, ...]:
        """What `from_pretrained` does with older names; and `from_single_file`, for a file of all networks together."""

        def load(build: Callable[[], nn.Module], tensors: Tensors) -> Loaded:
            module: Any = build()
            renamed = dict(tensors)
            if hasattr(module, "_fix_state_dict_keys_on_load"):
                module._fix_state_dict_keys_on_load(renamed)
            if set(module.state_dict()) <= set(renamed) or not hasattr(self.built, "from_single_file"):
                module.load_state_dict(renamed)
                return Loaded(module)
            with tempfile.TemporaryDirectory() as directory:
                (Path(directory) / "config.json").write_text(json.dumps({**self.config, **args}), encoding="utf-8")
                module = self.built.from_single_file(dict(tensors), config=directory, low_cpu_mem_usage=False)
            return Loaded(module, None, frozenset())  # the rest of the file belongs to other networks

        return (load,)

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """By the names that `forward` takes: noise, a timestep, text states, classes; None where more is needed."""
        config = getattr(module, "config", None) or {}
        parameters = inspect.signature(module.forward).parameters
        sample = Sampler(seed)
        noise = next((name for name in ("sample", "hidden_states", "x") if name in parameters), None)
        if noise is None:
            return None
        kwargs: dict[str, Any] = {noise: sample.normal(*_noise_shape(module, config))}
        if "timestep" in parameters:
            kwargs["timestep"] = torch.tensor([1] if noise == "hidden_states" else 1)
        if "encoder_hidden_states" in parameters and (wide := _text_width(config)):
            kwargs["encoder_hidden_states"] = sample.normal(1, TEXT_TOKENS, wide)
        if "pooled_projections" in parameters and config.get("pooled_projection_dim"):
            kwargs["pooled_projections"] = sample.normal(1, config["pooled_projection_dim"])
        classes = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
        if "class_labels" in parameters and classes:
            kwargs["class_labels"] = torch.tensor([1])
        if config.get("addition_embed_type") == "text_time":  # the second text encoder's summary and the crop
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            kwargs["added_cond_kwargs"] = {"text_embeds": sample.normal(1, pooled), "time_ids": sample.normal(1, 6)}
        elif "added_cond_kwargs" in parameters and config.get("norm_type") == "ada_norm_single":
            kwargs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}  # one size of pictures
        needed = [
            name
            for name, one in parameters.items()
            if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        ]
        return None if any(name not in kwargs for name in needed) else ExampleInput((), kwargs)


def _noise_shape(module: nn.Module, config: Mapping[str, Any]) -> tuple[int, ...]:
    """(1, C, H, W); with a few frames where the first convolution is over time."""
    side = config.get("sample_size") or SIDE
    height, width = side if isinstance(side, (tuple, list)) else (side, side)
    if "latent_channels" in config:  # an autoencoder sees pictures; a small one shows it all
        height, width = min(height, 2 * SIDE), min(width, 2 * SIDE)
    over_time = any(isinstance(layer, nn.Conv3d) for layer in module.modules())
    return (1, config.get("in_channels") or 3, *((FRAMES,) if over_time else ()), height, width)


def _text_width(config: Mapping[str, Any]) -> int | None:
    """The width of the text states that the network attends to; None if it attends to none."""
    for name in ("joint_attention_dim", "caption_channels", "text_embed_dim", "cross_attention_dim"):
        wide = config.get(name)
        wide = wide[0] if isinstance(wide, (tuple, list)) and wide else wide
        if isinstance(wide, int):
            return wide
    return None


def diffusers_source(text: str, target: str) -> DiffusersModel:
    """The network whose configuration is in a local directory.

    Raises:
        ModelError: no such directory, a whole pipeline's directory, or a class that this version does not know.
        ResourceError: diffusers is not installed.
    """
    package = import_optional("diffusers", "diffusers")
    directory = Path(target).expanduser()
    if (directory / "model_index.json").is_file() and not (directory / "config.json").is_file():
        parts = sorted(path.parent.name for path in directory.glob("*/config.json"))
        raise ModelError(
            f"{text}: {directory} is a whole pipeline, and a model is one of its networks",
            path=directory,
            hint=f"name the part: {', '.join(f'diffusers:{directory / part}' for part in parts)}",
        )
    config = read_config(text, directory)
    name = config.get("_class_name")
    built = getattr(package, name, None) if isinstance(name, str) else None
    if not (isinstance(built, type) and issubclass(built, nn.Module)):
        raise ModelError(
            f"{directory / 'config.json'}: diffusers {package.__version__} has no network {name!r}"
            + did_you_mean(str(name), dir(package)),
            path=directory,
            slug="unknown-model",
        )
    return DiffusersModel(text, built, config)
