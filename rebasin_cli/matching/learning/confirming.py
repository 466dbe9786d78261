"""Whether what was learned without data is believed.

Inputs that networks make themselves are not the data that they are used on, and learning on them can ruin a midpoint
while its own measure improves. So its result replaces that of the weights only if all of these hold:

- on held-back inputs of its own kind the midpoint's loss is lower than that of weight matching, by more than `ERRORS`
  standard errors over pieces of `PIECE` samples;
- so it is on generated inputs of another kind, which nothing was learned from;
- it has kept at least `KEPT` of weight matching's similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.errors import RebasinError
from rebasin_cli.execution.data_inputs import PairData
from rebasin_cli.matching.learning.batches import divided
from rebasin_cli.matching.learning.judging import Judge

ERRORS = 2.0
KEPT = 0.7
PIECE = 16
WORD = "generated"
OTHERS = ("leaves", "noise")
"""Kinds of generated inputs that another kind is confirmed on, the more natural one first."""


def lower(after: Tensor, before: Tensor) -> bool:
    """Whether losses by piece, float64 (n,), are lower by more than chance explains."""
    fall = before - after
    if len(fall) < 2:
        return False
    error = float(fall.std()) / len(fall) ** 0.5
    return bool(float(fall.mean()) > ERRORS * error)


def pieces(batches: Sequence[Batch], fits: Callable[[Batch], bool]) -> list[Batch]:
    """The same samples in small batches, so that their losses have a standard error."""
    found = [
        batch.rows(start, min(start + PIECE, batch.size)) for batch in batches for start in range(0, batch.size, PIECE)
    ]
    return [piece for piece in found if fits(piece)]


def other_inputs(room: PairData, kind: str, fits: Callable[[Batch], bool]) -> tuple[str, list[Batch]] | None:
    """Inputs of another kind than those that were learned on, and its name; None where the model takes no other."""
    for other in OTHERS:
        if other == kind:
            continue
        name = f"{WORD}:{other}"
        try:
            source = room.renamed(name).open(shuffle=True)
            return name, divided(source, fits, hold=False).held
        except RebasinError:
            continue
    return None


def doubt(
    learned: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    judges: Mapping[str, Judge],
    similarity: tuple[float, float],
) -> str | None:
    """Why a midpoint that was learned without data is not believed; None where it is.

    Args:
        learned, weights: the midpoints.
        judges: by the name of the inputs, at least two kinds.
        similarity: of what was learned, and of weight matching.
    """
    if similarity[0] < KEPT * similarity[1]:
        return f"it keeps less than {100 * KEPT:.0f} % of the similarity"
    if len(judges) < 2:
        return "there are no generated inputs of another kind to confirm it on"
    for name, judge in judges.items():
        with torch.no_grad():
            before, after = judge.losses(weights), judge.losses(learned)
        if not lower(after, before):
            return f"on {name} its midpoint is not better than that of the weights"
    return None
