"""From the user's `--model` and `--input` to a module, without its weights where possible, and an input to run it on.

Names are imported when they are first used, so that importing one does not import torch unless it needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rebasin_cli.model.example_input import ExampleInput as ExampleInput
    from rebasin_cli.model.factory import ModelFactory as ModelFactory
    from rebasin_cli.model.factory import load_factory as load_factory
    from rebasin_cli.model.factory import published_source as published_source
    from rebasin_cli.model.model_spec import parse_model_args as parse_model_args
    from rebasin_cli.model.model_spec import parse_model_spec as parse_model_spec
    from rebasin_cli.model.names import check_model as check_model
    from rebasin_cli.model.source import Preprocessing as Preprocessing
    from rebasin_cli.model.torchvision_import import import_torchvision as import_torchvision
    from rebasin_cli.model.user_code import user_function as user_function

_HOMES = {
    "ExampleInput": "example_input",
    "ModelFactory": "factory",
    "Preprocessing": "source",
    "check_model": "names",
    "import_torchvision": "torchvision_import",
    "load_factory": "factory",
    "parse_model_args": "model_spec",
    "parse_model_spec": "model_spec",
    "published_source": "factory",
    "user_function": "user_code",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
