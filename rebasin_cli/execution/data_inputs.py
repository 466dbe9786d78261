"""The data of a run as its model takes them: one way for every verb, and for a pair the batches and the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch, BatchSource, DataOptions, model_class_names, open_data
from rebasin_cli.data.contract import taken_by
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.text import Language
from rebasin_cli.data.transform import model_transform, user_transform
from rebasin_cli.errors import DataError
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.generated.maker import InputMaker, pair_maker
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.subject import Subject
from rebasin_cli.execution.targets import class_count, fitted
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.progress import Progress


def model_view(
    subject: Subject,
    module: nn.Module,
    spec: str,
    *,
    example: ExampleInput | None,
    stated: bool,
    transform: str | None,
    classes: Classes,
    folders: Sequence[Path] = (),
    maker: InputMaker | None = None,
) -> ModelView:
    """What reading data needs to know about a model; the same for every verb.

    Args:
        module: the model as the networks are run in.
        spec: `--model`.
        example: the input that it is run on, None where it is unknown.
        stated: the user stated the input.
        transform: `--transform`; None for that of the model.
        classes: runs a network on samples.
        folders: of checkpoints, where a tokenizer may lie.
        maker: makes inputs without data.
    """
    chosen, names = model_transform(spec, module)
    if transform is not None:
        chosen = user_transform(transform, spec)
    tensors: Sequence[Tensor] = [] if example is None else [tensor for _, tensor in example.tensors()]
    language = _language(module, spec, tensors, stated, folders)
    return ModelView(
        classes_of=classes,
        names=model_class_names(module) or names,
        transform=chosen,
        asked=transform is not None,
        input_shape=tuple(tensors[0].shape) if len(tensors) == 1 else None,
        input_certain=stated or _zoo_knows_input(subject),
        takes=taken_by(module, tensors, {} if example is None else constants_of(example)),
        language=language,
        run=classes.output,
        labelled=classes.used,
        generate=None if maker is None else partial(maker.make, language=language),
    )


def constants_of(example: ExampleInput) -> dict[str, Any]:
    """The arguments of the example that are no tensors."""
    return {name: value for name, value in example.kwargs.items() if isinstance(value, (bool, int, float, str))}


def _language(
    module: nn.Module, spec: str, tensors: Sequence[Tensor], stated: bool, folders: Sequence[Path]
) -> Language | None:
    """What text for this model needs; None for a model whose input is not one row of integers for each sample."""
    if len(tensors) != 1 or tensors[0].dim() != 2 or tensors[0].is_floating_point():
        return None
    config = getattr(module, "config", None)
    tables = [child.num_embeddings for child in module.modules() if isinstance(child, nn.Embedding)]
    vocabulary = getattr(config, "vocab_size", None) or (tables[0] if tables else None)
    if not isinstance(vocabulary, int):
        return None
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
    known = (getattr(config, name, None) for name in names)
    context = next((length for length in known if isinstance(length, int) and length > 0), None)
    kind, _, target = spec.partition(":")
    beside = [Path(target).expanduser()] if kind == "transformers" else []
    places = tuple(folder for folder in (*beside, *folders) if folder.is_dir())
    return Language(vocabulary, context, int(tensors[0].shape[1]) if stated else None, places)


def _zoo_knows_input(subject: Subject) -> bool:
    return subject.factory.source.example(subject.module, subject.factory.seed) is not None


def has_no_labels(source: BatchSource) -> bool:
    """Whether the first batch that holds samples has no target."""
    first = next((batch for batch in source.batches() if batch.size), None)
    return first is not None and (first.target is None or isinstance(first.target, Mapping))


SAMPLES = 64


class Classes:
    """Counts a model's classes by running a network on the first samples, at most `SAMPLES`.

    Args:
        slot: returns the module with a network's weights in it.
        labelled: labels are compared with the outputs, and refused if they do not fit.
        used: labels are used at all, if only by the user's functions.
    """

    def __init__(self, slot: Callable[[], ModelSlot], *, labelled: bool, used: bool = True) -> None:
        self._slot, self._labelled, self.used = slot, labelled, used

    def __call__(self, batch: Batch) -> int | None:
        """The number of classes of outputs (n, classes); None of other outputs and of data without labels.

        Raises:
            DataError: the model does not accept the sample, or, where labels are used, its label.
        """
        for piece, output in self._slot().outputs(batch.rows(0, min(batch.size, SAMPLES))):
            if self._labelled:
                fitted(output, piece)
            return class_count(output, piece.target) if self.used else None
        raise DataError("the data hold no sample")

    def output(self, batch: Batch) -> Any:
        """What the network returns for a batch."""
        return next(output for _, output in self._slot().outputs(batch))


@dataclass(frozen=True)
class PairData:
    """A data set for the networks of a pair.

    Attributes:
        name: what `--data` says.
        model: what `--model` says.
        options: how it is read.
        transform: what `--transform` says.
        stated: the user stated the model's input.
        labelled: labels are learned from.
        loss: what `--loss` says; without it, labels must fit the outputs.
        device, cache, progress: where inputs without data are made, whether they are kept, and who is told of it.
        part: what of the shuffled data is given out, where some of it is held back; None for all.
    """

    pair: Pair
    understood: Understanding
    name: str
    model: str
    options: DataOptions
    transform: str | None = None
    stated: bool = False
    labelled: bool = False
    loss: str | None = None
    device: str = "cpu"
    cache: bool = True
    progress: Progress | None = field(default=None, repr=False, compare=False)
    part: Callable[[BatchSource], BatchSource] | None = None
    _opened: dict[tuple[int | None, int, bool], BatchSource] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def view(self) -> ModelView:
        return model_view(
            self.pair.subject,
            self.pair.subject.module,
            self.model,
            example=self.understood.example,
            stated=self.stated,
            transform=self.transform,
            classes=Classes(self._slot, labelled=self.labelled and self.loss is None, used=self.labelled),
            folders=[weights.checkpoint.path for weights in (self.pair.a, self.pair.b)],
            maker=self.maker,
        )

    @cached_property
    def maker(self) -> InputMaker:
        """Makes inputs without data, where `name` says so."""
        device = resolve_device(self.device)
        return pair_maker(self.pair, self.understood.example, device, cache=self.cache, progress=self.progress)

    def _slot(self) -> ModelSlot:
        network = load_state(self.pair.subject.factory.build_weightless(), self.pair.a, dtype=torch.float32)
        return ModelSlot(network, torch.device("cpu"))

    def open(self, *, limit: int | None = None, batch_size: int | None = None, shuffle: bool = False) -> BatchSource:
        """The data, opened once for each way of reading them.

        Args:
            limit, batch_size: instead of those of the options.

        Raises:
            DataError: there is no such data, or it does not fit the model.
        """
        ours = self.options
        key = (ours.limit if limit is None else limit, batch_size or ours.batch_size, shuffle)
        if key not in self._opened:
            how = DataOptions(
                limit=key[0],
                seed=ours.seed,
                batch_size=key[1],
                workers=ours.workers,
                skip_corrupt=ours.skip_corrupt,
                shuffle=shuffle,
                class_map=ours.class_map,
                class_order=ours.class_order,
            )
            self._opened[key] = open_data(self.name, how, self.view)
        found = self._opened[key]
        return self.part(found) if self.part is not None and shuffle else found

    def renamed(self, name: str) -> PairData:
        """Other data, read in the same way."""
        return replace(self, name=name, _opened={})

    def batches(self, *, shuffle: bool = False, ranks: Ranks = ALONE) -> Iterator[Batch]:
        """This process's share of the batches that hold samples."""
        found = self.open(shuffle=shuffle).batches(rank=ranks.rank, world=ranks.world)
        return (batch for batch in found if batch.size)

    @cached_property
    def real_targets(self) -> bool:
        """Whether the targets are real numbers, of which only the user's loss knows the meaning."""
        first = next((batch.target for batch in self.open().batches() if batch.size), None)
        return isinstance(first, Tensor) and first.is_floating_point()

    def samples(self, count: int) -> tuple[ExampleInput, ...]:
        """The first samples as `count` inputs with as many samples each as the example has.

        Raises:
            DataError: the data cannot be read.
        """
        sizes = [tensor.shape[0] for _, tensor in self.understood.example.tensors() if tensor.dim()]
        size = sizes[0] if sizes else 1
        source = self.open(limit=count * size, batch_size=count * size)
        batch = next((batch for batch in source.batches() if batch.size), None)
        if batch is None:
            return ()
        parts = [batch.rows(start, start + size) for start in range(0, batch.size - size + 1, size)]
        return tuple(ExampleInput(part.args, dict(part.kwargs)) for part in parts[:count])
