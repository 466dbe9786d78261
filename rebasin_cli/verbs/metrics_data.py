"""The metrics of `metrics` that need data: mean activations and loss gradients, once for each network.

Activations are compared on the same samples: all data that were given, one after the other. Gradients are those of each
network's own loss on its own data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource, DataOptions, open_data
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.data.source import ModelView
from rebasin_cli.errors import DataError, ModelError
from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.execution.data_inputs import Classes, has_no_labels, model_view
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.generated.maker import InputMaker, maker_of
from rebasin_cli.execution.mean_vectors import check_layer, mean_activation, mean_gradients, output_layer
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.subject import ModelChoice, Subject, example_for
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.progress import Progress
from rebasin_cli.task_vectors.measure import NetworkSums
from rebasin_cli.task_vectors.metric import Metric, Source
from rebasin_cli.task_vectors.vectors import sums_of_rows
from rebasin_cli.verbs.generated_inputs import check_saving
from rebasin_cli.verbs.metrics import MetricsOptions
from rebasin_cli.verbs.metrics_files import Journal
from rebasin_cli.verbs.networks import model_choice
from rebasin_cli.verbs.task_vector_files import TaskVectorFiles

Tensors = Mapping[str, Tensor]
GRADIENTS: tuple[Source, ...] = ("encoder_gradients", "input_gradients")


@dataclass
class NetworkData:
    """The data of each network, opened before the long work.

    Attributes:
        metrics: those that can be measured on these data.
        head: path of the output layer.
        maker: makes inputs without data, from all networks.
    """

    options: MetricsOptions
    files: TaskVectorFiles
    metrics: tuple[Metric, ...]
    subject: Subject
    sources: Mapping[str, BatchSource]
    head: str
    maker: InputMaker
    warnings: list[str] = field(default_factory=list)

    @staticmethod
    def open(
        options: MetricsOptions,
        files: TaskVectorFiles,
        metrics: Sequence[Metric],
        subject: Subject,
        tensors: Mapping[str, Tensors],
        progress: Progress,
    ) -> NetworkData:
        """Open the data of all labels, and refuse what does not fit.

        Args:
            tensors: by label.

        Raises:
            DataError: there are no such data, they do not fit the model, or a metric needs labels that they lack.
            ModelError: there is no module `--activation-layer`.
        """
        if options.activation_layer is not None:
            check_layer(subject.module, options.activation_layer)
        needs_labels = any(metric.source in GRADIENTS for metric in metrics)
        slot = _slot(subject, tensors[files.reference], options.device)
        names = dict.fromkeys(name for name in files.data.values() if name is not None)
        example = _example(model_choice(options), subject)
        device = resolve_device(options.device)
        networks = list(tensors.values())
        maker = maker_of(subject, networks, example, device, cache=options.cache, progress=progress)
        view = _view(options, files, subject, slot, maker, example, labelled=needs_labels)
        opened = {name: _open(options, name, view) for name in names}
        check_saving(maker, options.save_generated)
        first = next(iter(opened))
        batch = next((batch for batch in opened[first].batches() if batch.size), None)
        if batch is None:
            raise DataError(f"{first}: there is no sample", path=first)
        sources = {label: opened[name] for label, name in files.data.items() if name is not None}
        found = NetworkData(options, files, tuple(metrics), subject, sources, output_layer(slot, batch), maker)
        found.warnings += [note for source in opened.values() for note in source.notes]
        found._leave_out_unlabelled()
        return found

    def _leave_out_unlabelled(self) -> None:
        """Without labels and without the user's loss there is no loss to derive.

        Raises:
            DataError: a metric of gradients was asked for by name.
        """
        lacking = [source.origin for source in self.sources.values() if has_no_labels(source)]
        if not lacking or self.options.loss is not None:
            return
        wanted = [metric.name for metric in self.metrics if metric.source in GRADIENTS]
        if self.options.metrics and wanted:
            raise DataError(
                f"{wanted[0]} needs labels, and {lacking[0]} has none",
                path=lacking[0],
                hint="give labels, or --loss file.py:function",
            )
        if wanted:
            self.metrics = tuple(metric for metric in self.metrics if metric.source not in GRADIENTS)
            self.warnings.append(f"metrics of gradients are left out, because {lacking[0]} has no labels")

    def identity(self) -> dict[str, str]:
        """What of the data decides the numbers, by label."""
        return {
            label: hashlib.sha256(source.fingerprint.encode("utf-8", "surrogateescape")).hexdigest()
            for label, source in self.sources.items()
        }

    def sums(
        self, networks: Mapping[str, Tensors], ranks: Ranks, journal: Journal | None, progress: Progress
    ) -> NetworkSums:
        """The sums of all pairs, of each kind of vector that a metric reads.

        Args:
            networks: the fine-tuned networks by label, as they are compared.
        """
        kinds = tuple(dict.fromkeys(metric.source for metric in self.metrics if metric.needs_data))
        progress.phase("running networks")
        for number, (label, tensors) in enumerate(networks.items()):
            if not ranks.shared(journal is not None and journal.has_vectors(_names(number, kinds))):
                found = self._vectors(label, tensors, kinds, ranks)
                if journal is not None:
                    for kind, name in zip(kinds, _names(number, kinds), strict=True):
                        journal.keep_vector(name, found[kind])
            progress.step(number + 1, len(networks), label)
        sums: NetworkSums = {}
        if journal is not None:
            sums = {
                kind: self._of_kind(
                    kind, [journal.vector(_names(number, [kind])[0]) for number in range(len(networks))]
                )
                for kind in kinds
            }
        return ranks.shared(sums)  # type: ignore[no-any-return]

    def _of_kind(self, kind: Source, vectors: Sequence[Tensor | None]) -> list[Closeness]:
        present = [one for one in vectors if one is not None]
        if len(present) < len(vectors) or len({one.numel() for one in present}) > 1:
            self.warnings.append(
                f"metrics of {kind.replace('_', ' ')} have no values: the inputs are integers, or differ in shape"
            )
            return []
        return sums_of_rows(present)

    def _vectors(
        self, label: str, tensors: Tensors, kinds: Sequence[Source], ranks: Ranks
    ) -> dict[Source, Tensor | None]:
        slot = _slot(self.subject, tensors, self.options.device)
        found: dict[Source, Tensor | None] = {}
        if "activations" in kinds:
            layer, chosen = self.head, self.options.activation_layer
            every = chain.from_iterable(self._batches(source, ranks) for source in self._distinct_sources())
            found["activations"] = mean_activation(slot, every, chosen or layer, of_input=chosen is None, ranks=ranks)
        if any(kind in GRADIENTS for kind in kinds):
            loss = None if self.options.loss is None else load_callable(self.options.loss)
            batches = self._batches(self.sources[label], ranks)
            gradients = mean_gradients(slot, batches, self.head, loss, ranks)
            found |= dict(zip(GRADIENTS, gradients, strict=True))
        return found

    def _distinct_sources(self) -> list[BatchSource]:
        return list({id(source): source for source in self.sources.values()}.values())

    @staticmethod
    def _batches(source: BatchSource, ranks: Ranks) -> Iterator[Batch]:
        return (batch for batch in source.batches(rank=ranks.rank, world=ranks.world) if batch.size)


def _names(number: int, kinds: Sequence[Source]) -> list[str]:
    """The names under which the vectors of a network are kept."""
    return [f"{number}-{kind}" for kind in kinds]


def _slot(subject: Subject, tensors: Tensors, device: str) -> ModelSlot:
    network = load_state(subject.factory.build_weightless(), tensors, dtype=torch.float32)
    return ModelSlot(network, resolve_device(device))


def _view(
    options: MetricsOptions,
    files: TaskVectorFiles,
    subject: Subject,
    slot: ModelSlot,
    maker: InputMaker,
    example: ExampleInput | None,
    *,
    labelled: bool,
) -> ModelView:
    return model_view(
        subject,
        slot.module,
        model_choice(options).spec,
        example=example,
        stated=bool(options.inputs) or options.input_file is not None,
        transform=options.transform,
        classes=Classes(lambda: slot, labelled=labelled and options.loss is None, used=labelled),
        folders=list(files.all),
        maker=maker,
    )


def _open(options: MetricsOptions, name: str, view: ModelView) -> BatchSource:
    reading = DataOptions(
        options.limit,
        options.seed,
        options.batch_size,
        options.workers,
        options.skip_corrupt,
        class_map=options.class_map,
        class_order=options.class_order,
    )
    return open_data(name, reading, view)


def _example(choice: ModelChoice, subject: Subject) -> ExampleInput | None:
    try:
        return example_for(choice, subject)
    except ModelError:  # then the data alone decide
        return None
