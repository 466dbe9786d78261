"""Loss, top-1 and top-5 accuracy of every network of a sweep, and the user's own metric, from one pass over the data.

Rises above the line between the ends are paired over samples (see `scores`). The scores of the ends are kept for one
chunk of the data at a time: every network is run on the same batches in memory, so the samples are paired whatever
order a loader has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError
from rebasin_cli.execution.agreement import EndOutputs, Ends, agreement
from rebasin_cli.execution.dataset_pass import RunningSums, run_pass
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot, Network
from rebasin_cli.execution.scores import FIELDS, NO_LABELS, NO_UNITS, PerUnit, Scores, by_sample, label_counts
from rebasin_cli.execution.targets import Fit, fitted, fitted_or_refused
from rebasin_cli.execution.user_score import Score, units_of


@dataclass(frozen=True, slots=True)
class Measure:
    """Cross-entropy and accuracies; the user's `loss` replaces cross-entropy, and `metric` is an additional measure."""

    loss: Score | None = None
    metric: Score | None = None

    def sums(self, output: Any, batch: Batch) -> Tensor:
        """The vector of `FIELDS` for the outputs of one batch; see `scores`."""
        return self.scores(output, batch).vector()

    def scores(self, output: Any, batch: Batch) -> Scores:
        """What the outputs of one batch score.

        Raises:
            DataError: no loss was given and cross-entropy does not apply to these outputs and targets, or the user's
            function fails.
        """
        found = {"samples": float(batch.size), "skipped": float(batch.skipped)}
        if isinstance(batch.target, Ends):
            return agreement(output, batch.target, found)
        fit = fitted_or_refused(output, batch) if self.loss is None else _fit_if_any(output, batch)
        loss, hits, chance, labels, mean = NO_UNITS, NO_UNITS, 0.0, NO_LABELS, False
        if fit is not None:
            hits = _count_hits(fit, found)
            chance = found["classified"] / fit.scores.shape[1]
            labels = label_counts(fit.target[fit.target != IGNORED])
        if self.loss is not None:
            loss, mean = units_of(self.loss, output, batch, "--loss")
        elif fit is not None:
            each = F.cross_entropy(fit.scores.float(), fit.target, reduction="none", ignore_index=IGNORED)
            loss = PerUnit(by_sample(each), hits.weights)
        if self.metric is not None:
            found["metric"], found["metric_weight"] = units_of(self.metric, output, batch, "--metric")[0].totals()
        return Scores.of(found, loss, hits, chance=chance, labels=labels, batch_mean=mean)


def _fit_if_any(output: Any, batch: Batch) -> Fit | None:
    """Class numbers for accuracies, where the user's loss decides what targets are."""
    try:
        return fitted(output, batch)
    except DataError:
        return None


def _count_hits(fit: Fit, found: dict[str, float]) -> PerUnit:
    """Sum up what is classified, and return the hits of each sample with the number of its elements."""
    counted = fit.target != IGNORED
    known = counted & ~fit.scores.isnan().any(1)
    right = (fit.scores.argmax(1) == fit.target) & known
    found["classified"], found["top1"] = float(counted.sum()), float(right.sum())
    if fit.scores.shape[1] > 5:
        five = fit.scores.topk(5, dim=1).indices
        found["top5"] = float(((five == fit.target.unsqueeze(1)).any(1) & known).sum())
    else:
        found["top5"] = -found["classified"]  # meaningless for five classes or fewer; negative means none
    return PerUnit(by_sample(right), by_sample(counted))


def evaluate(
    slot: ModelSlot,
    source: BatchSource,
    networks: Sequence[Network],
    measure: Measure,
    running: RunningSums,
    *,
    adjustments: Mapping[str, Adjustment] | None = None,
    unlabelled: bool = False,
    ranks: Ranks = ALONE,
    progress: Callable[[int, str], None] | None = None,
) -> Mapping[str, Tensor]:
    """Extend the running sums to the end of the data and return the vector of `FIELDS` for each network by name.

    Args:
        adjustments: changes of interpolated networks, by name; see `recalibration`.
        unlabelled: compare the outputs with those of the ends, for want of labels; see `agreement`.

    Raises:
        DataError: a batch cannot be read or does not fit the model.
    """
    by_name = {network.name: network for network in networks}
    changed = adjustments or {}
    ends = _ends_of(networks)
    at_ends = {name for pair in ends.values() for name in pair}
    beside = EndOutputs(slot, networks) if unlabelled else None
    kept: dict[str, list[Scores]] = {}

    def prepare(batches: Sequence[Batch]) -> None:
        kept.clear()
        if beside is not None:
            beside.observe(batches)

    def scores(name: str, batches: Sequence[Batch]) -> list[Scores]:
        """On each batch of the chunk; those of the ends are kept until the next chunk."""
        if name not in kept:
            if batches:
                slot.load(by_name[name], changed.get(name, NO_ADJUSTMENT))
            if beside is not None:
                batches = [beside.beside(by_name[name], batch) for batch in batches]
            found = [_scores(slot, measure, batch) for batch in batches]
            if name not in at_ends:
                return found
            kept[name] = found
        return kept[name]

    def step(name: str, batches: Sequence[Batch]) -> Tensor:
        # A pass that continues in the middle of a chunk has the ends' sums, but not their losses: they are run again.
        a, b = [scores(end, batches) for end in ends[name]] if name in ends else (None, None)
        total = torch.zeros(len(FIELDS), dtype=torch.float64)
        for number, one in enumerate(scores(name, batches)):
            pair = None if a is None or b is None else (a[number], b[number])
            total += one.vector(pair, by_name[name].lam)
        return total

    run_pass(source, list(by_name), step, running, ranks, prepare=prepare, device=slot.device, progress=progress)
    return running.sums


def _ends_of(networks: Sequence[Network]) -> dict[str, tuple[str, str]]:
    """The names of the two ends of each interpolated network: as treated like it, where they were."""
    ends: dict[int, str] = {}
    for network in networks:
        if network.end is not None and (network.adjusted or network.end not in ends):
            ends[network.end] = network.name
    pairs = {network.name: network.between for network in networks if network.end is None}
    return {name: (ends[a], ends[b]) for name, (a, b) in pairs.items() if a in ends and b in ends}


def _scores(slot: ModelSlot, measure: Measure, batch: Batch) -> Scores:
    """Of the loaded network."""
    pieces = [measure.scores(output, piece) for piece, output in slot.outputs(batch)]
    return Scores.joined(pieces) if pieces else Scores.of({"skipped": float(batch.skipped)}, NO_UNITS, NO_UNITS)
