"""Networks of one model evaluated on `--data`, as every verb reads data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from rebasin_cli.data import DataOptions, open_data
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.execution.data_inputs import Classes, has_no_labels, model_view
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.evaluation import Measure
from rebasin_cli.execution.generated.maker import InputMaker, maker_of
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.scored import WholeNetwork, scores_of
from rebasin_cli.execution.scores import Values
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.generated_inputs import check_saving
from rebasin_cli.verbs.networks import Networks

if TYPE_CHECKING:
    from pathlib import Path

    from rebasin_cli.data.generated_kinds import GeneratedFacts


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
    cache: bool

    @property
    def save_generated(self) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What networks score on the data, by name; nothing without data.

    Attributes:
        labelled: the data have labels; else the loss of a network is the distance of its outputs from those of the
            reference, and its accuracy the agreement with it.
        generated: about inputs that are no data.
        maker: made them.
    """

    scores: Mapping[str, Values]
    labelled: bool = True
    generated: GeneratedFacts | None = None
    maker: InputMaker | None = None


def evaluate_on(
    networks: Networks,
    options: Evaluation,
    tensors: Mapping[str, Mapping[str, Tensor]],
    progress: Progress,
    *,
    reference: str,
    makers: Sequence[str],
) -> Evaluated:
    """Loss and accuracy of each network, by name; nothing without data.

    Args:
        reference: the network that the others are compared with where the data have no labels.
        makers: the networks that make inputs without data.

    Raises:
        DataError: the data cannot be read or do not fit the model.
    """
    if options.data is None:
        return Evaluated({})
    progress.phase("evaluating")
    slot = ModelSlot(networks.subject.factory.build(), resolve_device(options.device))
    loss = None if options.loss is None else load_callable(options.loss)

    def first() -> ModelSlot:
        name = next(iter(tensors))
        slot.load(WholeNetwork(name, tensors[name]))
        return slot

    device, example = resolve_device(options.device), networks.understood.example
    made_by = [tensors[name] for name in makers]
    maker = maker_of(networks.subject, made_by, example, device, cache=options.cache, progress=progress)
    view = model_view(
        networks.subject,
        slot.module,
        options.model,
        example=networks.understood.example,
        stated=bool(getattr(options, "inputs", ())) or getattr(options, "input_file", None) is not None,
        transform=options.transform,
        classes=Classes(first, labelled=loss is None),
        folders=[weights.checkpoint.path for weights in networks.weights],
        maker=maker,
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
    check_saving(maker, options.save_generated)
    progress.note(f"data: {source.description}")
    labelled = loss is not None or not has_no_labels(source)
    scores = scores_of(
        slot,
        source,
        tensors,
        measure=Measure(loss),
        progress=progress,
        reference=None if labelled else reference,
    )
    return Evaluated(scores, labelled, source.generated, maker)
