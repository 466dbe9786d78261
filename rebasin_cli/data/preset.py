"""The transform that belongs to a model, from the zoo it comes from; and what `--transform` may name instead."""

from __future__ import annotations

from typing import Any

from torch import nn

from rebasin_cli.data.transform import Transform, from_preset, parse_transform
from rebasin_cli.data.user_loader import load_callable
from rebasin_cli.errors import ModelError, UsageError
from rebasin_cli.model.failures import did_you_mean
from rebasin_cli.model.model_spec import ModelSpec, parse_model_spec
from rebasin_cli.model.torchvision_import import import_torchvision


def model_transform(model: str, module: nn.Module) -> tuple[Transform | None, tuple[str, ...] | None]:
    """The zoo's transform for this model and its class names; (None, None) for models of no zoo that says.

    torchvision may hold several sets of weights with slightly different presets; a checkpoint does not say which it
    was, so the newest counts, and `--transform IMAGENET1K_V1` picks another.
    """
    spec = _spec(model)
    if spec is None:
        return None, None
    if spec.kind == "torchvision":
        weights = _weights(spec.target)
        if weights is None:
            return None, None
        newest = weights.DEFAULT
        names = newest.meta.get("categories")
        return _named(newest), None if names is None else tuple(names)
    if spec.kind == "timm":
        return _timm_transform(module), None
    return None, None


def user_transform(text: str, model: str) -> Transform:
    """What `--transform` names: `file.py:function`, a set of the model's weights, or options in words.

    Raises:
        UsageError: it is none of these.
        DataError: the user's function cannot be loaded.
    """
    if text.partition(":")[0].endswith(".py"):
        return Transform(text=text, function=load_callable(text))
    if "=" in text or not text:
        return parse_transform(text)
    spec = _spec(model)
    weights = _weights(spec.target) if spec is not None and spec.kind == "torchvision" else None
    known = [] if weights is None else [entry.name for entry in weights]
    if weights is None or text not in known:
        raise UsageError(
            f"--transform: {model} has no weights {text!r}{did_you_mean(text, known)}",
            hint=f"its weights are {', '.join(known)}" if known else "give options such as resize=256,crop=224",
        )
    return _named(weights[text])


def _spec(model: str) -> ModelSpec | None:
    try:
        return parse_model_spec(model)
    except ModelError:
        return None


def _weights(name: str) -> Any:
    models = import_torchvision("models")
    try:
        weights = models.get_model_weights(name)
    except ValueError:
        return None
    return weights if len(list(weights)) else None


def _named(entry: Any) -> Transform:
    made = from_preset(entry.transforms())
    return Transform(text=f"{made.text}, preset {entry}", function=made.function)


def _timm_transform(module: nn.Module) -> Transform:
    from rebasin_cli.model.optional_package import import_optional

    timm_data = import_optional("timm.data", "timm")
    config = timm_data.resolve_model_data_config(module)
    return Transform(text=f"timm preset {config.get('input_size')}", function=timm_data.create_transform(**config))
