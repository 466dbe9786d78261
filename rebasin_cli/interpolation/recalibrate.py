"""The statistics of every interpolant, measured in one pass over the data, and the adjustments that follow from them.

BatchNorm layers get the cumulative average of their batches' statistics; with `repair`, every other unit is brought to
the moments between the ends' (see `repair`). The ends themselves stay as they are: they are A and B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, RebasinError
from rebasin_cli.interpolation.adjustment import Adjustment
from rebasin_cli.interpolation.batch_norm import batch_norms, normalising_by_batch
from rebasin_cli.interpolation.body import Body, every_module_speaks
from rebasin_cli.interpolation.ledger import Ledger
from rebasin_cli.interpolation.moments import Averages, Moments, merged
from rebasin_cli.interpolation.passes import run_pass
from rebasin_cli.interpolation.places import Place, Places
from rebasin_cli.interpolation.repair import Seen, correcting, folded, observing
from rebasin_cli.interpolation.repair_sites import RepairSite, repair_sites


class Recalibration:
    """Measures statistics of all inner networks of a sweep.

    Args:
        body: where networks are put in place.
        source: shuffled batches; statistics of batches that hold one class only would be wrong.
        repair: also bring every unit that is not a BatchNorm's input to the moments between the ends'.

    Raises:
        DataError: there is no data.
    """

    def __init__(self, body: Body, source: BatchSource, places: Places, *, repair: bool, ranks: Ranks = ALONE) -> None:
        self._body, self._source, self._places, self._ranks = body, source, places, ranks
        self._norms = batch_norms(body.module)
        self.sites: tuple[RepairSite, ...] = self._find_sites() if repair else ()
        layout = {f"norm {name}": (2, _units(layer.running_mean)) for name, layer in self._norms.items()}
        layout |= {f"site {site.name}": (6, site.units) for site in self.sites}
        self._averages = Averages(layout)
        self._ends: dict[int, list[Seen]] = {}

    def run(self, ledger: Ledger, progress: Callable[[int, str], None] | None = None) -> dict[str, Adjustment]:
        """Bring the ledger to the end of the data and return each inner network's adjustment by name."""
        inner = self._places.inner
        if not self._averages.length:
            return {}
        with every_module_speaks():
            run_pass(
                self._source,
                [place.name for place in inner],
                self._step,
                ledger,
                self._ranks,
                prepare=self._observe_ends if self.sites else None,
                device=self._body.device,
                progress=progress,
            )
        return {place.name: self._adjustment(place, ledger.sums[place.name]) for place in inner}

    def _find_sites(self) -> tuple[RepairSite, ...]:
        """The same in every process, because the same first batch decides."""
        sites: tuple[RepairSite, ...] = ()
        error: RebasinError | None = None
        try:
            batch = next(iter(self._source.batches(0)), None)
            if batch is None or not batch.size:
                raise DataError(f"{self._source.description}: no samples to measure statistics on")
            end = self._places.ends[0]
            self._body.place(end.line, end.point)
            with every_module_speaks():
                sites = repair_sites(self._body, batch)
        except RebasinError as caught:
            error = caught
        self._ranks.agree(error)
        return sites

    def _observe_ends(self, batches: Sequence[Batch]) -> None:
        """The ends' moments on each batch of the chunk: the targets of what lies between them."""
        self._ends = {}
        for place in self._places.ends:
            self._body.place(place.line, place.point)
            assert place.end is not None
            self._ends[place.end] = []
            for batch in batches:
                seen: Seen = {}
                with observing(self._body.module, self.sites, seen):
                    self._ends[place.end].append(_in_pieces(self._body, batch, {}, seen)[1])

    def _step(self, name: str) -> Callable[[Sequence[Batch]], Tensor]:
        place = self._places.by_name[name]

        def over(batches: Sequence[Batch]) -> Tensor:
            self._body.place(place.line, place.point)
            return self._averages.vector([self._measured(place, batch, i) for i, batch in enumerate(batches)])

        return over

    def _measured(self, place: Place, batch: Batch, number: int) -> tuple[float, Mapping[str, Sequence[Tensor]]]:
        norms: dict[str, list[Moments]] = {}
        seen: Seen = {}
        with ExitStack() as stack:
            stack.enter_context(normalising_by_batch(self._norms, norms))
            a: Seen = {}
            b: Seen = {}
            if self.sites:
                a, b = (self._ends[end][number] for end in place.between)
                stack.enter_context(correcting(self._body.module, self.sites, seen, a, b, place.point.lam))
            norms, seen = _in_pieces(self._body, batch, norms, seen)
        rows: dict[str, Sequence[Tensor]] = {}
        for name, found in norms.items():
            means = torch.stack([one.mean for one in found]).mean(0)
            rows[f"norm {name}"] = (means, torch.stack([one.unbiased for one in found]).mean(0))
        for name, one in seen.items():
            row = (one, a[name], b[name])
            rows[f"site {name}"] = [value for each in row for value in (each.mean, each.variance)]
        return float(batch.size), rows

    def _adjustment(self, place: Place, sums: Tensor) -> Adjustment:
        means = self._averages.means(sums)
        replaced: dict[str, Tensor] = {}
        for name in self._norms:
            rows = means.get(f"norm {name}")
            if rows is not None:
                replaced[f"{name}.running_mean"], replaced[f"{name}.running_var"] = rows[0], rows[1]
        rows_by_site = {site.name: means[f"site {site.name}"] for site in self.sites if f"site {site.name}" in means}
        return Adjustment(replaced, folded(self.sites, rows_by_site, place.point.lam))


def _in_pieces(
    body: Body, batch: Batch, norms: dict[str, list[Moments]], seen: Seen
) -> tuple[dict[str, list[Moments]], Seen]:
    """Run the batch; what the hooks put into `norms` and `seen` for each piece of it, put together.

    A batch comes in pieces where it does not fit in memory as a whole. What was seen before that showed is forgotten.
    """

    def forget(*_: object) -> None:
        norms.clear()
        seen.clear()

    handle = body.module.register_forward_pre_hook(forget)
    try:
        pieces = [(dict(norms), dict(seen)) for _ in body.outputs(batch)]
    finally:
        handle.remove()
    if not pieces:
        return {}, {}
    calls = {name: zip(*(piece[0][name] for piece in pieces), strict=True) for name in pieces[0][0]}
    together = {name: [merged(call) for call in found] for name, found in calls.items()}
    return together, {name: merged([piece[1][name] for piece in pieces]) for name in pieces[0][1]}


def _units(running_mean: object) -> int:
    assert isinstance(running_mean, Tensor)
    return running_mean.numel()
