"""Loss and accuracies of every network of a sweep, from one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.execution.measure import FIELDS, Measure
from rebasin_cli.interpolation.adjustment import NOTHING, Adjustment
from rebasin_cli.interpolation.body import Body
from rebasin_cli.interpolation.ledger import Ledger
from rebasin_cli.interpolation.passes import run_pass
from rebasin_cli.interpolation.places import Places


def evaluate(
    body: Body,
    source: BatchSource,
    places: Places,
    measure: Measure,
    ledger: Ledger,
    *,
    adjustments: Mapping[str, Adjustment] | None = None,
    ranks: Ranks = ALONE,
    progress: Callable[[int, str], None] | None = None,
) -> Mapping[str, Tensor]:
    """Bring the ledger to the end of the data and return the sums (see `measure.FIELDS`) by network.

    Args:
        adjustments: what is changed on an interpolant after blending, by network; see `recalibrate`.

    Raises:
        DataError: a batch cannot be read or does not fit the model.
    """
    by_name = places.by_name
    changed = adjustments or {}

    def step(name: str) -> Callable[[Sequence[Batch]], Tensor]:
        place = by_name[name]

        def over(batches: Sequence[Batch]) -> Tensor:
            total = torch.zeros(len(FIELDS), dtype=torch.float64)
            if batches:
                body.place(place.line, place.point, changed.get(name, NOTHING))
            for batch in batches:
                if not batch.size:
                    total[FIELDS.index("skipped")] += batch.skipped
                for piece, output in body.outputs(batch):
                    total += measure.sums(output, piece)
            return total

        return over

    names = [place.name for place in places.all]
    run_pass(source, names, step, ledger, ranks, device=body.device, progress=progress)
    return ledger.sums
