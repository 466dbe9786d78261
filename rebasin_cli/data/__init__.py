"""From a folder, an array file, a torchvision set or the user's Python to batches."""

from rebasin_cli.data.batch import Batch, Source
from rebasin_cli.data.classes import ClassMap, map_classes, model_class_names
from rebasin_cli.data.source import DataOptions, open_data
from rebasin_cli.data.transform import Transform, choose_transform, parse_transform

__all__ = [
    "Batch",
    "ClassMap",
    "DataOptions",
    "Source",
    "Transform",
    "choose_transform",
    "map_classes",
    "model_class_names",
    "open_data",
    "parse_transform",
]
