"""The data of a sweep: what the networks are evaluated on, and what their statistics are measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from rebasin_cli.data import Batch, BatchSource, ImageTransform, model_class_names
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import model_transform, user_transform
from rebasin_cli.errors import DataError, ModelError
from rebasin_cli.execution.evaluation import class_count
from rebasin_cli.execution.subject import ModelChoice, example_for
from rebasin_cli.interpolation.models import SweepModels


@dataclass(frozen=True, slots=True)
class SweepData:
    """`evaluation` is None where networks are only saved, `statistics` where nothing is recalibrated."""

    evaluation: BatchSource | None
    statistics: BatchSource | None

    def identity(self) -> dict[str, Any]:
        """Everything about the data that decides the numbers; as a digest, because a list of files can be long."""
        return {
            "evaluation": _digest(self.evaluation),
            "statistics": _digest(self.statistics),
        }


def _digest(source: BatchSource | None) -> str | None:
    if source is None:
        return None
    return hashlib.sha256(source.fingerprint.encode("utf-8", "surrogateescape")).hexdigest()


def model_view(models: SweepModels, choice: ModelChoice, transform: str | None) -> ModelView:
    """What reading the data needs to know about the model.

    Args:
        transform: the user's image transform; None for that of the model.
    """
    module = models.slot.module
    chosen, names = model_transform(choice.spec, module)
    if transform is not None:
        chosen = user_transform(transform, choice.spec)
    input_stated = bool(choice.inputs) or choice.input_file is not None
    return ModelView(
        classes_of=lambda batch: _classes(models, batch),
        names=model_class_names(module) or names,
        transform=chosen,
        input_shape=None if isinstance(chosen, ImageTransform) else _input_shape(models, choice),
        input_certain=input_stated or _zoo_knows_input(models),
    )


def _classes(models: SweepModels, batch: Batch) -> int | None:
    """The model's number of classes, found by running it on one sample."""
    models.slot.load(models.networks.first)
    for piece, output in models.slot.outputs(batch.rows(0, 1)):
        return class_count(output, piece.target)
    raise DataError("the data hold no sample")


def _zoo_knows_input(models: SweepModels) -> bool:
    factory = models.subject.factory
    return factory.source.example(models.subject.module, factory.seed) is not None


def _input_shape(models: SweepModels, choice: ModelChoice) -> tuple[int, ...] | None:
    """The shape of the model's input where it is one image; None where it is unknown."""
    try:
        example = example_for(choice, models.subject)
    except ModelError:  # then the images' own size decides
        return None
    shapes = [tuple(tensor.shape) for _, tensor in example.tensors()]
    return shapes[0] if len(shapes) == 1 and len(shapes[0]) == 4 else None
