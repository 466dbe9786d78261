"""What can be said of a line without labels: how near each network's outputs are to those of the line's ends.

The loss is the squared distance of the outputs from those of both ends, relative to the size of the latter; where
outputs score classes, the accuracy is the share of samples that get the class that an end gives them. Both are means
over the two ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.errors import DataError
from rebasin_cli.execution.model_slot import ModelSlot, Network, disable_mha_fastpath

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
        networks: of the sweep; those that are checkpoints are the ends.
    """

    def __init__(self, slot: ModelSlot, networks: Sequence[Network]) -> None:
        self._slot = slot
        self._ends = {network.end: network for network in networks if network.end is not None}
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


def agreement_sums(output: Any, ends: Ends) -> dict[str, float]:
    """Sums of the measures over a batch, as `Measure.sums` names them."""
    found = _scores(output).double()
    apart = size = right = 0.0
    classes = found.dim() > 1 and found.shape[1] > 1
    for end in ends:
        theirs = end.to(found.device).double()
        apart += float((found - theirs).square().sum()) / 2
        size += float(theirs.square().sum()) / 2
        if classes:
            right += float((found.argmax(1) == theirs.argmax(1)).sum()) / 2
    sums = {"loss": apart, "loss_weight": size}
    if classes:
        counted = float(found[:, 0].numel())
        sums |= {"top1": right, "classified": counted, "top5": -counted}
    return sums
