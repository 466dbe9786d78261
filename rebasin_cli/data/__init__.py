"""From a folder, an array file, a torchvision data set or the user's Python to batches.

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rebasin_cli.data.batch import Batch as Batch
    from rebasin_cli.data.batch import BatchSource as BatchSource
    from rebasin_cli.data.classes import ClassMap as ClassMap
    from rebasin_cli.data.classes import map_classes as map_classes
    from rebasin_cli.data.classes import model_class_names as model_class_names
    from rebasin_cli.data.source import DataOptions as DataOptions
    from rebasin_cli.data.source import ModelView as ModelView
    from rebasin_cli.data.source import open_data as open_data
    from rebasin_cli.data.transform import ImageTransform as ImageTransform
    from rebasin_cli.data.transform import choose_transform as choose_transform
    from rebasin_cli.data.transform import parse_transform as parse_transform

_HOMES = {
    "Batch": "batch",
    "BatchSource": "batch",
    "ClassMap": "classes",
    "DataOptions": "source",
    "ImageTransform": "transform",
    "ModelView": "source",
    "choose_transform": "transform",
    "map_classes": "classes",
    "model_class_names": "classes",
    "open_data": "source",
    "parse_transform": "transform",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
