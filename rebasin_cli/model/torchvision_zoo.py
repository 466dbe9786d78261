"""`torchvision:NAME`: every model that torchvision registers, built without weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.loading import Loaded, Loader, Tensors, by_load_state_dict
from rebasin_cli.model.names import unknown_model
from rebasin_cli.model.source import ModelSource, Preprocessing, refuse_weights
from rebasin_cli.model.torchvision_import import import_torchvision
from rebasin_cli.model.weightless import weightless_construction

# The default initialisation of these takes half a minute and warns.
_SLOW_INITIALISATION = ("googlenet", "inception_v3")

DEFAULT_IMAGE = 224
DEFAULT_CLIP = (8, 112)
# (frames, side) of clips that differ from the default.
CLIPS = {
    "s3d": (16, 224),  # its last pooling window is 2 x 7 x 7 after a reduction by 8 x 32 x 32
    "mvit_v1_b": (16, 224),  # position tables of fixed size
    "mvit_v2_s": (16, 224),
}


@dataclass(frozen=True, slots=True)
class TorchvisionModel(ModelSource):
    """One registered builder."""

    name: str
    model: str
    builder: Callable[..., Any]
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        refuse_weights(self.name, args, "weights", "weights_backbone")
        return self._built(args, None)

    def loaders(self, args: Mapping[str, Any]) -> tuple[Loader, ...]:
        """The builder itself, which renames the keys of its published files; then `load_state_dict`."""

        def by_builder(build: Callable[[], nn.Module], tensors: Tensors) -> Loaded:
            with weightless_construction():
                return Loaded(self._built(args, _stand_in(self.model, args, tensors)))

        return (by_builder, by_load_state_dict) if _weights(self.model) else (by_load_state_dict,)

    def _built(self, args: Mapping[str, Any], weights: Any) -> Any:
        quiet: dict[str, Any] = {"weights": weights}
        if "weights_backbone" in inspect.signature(self.builder).parameters:
            quiet["weights_backbone"] = None
        if self.model in _SLOW_INITIALISATION and weights is None:
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

    def weights(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in _weights(self.model))

    def preprocessing(self, module: nn.Module | None, weights: str | None = None) -> Preprocessing | None:
        """By default of the newest weights: sets differ slightly, and a checkpoint does not say which set it is."""
        published = _weights(self.model)
        if not published:
            return None
        entry: Any = type(published[0]).DEFAULT if weights is None else type(published[0])[weights]
        names = entry.meta.get("categories")
        preset = entry.transforms()
        return Preprocessing(f"{_in_words(preset)}, preset {entry}", preset, None if names is None else tuple(names))


def torchvision_source(text: str, name: str) -> TorchvisionModel:
    """The builder registered under this name.

    Raises:
        ModelError: no such model, with the nearest names; or a quantized one.
    """
    models = import_torchvision("models")
    known = [known for known in models.list_models() if not known.startswith("quantized_")]
    if name.startswith("quantized_"):
        plain = name.removeprefix("quantized_")
        raise ModelError(
            f"torchvision:{name} is quantized: its packed integer weights cannot be permuted",
            hint=f"align the float checkpoints with torchvision:{plain} and quantize afterwards",
            slug="quantized-model",
        )
    if name not in known:
        raise unknown_model("torchvision", name, known)
    return TorchvisionModel(text, name, models.get_model_builder(name))


def _weights(name: str) -> tuple[Any, ...]:
    """The published weights of a model."""
    try:
        return tuple(import_torchvision("models").get_model_weights(name))
    except ValueError:
        return ()


def _stand_in(name: str, args: Mapping[str, Any], tensors: Tensors) -> Any:
    """An entry like the model's published weights, whose file holds these tensors."""
    published: Any = type(_weights(name)[0])
    entry = object.__new__(published)
    default = published.DEFAULT.value
    classes = {"categories": range(args["num_classes"])} if "num_classes" in args else {}
    entry._name_, entry._value_ = "FILE", replace(default, meta={**default.meta, **classes})
    entry.get_state_dict = lambda *_, **__: tensors
    return entry


def _in_words(preset: Any) -> str:
    """A preset's sizes in words."""
    parts = [
        f"{word} {'x'.join(str(side) for side in getattr(preset, attribute))}"
        for word, attribute in (("resize", "resize_size"), ("crop", "crop_size"))
        if isinstance(getattr(preset, attribute, None), (list, tuple))
    ]
    return ", ".join(parts) or type(preset).__name__


def torchvision_input(name: str, family: str, module: nn.Module, seed: int) -> ExampleInput:
    """One sample for the model `name` whose builder is in the Python module `family`.

    Images are (1, 3, H, W) and clips (1, 3, T, H, W), standard normal as after normalisation; a detector takes a list
    of (3, H, W) images in [0, 1); RAFT takes two frames in [-1, 1).
    """
    sample = Sampler(seed)
    if ".detection." in family:
        return ExampleInput(([sample.uniform(3, 320, 320)],))
    if ".optical_flow." in family:  # RAFT wants feature maps of at least 16 x 16 at an eighth of the resolution
        return ExampleInput((sample.uniform(1, 3, 128, 128) * 2 - 1, sample.uniform(1, 3, 128, 128) * 2 - 1))
    if ".video." in family:
        frames, side = CLIPS.get(name, DEFAULT_CLIP)
        return ExampleInput((sample.normal(1, 3, frames, side, side),))
    if name == "inception_v3":
        return ExampleInput((sample.normal(1, 3, 299, 299),))
    declared = getattr(module, "image_size", None)  # vision transformers: the position table decides
    side = declared if isinstance(declared, int) else DEFAULT_IMAGE
    return ExampleInput((sample.normal(1, 3, side, side),))
