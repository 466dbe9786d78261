"""`timm:NAME`: every architecture that timm registers, built without weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.failures import did_you_mean
from rebasin_cli.model.optional_package import import_optional
from rebasin_cli.model.source import refuse_weights

DEFAULT_SIZE = (3, 224, 224)


@dataclass(frozen=True, slots=True)
class TimmModel:
    """One registered architecture."""

    name: str
    model: str
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        refuse_weights(self.name, args, "pretrained", "checkpoint_path", "pretrained_cfg")
        return import_optional("timm", "timm").create_model(self.model, **{"pretrained": False, **args})

    def signature(self) -> inspect.Signature | None:
        return None  # every argument goes through create_model to a class that checks its own

    def class_count_names(self) -> tuple[str, ...]:
        return ("num_classes",)

    def switches(self) -> tuple[tuple[str, object], ...]:
        return ()

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """One image of the size that the module's patch embedding, or its default configuration, states."""
        config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
        channels, height, width = config.get("input_size") or DEFAULT_SIZE
        built_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
        if isinstance(built_for, (tuple, list)) and len(built_for) == 2:
            height, width = built_for
        return ExampleInput((Sampler(seed).normal(1, _in_channels(module, channels), height, width),))


def _in_channels(module: nn.Module, usual: int) -> int:
    """`in_chans` may have been changed by an argument: the first convolution knows."""
    first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels < usual else usual


def timm_names() -> list[str]:
    """Every architecture's name, pretrained tags left out."""
    return list(import_optional("timm", "timm").list_models())


def timm_source(text: str, name: str) -> TimmModel:
    """The architecture of this name; a pretrained tag after a dot (`resnet50.a1_in1k`) says nothing here.

    Raises:
        ModelError: no such architecture, with the nearest names.
        ResourceError: timm is not installed.
    """
    known = timm_names()
    architecture = name.partition(".")[0]
    if architecture not in known:
        raise ModelError(
            f"unknown model {name!r} in timm{did_you_mean(architecture, known)}",
            hint="list the names with: rebasin models 'timm:*'",
            slug="unknown-model",
        )
    return TimmModel(text, architecture)
