"""What can be said of a line without labels: how near each network's outputs are to those of the line's ends.

The loss is the squared distance of the outputs from those of both ends, relative to the size of the latter; where
outputs score classes, the accuracy is the share of samples that get the class that an end gives them. Both are means
over the two ends, and those are the checkpoints as they were loaded: their own outputs are what there is to keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.errors import DataError
from rebasin_cli.execution.model_slot import ModelSlot, Network, disable_mha_fastpath
from rebasin_cli.execution.scores import NO_UNITS, PerUnit, Scores, by_sample

DISTANCE = "distance from the outputs of the ends (no labels)"
AGREEMENT = "agreement with the ends (no labels)"


class Ends(NamedTuple):
    """The outputs of the two networks between which a network lies; they stand where the target of a batch would."""

    first: Tensor
    second: Tensor


class EndOutputs:
    """The outputs of all ends on the batches of a chunk.

    Args:
        slot: where networks are loaded.
        networks: of the sweep; those that are checkpoints, and whose statistics are their own, are the ends.
    """

    def __init__(self, slot: ModelSlot, networks: Sequence[Network]) -> None:
        self._slot = slot
        self._ends = {one.end: one for one in networks if one.end is not None and not one.adjusted}
        self._outputs: dict[tuple[int, int], Tensor] = {}

    def observe(self, batches: Sequence[Batch]) -> None:
        """Run every end on the batches, in place of those of the last chunk."""
        self._outputs.clear()
        for end, network in self._ends.items():
            self._slot.load(network)
            with disable_mha_fastpath():
                for batch in batches:
                    if batch.size:
                        outputs = [_scores(output) for _, output in self._slot.outputs(batch)]
                        self._outputs[end, batch.index] = torch.cat(outputs)

    def beside(self, network: Network, batch: Batch) -> Batch:
        """The batch with the outputs of the network's ends as its target."""
        if not batch.size:
            return batch
        first, second = (self._outputs[end, batch.index] for end in network.between)
        return replace(batch, target=Ends(first, second))


def _scores(output: Any) -> Tensor:
    found = logits_of(output)
    if found is None or not found.is_floating_point():
        raise DataError(
            "the data have no labels, and the model gives no tensor of numbers to compare with that of the ends",
            hint="give labels, or pass --loss file.py:function",
            slug="loss",
        )
    return found.float()


def agreement(output: Any, ends: Ends, found: Mapping[str, float]) -> Scores:
    """What outputs score beside those of the ends: the distance as the loss, the agreement as hits, of each sample.

    Args:
        found: further measures of the batch.
    """
    ours = _scores(output).double()
    theirs = [end.to(ours.device).double() for end in ends]
    distance = PerUnit(_mean((ours - end).square() for end in theirs), _mean(end.square() for end in theirs))
    if ours.dim() < 2 or ours.shape[1] < 2:
        return Scores.of(found, distance, NO_UNITS)
    same = [ours.argmax(1) == end.argmax(1) for end in theirs]
    hits = PerUnit(_mean(same), by_sample(torch.ones_like(same[0])))
    right, counted = hits.totals()
    return Scores.of({**found, "top1": right, "classified": counted, "top5": -counted}, distance, hits)


def _mean(beside_ends: Iterable[Tensor]) -> Tensor:
    """The sums of each sample's elements, as a mean over the ends."""
    return torch.stack([by_sample(one) for one in beside_ends]).mean(0)
