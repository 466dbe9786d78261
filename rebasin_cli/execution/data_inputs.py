"""Inputs from a data set for the networks of a pair: batches as the model takes them, and samples like its example."""

from __future__ import annotations

from collections.abc import Iterator

from rebasin_cli.data import Batch, DataOptions, open_data
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import model_transform
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.model.example_input import ExampleInput


def data_batches(
    pair: Pair,
    understood: Understanding,
    data: str,
    *,
    model: str,
    limit: int | None,
    batch_size: int,
    seed: int,
    shuffle: bool = False,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """A data set batch by batch, with the model's own transform; among several processes, this one's share.

    Raises:
        DataError: there is no such data, or it does not fit the model.
    """
    transform, names = model_transform(model, pair.subject.module)
    shapes = [tuple(tensor.shape) for _, tensor in understood.example.tensors()]
    image = shapes[0] if len(shapes) == 1 and len(shapes[0]) == 4 else None
    view = ModelView(
        classes_of=lambda batch: None, names=names, transform=transform, input_shape=image, input_certain=False
    )
    options = DataOptions(limit, seed, batch_size, 0, False, shuffle=shuffle)
    return open_data(data, options, view).batches(rank=ranks.rank, world=ranks.world)


def sample_inputs_from_data(
    pair: Pair, understood: Understanding, data: str, count: int, *, model: str, seed: int
) -> tuple[ExampleInput, ...]:
    """The first samples of a data set as `count` inputs with as many samples each as the example has.

    Raises:
        DataError: there is no such data, or it does not fit the model.
    """
    sizes = [tensor.shape[0] for _, tensor in understood.example.tensors() if tensor.dim()]
    size = sizes[0] if sizes else 1
    batches = data_batches(pair, understood, data, model=model, limit=count * size, batch_size=count * size, seed=seed)
    batch = next(iter(batches), None)
    if batch is None:
        return ()
    parts = [batch.rows(start, start + size) for start in range(0, batch.size - size + 1, size)]
    return tuple(ExampleInput(part.args, dict(part.kwargs)) for part in parts[:count])
