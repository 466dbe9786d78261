"""Networks of one model evaluated on `--data`, as every verb reads data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from rebasin_cli.data import DataOptions, open_data
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.execution.data_inputs import Classes, model_view
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.evaluation import Measure
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.scored import WholeNetwork, scores_of
from rebasin_cli.execution.scores import Values
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.networks import Networks

if TYPE_CHECKING:
    from pathlib import Path


class Evaluation(Protocol):
    """The options of a verb that evaluates networks."""

    data: str | None
    model: str
    transform: str | None
    class_map: Path | None
    class_order: str | None
    loss: str | None
    limit: int | None
    batch_size: int
    workers: int
    skip_corrupt: bool
    seed: int
    device: str


def evaluate_on(
    networks: Networks, options: Evaluation, tensors: Mapping[str, Mapping[str, Tensor]], progress: Progress
) -> dict[str, Values]:
    """Loss and accuracy of each network, by name; nothing without data.

    Raises:
        DataError: the data cannot be read or do not fit the model.
    """
    if options.data is None:
        return {}
    progress.phase("evaluating")
    slot = ModelSlot(networks.subject.factory.build(), resolve_device(options.device))
    loss = None if options.loss is None else load_callable(options.loss)

    def first() -> ModelSlot:
        name = next(iter(tensors))
        slot.load(WholeNetwork(name, tensors[name]))
        return slot

    view = model_view(
        networks.subject,
        slot.module,
        options.model,
        example=networks.understood.example,
        stated=bool(getattr(options, "inputs", ())) or getattr(options, "input_file", None) is not None,
        transform=options.transform,
        classes=Classes(first, labelled=loss is None),
        folders=[weights.checkpoint.path for weights in networks.weights],
    )
    reading = DataOptions(
        options.limit,
        options.seed,
        options.batch_size,
        options.workers,
        options.skip_corrupt,
        class_map=options.class_map,
        class_order=options.class_order,
    )
    source = open_data(options.data, reading, view)
    progress.note(f"data: {source.description}")
    return scores_of(slot, source, tensors, measure=Measure(loss), progress=progress)
