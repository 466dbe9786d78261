"""`torchvision:NAME`: every model that torchvision registers, built without weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.failures import did_you_mean
from rebasin_cli.model.source import refuse_weights
from rebasin_cli.model.torchvision_import import import_torchvision
from rebasin_cli.model.torchvision_inputs import torchvision_input

# Their default initialisation draws from scipy's truncated normal, takes half a minute, and warns that it will change.
_SLOW_INITIALISATION = ("googlenet", "inception_v3")


@dataclass(frozen=True, slots=True)
class TorchvisionModel:
    """One registered builder."""

    name: str
    model: str
    builder: Callable[..., Any]
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        refuse_weights(self.name, args, "weights", "weights_backbone")
        quiet: dict[str, Any] = {"weights": None}
        if "weights_backbone" in inspect.signature(self.builder).parameters:
            quiet["weights_backbone"] = None
        if self.model in _SLOW_INITIALISATION:
            quiet["init_weights"] = False
        return self.builder(**{**quiet, **args})

    def signature(self) -> inspect.Signature | None:
        return inspect.signature(self.builder)

    def class_count_names(self) -> tuple[str, ...]:
        return ("num_classes",)

    def switches(self) -> tuple[tuple[str, object], ...]:
        return (("aux_logits", False), ("aux_loss", True))  # their defaults depend on whether weights were loaded

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        return torchvision_input(self.model, self.builder.__module__, module, seed)


def torchvision_names() -> list[str]:
    """Every name that `torchvision:` takes: all registered models but the quantized ones."""
    models = import_torchvision("models")
    return [name for name in models.list_models() if not name.startswith("quantized_")]


def torchvision_source(text: str, name: str) -> TorchvisionModel:
    """The builder registered under this name.

    Raises:
        ModelError: no such model, with the nearest names; or a quantized one.
    """
    models = import_torchvision("models")
    known = torchvision_names()
    if name.startswith("quantized_"):
        plain = name.removeprefix("quantized_")
        raise ModelError(
            f"torchvision:{name} is quantized: its packed integer weights cannot be reordered",
            hint=f"align the float checkpoints with torchvision:{plain} and quantize afterwards",
            slug="quantized-model",
        )
    if name not in known:
        raise ModelError(
            f"unknown model {name!r} in torchvision {_version()}{did_you_mean(name, known)}",
            hint="list the names with: rebasin models",
            slug="unknown-model",
        )
    return TorchvisionModel(text, name, models.get_model_builder(name))


def _version() -> str:
    return str(import_torchvision().__version__)
