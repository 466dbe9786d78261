"""The data of a sweep: what it is evaluated on, what statistics are measured on, and what is measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rebasin_cli.data import Batch, BatchSource, DataOptions, ImageTransform, model_class_names, open_data
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import model_transform, user_transform
from rebasin_cli.errors import DataError, ModelError
from rebasin_cli.execution.measure import Measure, class_count
from rebasin_cli.execution.subject import example_for
from rebasin_cli.verbs.interpolate_models import LoadedModels

if TYPE_CHECKING:
    from rebasin_cli.verbs.interpolate_run import InterpolateRequest


@dataclass(frozen=True)
class SweepData:
    """`statistics` is None where nothing is recalibrated."""

    evaluation: BatchSource
    statistics: BatchSource | None
    measure: Measure

    @staticmethod
    def open(request: InterpolateRequest, models: LoadedModels) -> SweepData:
        """Open both sources with the transform that belongs to the model.

        Raises:
            DataError: there is no such data, or it does not fit the model.
        """
        measure = Measure(
            None if request.loss is None else load_callable(request.loss),
            None if request.metric is None else load_callable(request.metric),
        )
        view = _view(request, models)
        options = DataOptions(
            request.limit, request.seed, request.batch_size, request.workers, request.skip_corrupt, shuffle=False
        )
        evaluation = open_data(request.data, options, view)
        statistics = None
        if request.recalibrate is not None:
            shuffled = DataOptions(
                request.recalibrate_limit,
                request.seed,
                request.batch_size,
                request.workers,
                request.skip_corrupt,
                shuffle=True,
            )
            statistics = open_data(request.recalibrate, shuffled, view)
        return SweepData(evaluation, statistics, measure)

    def identity(self) -> dict[str, Any]:
        """What of the data decides the numbers; long lists of files as their digest."""
        return {
            "evaluation": _digest(self.evaluation.fingerprint),
            "statistics": None if self.statistics is None else _digest(self.statistics.fingerprint),
        }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _view(request: InterpolateRequest, models: LoadedModels) -> ModelView:
    """What reading the data must know of the model."""
    spec, body = request.choice.spec, models.body
    transform, names = model_transform(spec, body.module)
    if request.transform is not None:
        transform = user_transform(request.transform, spec)
    return ModelView(
        classes_of=lambda batch: _classes(models, batch),
        names=model_class_names(body.module) or names,
        transform=transform,
        input_shape=None if isinstance(transform, ImageTransform) else _input_shape(request, models),
        input_certain=request.input_stated or _zoo_states_input(models),
    )


def _classes(models: LoadedModels, batch: Batch) -> int | None:
    """How many classes the model tells apart, found by running it on one sample."""
    models.become_first()
    for piece, output in models.body.outputs(batch.rows(0, 1)):
        return class_count(output, piece.target)
    raise DataError("the data hold no sample")


def _zoo_states_input(models: LoadedModels) -> bool:
    factory = models.subject.factory
    return factory.source.example(models.subject.module, factory.seed) is not None


def _input_shape(request: InterpolateRequest, models: LoadedModels) -> tuple[int, ...] | None:
    """The shape of the model's input where it is one image; None where nobody knows it."""
    try:
        example = example_for(request.choice, models.subject)
    except ModelError:  # then the images' own size decides
        return None
    shapes = [tuple(tensor.shape) for _, tensor in example.tensors()]
    return shapes[0] if len(shapes) == 1 and len(shapes[0]) == 4 else None
