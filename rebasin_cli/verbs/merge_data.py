"""The data of a merge: what its networks are evaluated on, and what the statistics of the result are measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from rebasin_cli.data import BatchSource, DataOptions, open_data
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.data.source import ModelView
from rebasin_cli.errors import DataError, ModelError
from rebasin_cli.execution.data_inputs import Classes, has_no_labels, model_view
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.execution.generated.maker import InputMaker, maker_of
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot, Network
from rebasin_cli.execution.recalibration import Recalibration, batch_norms
from rebasin_cli.execution.scores import Values, values
from rebasin_cli.execution.subject import ModelChoice, Subject, example_for
from rebasin_cli.execution.weights import Weights
from rebasin_cli.merging.merged import Given, Merged
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.generated_inputs import check_saving, statistics_count
from rebasin_cli.verbs.merge import MergeOptions


class MergeData:
    """Evaluates networks and measures statistics, where there are data for that.

    Args:
        networks: the weights of the checkpoints: of the first, to see what the model does with the data, and of all, to
            make inputs without data.

    Attributes:
        evaluation, statistics: None where `--data`, or `--recalibrate`, is not given.
        norms: number of layers with running statistics.
        warnings: what was found when the data were opened.

    Raises:
        DataError: the data cannot be read, or do not fit the model.
    """

    def __init__(
        self,
        options: MergeOptions,
        choice: ModelChoice,
        subject: Subject,
        device: torch.device,
        ranks: Ranks,
        progress: Progress,
        networks: Sequence[Weights],
    ) -> None:
        self.options, self.choice, self.subject = options, choice, subject
        self.device, self.ranks, self.progress, self._networks = device, ranks, progress, networks
        self.norms = len(batch_norms(subject.module))
        self.warnings: list[str] = []
        self.evaluation = None if options.data is None else open_data(options.data, self._reading, self._view)
        self.statistics = self._open_statistics()
        self.unlabelled = False
        check_saving(self.maker, options.save_generated)
        if self.evaluation is not None:
            progress.note(f"data: {self.evaluation.description}")
            self.warnings += self.evaluation.notes
            self.unlabelled = self.measure.loss is None and has_no_labels(self.evaluation)
        if self.unlabelled and options.method == "greedy-soup":
            raise DataError(
                f"{options.data}: --method greedy-soup needs labels, and the data have none",
                path=options.data,
                hint="give labels, or --loss file.py:function",
            )

    @cached_property
    def slot(self) -> ModelSlot:
        """The module that the networks are run in."""
        return ModelSlot(self.subject.factory.build(), self.device)

    @cached_property
    def measure(self) -> Measure:
        loss = self.options.loss
        return Measure(None if loss is None else load_callable(loss), None)

    @property
    def _reading(self) -> DataOptions:
        options = self.options
        return DataOptions(
            options.limit,
            options.seed,
            options.batch_size,
            options.workers,
            options.skip_corrupt,
            class_map=options.class_map,
            class_order=options.class_order,
        )

    @cached_property
    def _view(self) -> ModelView:
        def loaded() -> ModelSlot:
            self.slot.load(Given(0, self._networks[0]))
            return self.slot

        return model_view(
            self.subject,
            self.slot.module,
            self.choice.spec,
            example=self._example(),
            stated=bool(self.choice.inputs) or self.choice.input_file is not None,
            transform=self.options.transform,
            classes=Classes(loaded, labelled=self.options.loss is None),
            folders=self.options.checkpoints,
            maker=self.maker,
        )

    @cached_property
    def maker(self) -> InputMaker:
        """Makes inputs without data, from all checkpoints."""
        return maker_of(
            self.subject,
            self._networks,
            self._example(),
            self.device,
            cache=self.options.cache,
            progress=self.progress,
        )

    def _example(self) -> ExampleInput | None:
        try:
            return example_for(self.choice, self.subject)
        except ModelError:  # then the data alone decide
            return None

    def _open_statistics(self) -> BatchSource | None:
        options = self.options
        if options.recalibrate is None:
            if self.norms:
                layers = "1 layer" if self.norms == 1 else f"{self.norms} layers"
                self.warnings.append(
                    f"running statistics ({layers}) were averaged, and are invalid for merged weights: "
                    "re-estimate them with --recalibrate TRAINING_DATA, or without data with --recalibrate generated"
                )
            return None
        if not self.norms and not options.repair:
            self.warnings.append("--recalibrate has no effect: no layer of the model has running statistics")
            return None
        count = options.recalibrate_limit
        if is_generated(options.recalibrate):
            count = statistics_count(options.limit, count, MergeOptions.recalibrate_limit, options.data)
        shuffled = replace(self._reading, limit=count, shuffle=True)
        return open_data(options.recalibrate, shuffled, self._view)

    def adjustment(self, ends: Sequence[Given], merged: Merged) -> Adjustment:
        """The merged network's statistics, and its corrections by REPAIR, measured on the data for them."""
        if self.statistics is None:
            return NO_ADJUSTMENT
        self.progress.phase("measuring statistics")
        networks: list[Network] = [*ends, merged]
        running = RunningSums()
        found = Recalibration(
            self.slot,
            self.statistics,
            networks,
            repair=self.options.repair,
            corrected=self.statistics.generated is not None,
            ranks=self.ranks,
        ).run(running)
        return found.get(merged.name, NO_ADJUSTMENT)

    def points(
        self, networks: Sequence[Network], adjustment: Adjustment, told: Callable[[int, str], None] | None = None
    ) -> dict[str, Values]:
        """What the networks score on the data, by their names, in one pass.

        Args:
            adjustment: of the merged network.
        """
        assert self.evaluation is not None
        sums = evaluate(
            self.slot,
            self.evaluation,
            networks,
            self.measure,
            RunningSums(),
            adjustments={Merged.name: adjustment},
            unlabelled=self.unlabelled,
            ranks=self.ranks,
            progress=told,
        )
        return {name: values(found) for name, found in sums.items()}


class SoupCandidates:
    """The aligned networks, for a method that chooses among them by the data.

    Args:
        mix: the mean of the networks with these shares.
    """

    def __init__(self, data: MergeData, ends: Sequence[Given], mix: Callable[[Sequence[float]], Merged]) -> None:
        self._data, self._ends, self._mix = data, ends, mix

    @property
    def count(self) -> int:
        return len(self._ends)

    def score(self, shares: Sequence[float]) -> float:
        """The accuracy, or minus the loss where there is none; a loss that is not finite is worst."""
        alone = [number for number, share in enumerate(shares) if share]
        adjustment, network = NO_ADJUSTMENT, self._mix(shares)
        if len(alone) > 1:
            adjustment = self._data.adjustment(self._ends, network)
        self._data.progress.phase(f"evaluating a soup of {len(alone)}")
        found = self._data.points([network], adjustment)[network.name]
        if found.accuracy is not None:
            return found.accuracy
        return float("-inf") if found.loss is None else -found.loss
