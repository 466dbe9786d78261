"""`timm:NAME`: every architecture that timm registers, built without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.loading import Loaded, Loader, Tensors, by_load_state_dict
from rebasin_cli.model.names import unknown_model
from rebasin_cli.model.source import ModelSource, Preprocessing, import_optional, refuse_weights
from rebasin_cli.model.weightless import weightless_construction

DEFAULT_SIZE = (3, 224, 224)


@dataclass(frozen=True, slots=True)
class TimmModel(ModelSource):
    """One registered architecture; its class checks the arguments, which `create_model` passes on."""

    name: str
    model: str
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        refuse_weights(self.name, args, "pretrained", "checkpoint_path", "pretrained_cfg")
        return import_optional("timm", "timm").create_model(self.model, **{"pretrained": False, **args})

    @property
    def library(self) -> str:
        return "timm"

    def loaders(self, args: Mapping[str, Any]) -> tuple[Loader, ...]:
        """`create_model` with pretrained weights, which runs the model's `checkpoint_filter_fn`."""

        def pretrained(build: Callable[[], nn.Module], tensors: Tensors) -> Loaded:
            overlay = {"state_dict": tensors, **({"num_classes": args["num_classes"]} if "num_classes" in args else {})}
            create = import_optional("timm", "timm").create_model
            with weightless_construction():
                return Loaded(create(self.model, pretrained=True, pretrained_cfg_overlay=overlay, **args))

        return (pretrained, by_load_state_dict)

    def class_count_names(self) -> tuple[str, ...]:
        return ("num_classes",)

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """One image of the size that the module's patch embedding, or its default configuration, states."""
        config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
        channels, height, width = config.get("input_size") or DEFAULT_SIZE
        built_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
        if isinstance(built_for, (tuple, list)) and len(built_for) == 2:
            height, width = built_for
        return ExampleInput((Sampler(seed).normal(1, _in_channels(module, channels), height, width),))

    def preprocessing(self, module: nn.Module | None, weights: str | None = None) -> Preprocessing | None:
        if module is None:
            return None
        data = import_optional("timm.data", "timm")
        config = data.resolve_model_data_config(module)
        return Preprocessing(f"timm preset {config.get('input_size')}", data.create_transform(**config))


def _in_channels(module: nn.Module, usual: int) -> int:
    """`in_chans` may be changed by an argument, so the first convolution decides."""
    first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels < usual else usual


def timm_source(text: str, name: str) -> TimmModel:
    """The architecture of this name; a pretrained tag after a dot (`resnet50.a1_in1k`) is ignored.

    Raises:
        ModelError: no such architecture, with the nearest names.
        ResourceError: timm is not installed.
    """
    known = import_optional("timm", "timm").list_models()
    architecture = name.partition(".")[0]
    if architecture not in known:
        raise unknown_model("timm", name, known)
    return TimmModel(text, architecture)
