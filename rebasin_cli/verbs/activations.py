"""Running both networks to see their units at work: on synthetic inputs for starts, on data for activation matching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import nn

from rebasin_cli.data import Batch, DataOptions, open_data
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import model_transform
from rebasin_cli.errors import NumericalError
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.synthetic_inputs import is_image, natural_noise, white_noise
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.execution.weights import Weights
from rebasin_cli.matching.activation_matching import match_activations
from rebasin_cli.matching.activation_statistics import correlations
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.permutation import Permutations, identity
from rebasin_cli.tracing.capture import called_operations

ROOM = 1 << 30
"""Largest number of parameters of a model that is run for a start; a larger one costs more than the start is worth."""
ROOM_UNASKED = 1 << 24
"""The same for noise nobody asked for: for a ResNet-50 pair it made `standard` half as long again in vain."""


def can_run(pair: Pair, understood: Understanding, room: int = ROOM) -> bool:
    """Whether the units can be seen at work: the model was traced and has no more than so many parameters."""
    numbers = sum(tensor.numel() for tensor in pair.subject.module.parameters())
    return understood.trace is not None and understood.derivation is not None and numbers <= room


def synthetic_starts(pair: Pair, understood: Understanding, seed: int) -> Mapping[str, Callable[[], Permutations]]:
    """Makers of starts that need no data, by name."""
    makers = {"noise": white_noise}
    if is_image(understood.example):
        makers["natural noise"] = natural_noise
    return {
        name: partial(start_from, pair, understood, partial(make, understood.example, seed), seed)
        for name, make in makers.items()
    }


def start_from(
    pair: Pair, understood: Understanding, inputs: Callable[[], Iterable[ExampleInput]], seed: int
) -> Permutations:
    """The permutations that the units' activations on these inputs suggest; none where the networks go out of range."""
    try:
        found = measured(pair, understood, inputs())
    except NumericalError:  # noise may drive a network out of range: then it is no start
        return identity(understood.spec)
    assert understood.derivation is not None
    return match_activations(understood.spec, understood.derivation.taps, found, seed=seed)


def measured(
    pair: Pair, understood: Understanding, inputs: Iterable[ExampleInput], *, ranks: Ranks = ALONE
) -> list[torch.Tensor]:
    """Correlations of A's units with B's at every tap, on the given inputs; several processes each give their own.

    Raises:
        DataError, ModelError, NumericalError: as for `correlations`.
    """
    assert understood.trace is not None
    assert understood.derivation is not None
    networks = (_network(pair, pair.a), _network(pair, pair.b))
    expected = called_operations(understood.trace)
    return correlations(networks, inputs, understood.derivation.taps, expected, ranks=ranks)


def _network(pair: Pair, weights: Weights) -> nn.Module:
    """The model with these weights, in float32 where the file is narrower."""
    return load_state(pair.subject.factory.build_weightless(), weights, dtype=torch.float32).eval()


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
    """A data set batch by batch, prepared as the model wants it; of several processes, this one's share.

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


def sample_batches(
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
