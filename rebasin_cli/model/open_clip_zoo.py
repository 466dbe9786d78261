"""`open_clip:NAME`: image and text towers together, built without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput, Sampler
from rebasin_cli.model.loading import Loaded, Loader, Tensors
from rebasin_cli.model.names import unknown_model
from rebasin_cli.model.source import ModelSource, import_optional, refuse_weights

_PRETRAINED = ("pretrained", "pretrained_image", "pretrained_image_path", "pretrained_text_path", "require_pretrained")


@dataclass(frozen=True, slots=True)
class OpenClipModel(ModelSource):
    """One of open_clip's configurations."""

    name: str
    model: str
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        refuse_weights(self.name, args, *_PRETRAINED)
        quiet = {"pretrained": None, "pretrained_text": False}
        return import_optional("open_clip", "open-clip").create_model(self.model, **{**quiet, **args})

    @property
    def library(self) -> str:
        return "open_clip"

    def loaders(self, args: Mapping[str, Any]) -> tuple[Loader, ...]:
        """`load_checkpoint`, which converts other packages' files and older ones."""

        def load_checkpoint(build: Callable[[], nn.Module], tensors: Tensors) -> Loaded:
            factory: Any = import_optional("open_clip.factory", "open-clip")
            module, read = build(), factory.load_state_dict
            factory.load_state_dict = lambda *_, **__: tensors
            try:
                factory.load_checkpoint(module, "file", strict=False)
            finally:
                factory.load_state_dict = read
            return Loaded(module)

        return (load_checkpoint,)

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """An image (1, 3, H, W) and token ids (1, context length) from the model's own configuration."""
        config = import_optional("open_clip", "open-clip").get_model_config(self.model) or {}
        sample = Sampler(seed)
        side = getattr(getattr(module, "visual", None), "image_size", None)
        side = side or config.get("vision_cfg", {}).get("image_size", 224)
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        text = config.get("text_cfg", {})
        tokens = getattr(module, "context_length", None) or text.get("context_length", 77)
        vocabulary = getattr(module, "vocab_size", None) or text.get("vocab_size", 49408)
        return ExampleInput((sample.normal(1, 3, height, width), sample.integers((1, tokens), vocabulary)))


def open_clip_source(text: str, name: str) -> OpenClipModel:
    """The configuration of this name; `local-dir:` and `hf-hub:` names are not accepted.

    Raises:
        ModelError: no such configuration, with the nearest names; or one whose text tower would be downloaded.
        ResourceError: open_clip is not installed.
    """
    known = import_optional("open_clip", "open-clip").list_models()
    if name not in known:
        raise unknown_model("open_clip", name, known)
    config = import_optional("open_clip", "open-clip").get_model_config(name) or {}
    if "hf_model_name" in config.get("text_cfg", {}):
        raise ModelError(
            f"open_clip:{name} takes its text tower from the Hugging Face hub, and nothing is downloaded",
            hint="build it in your own file and give it as file.py:callable",
            slug="needs-download",
        )
    return OpenClipModel(text, name)
