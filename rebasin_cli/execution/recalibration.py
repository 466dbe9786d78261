"""The statistics of every interpolated network, measured in one pass over the data, and its adjustments.

The statistics of an interpolated network are not the interpolation of the checkpoints' (Jordan et al. 2023, "variance
collapse"). BatchNorm layers get the cumulative average of their batches' statistics; with `repair`, every other unit
gets moments between those of the two checkpoints (see `repair`). A sweep holds each checkpoint twice, as it was loaded
and treated like the networks between: a difference between those and the checkpoints must not be that of two
treatments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, RebasinError
from rebasin_cli.execution.dataset_pass import RunningSums, run_pass
from rebasin_cli.execution.model_slot import Adjustment, ModelSlot, Network, disable_mha_fastpath
from rebasin_cli.execution.moments import Averages, Moments, instance_moments, merged, moments
from rebasin_cli.execution.repair import RepairSite, SiteMoments, correcting, folded, observing, repair_sites

LARGEST_RATIO = 64.0
"""Of variances on the data of the training and on other inputs: units that hardly vary on either must not decide."""
NOTHING = 1e-8
"""Added to variances before they are divided."""
NormMoments = dict[str, list[Moments]]
"""By the name of a BatchNorm layer, the moments of its input in each of its calls."""


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that normalise by running statistics, by module name.

    BatchNorm of every kind (synchronised, frozen, fused), InstanceNorm that tracks statistics, and the user's own
    layers with a `running_mean` and a `running_var` of one number per unit.
    """
    return {name: child for name, child in module.named_modules() if _has_statistics(child)}


def _has_statistics(module: nn.Module) -> bool:
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    return mean.dim() == 1 and mean.shape == variance.shape and mean.is_floating_point()


def _input_moments(layer: nn.Module, units: int, inputs: tuple[object, ...]) -> Moments | None:
    """Those that the layer's running statistics estimate; None for an input whose units cannot be found."""
    values = inputs[0] if inputs else None
    if not isinstance(values, Tensor) or values.dim() < 2:
        return None
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return instance_moments(values)
    axis = next((axis for axis in (1, -1) if values.shape[axis] == units), None)
    return None if axis is None else moments(values, axis)


@contextmanager
def normalising_by_batch(layers: Mapping[str, nn.Module], seen: NormMoments) -> Iterator[None]:
    """While active, every layer normalises by its input's own statistics, which are appended to `seen[name]`.

    So the layers behind it get the inputs that they will have after recalibration. The layers stay in eval mode, and
    the batch's statistics replace the running ones. This works for every kind of BatchNorm, and nothing else of
    training mode (dropout, synchronisation) is switched on.
    """

    def before(name: str, layer: nn.Module, inputs: tuple[object, ...]) -> None:
        running_mean, running_var = layer.running_mean, layer.running_var
        assert isinstance(running_mean, Tensor)
        assert isinstance(running_var, Tensor)
        found = _input_moments(layer, running_mean.numel(), inputs)
        if found is None:
            return
        running_mean.copy_(found.mean)
        running_var.copy_(found.variance)
        seen.setdefault(name, []).append(found)

    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: before(name, layer, inputs))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recalibration:
    """Measures the statistics of all interpolated networks of a sweep.

    Args:
        slot: where networks are loaded.
        source: shuffled batches; statistics of batches that hold one class only would be wrong.
        networks: all networks of the sweep, checkpoints included; those that are `adjusted` are measured.
        repair: also give every unit that is not a BatchNorm's input the moments between the checkpoints'.
        corrected: the inputs are not like those of the training: what they make of the checkpoints' own statistics is
            taken out of the measured ones; see `_corrected`.

    Raises:
        DataError: there is no data.
    """

    def __init__(
        self,
        slot: ModelSlot,
        source: BatchSource,
        networks: Sequence[Network],
        *,
        repair: bool,
        corrected: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self._slot, self._source, self._ranks = slot, source, ranks
        self._ends = {one.end: one for one in networks if one.end is not None and not one.adjusted}
        self._inner = {one.name: one for one in networks if one.adjusted}
        self._known = {one.name: one for one in self._ends.values()} if corrected else {}
        self._norms = batch_norms(slot.module)
        self._sources = max((len(one.shares) for one in self._inner.values()), default=0)
        self.sites: tuple[RepairSite, ...] = self._find_sites() if repair else ()
        layout = {f"norm {name}": (2, _units(layer.running_mean)) for name, layer in self._norms.items()}
        layout |= {f"site {site.name}": (2 + 2 * self._sources, site.units) for site in self.sites}
        self._averages = Averages(layout)
        self._end_moments: dict[int, list[SiteMoments]] = {}

    def run(self, running: RunningSums, progress: Callable[[int, str], None] | None = None) -> dict[str, Adjustment]:
        """Extend the running sums to the end of the data; return the adjustments of the adjusted networks by name."""
        if not self._averages.length:
            return {}
        with disable_mha_fastpath():
            run_pass(
                self._source,
                [*self._known, *self._inner],
                self._step,
                running,
                self._ranks,
                prepare=self._observe_ends if self.sites else None,
                device=self._slot.device,
                progress=progress,
            )
        own = {one.end: self._averages.means(running.sums[name]) for name, one in self._known.items()}
        return {name: self._adjustment(network, running.sums[name], own) for name, network in self._inner.items()}

    def _find_sites(self) -> tuple[RepairSite, ...]:
        """The same in every process, because each of them looks at the first batch."""
        sites: tuple[RepairSite, ...] = ()
        error: RebasinError | None = None
        try:
            batch = next(iter(self._source.batches(0)), None)
            if batch is None or not batch.size:
                raise DataError(f"{self._source.description}: no samples to measure statistics on")
            self._slot.load(next(iter(self._ends.values())))
            with disable_mha_fastpath():
                sites = repair_sites(self._slot, batch, self._norms.values())
        except RebasinError as caught:
            error = caught
        self._ranks.agree(error)
        return sites

    def _observe_ends(self, batches: Sequence[Batch]) -> None:
        """Measure the checkpoints' moments on each batch of the chunk: they give the targets of REPAIR."""
        self._end_moments = {}
        for end, network in self._ends.items():
            self._slot.load(network)
            self._end_moments[end] = []
            for batch in batches:
                seen: SiteMoments = {}
                with observing(self._slot.module, self.sites, seen):
                    self._end_moments[end].append(_run_in_pieces(self._slot, batch, {}, seen)[1])

    def _step(self, name: str, batches: Sequence[Batch]) -> Tensor:
        network = self._known.get(name) or self._inner[name]
        self._slot.load(network)
        return self._averages.vector([self._measured(network, batch, i) for i, batch in enumerate(batches)])

    def _measured(self, network: Network, batch: Batch, number: int) -> tuple[float, Mapping[str, Sequence[Tensor]]]:
        """The batch's weight and rows, as `Averages.vector` takes them; `number` is its place in the chunk."""
        norms: NormMoments = {}
        seen: SiteMoments = {}
        sources: list[tuple[SiteMoments, float]] = []
        with ExitStack() as stack:
            stack.enter_context(normalising_by_batch(self._norms, norms))
            if self.sites and network.name in self._inner:
                sources = [(self._end_moments[end][number], share) for end, share in network.shares]
                stack.enter_context(correcting(self._slot.module, self.sites, seen, sources))
            norms, seen = _run_in_pieces(self._slot, batch, norms, seen)
        rows: dict[str, Sequence[Tensor]] = {}
        for name, found in norms.items():
            means = torch.stack([one.mean for one in found]).mean(0)
            rows[f"norm {name}"] = (means, torch.stack([one.unbiased for one in found]).mean(0))
        for name, one in seen.items():
            row = (one, *(source[name] for source, _ in sources))
            rows[f"site {name}"] = [value for each in row for value in (each.mean, each.variance)]
        return float(batch.size), rows

    def _adjustment(self, network: Network, sums: Tensor, own: Mapping[int | None, Mapping[str, Tensor]]) -> Adjustment:
        """The network's statistics, and REPAIR's corrections; `own` has what was measured of the checkpoints."""
        means = self._averages.means(sums)
        replaced: dict[str, Tensor] = {}
        for name in self._norms:
            rows = means.get(f"norm {name}")
            if rows is not None:
                mean, variance = self._corrected(name, rows, network, own) if own else (rows[0], rows[1])
                replaced[f"{name}.running_mean"], replaced[f"{name}.running_var"] = mean, variance
        rows_by_site = {site.name: means[f"site {site.name}"] for site in self.sites if f"site {site.name}" in means}
        return Adjustment(replaced, folded(self.sites, rows_by_site, [share for _, share in network.shares]))

    def _corrected(
        self, name: str, rows: Tensor, network: Network, own: Mapping[int | None, Mapping[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of a layer's input as the data of the training would give them.

        The checkpoints have kept theirs, so the error that the inputs make is known for them: a difference of means and
        a ratio of variances. The network between is taken to have the errors of the checkpoints that it is made of,
        by their shares (a control variate: the inputs tell how the networks differ, and not the level).
        """
        mean, variance = rows[0].clone(), rows[1].clone()
        for end, share in network.shares:
            seen = own[end].get(f"norm {name}")
            if seen is None:
                continue
            kept = [self._ends[end].tensor(f"{name}.{key}").double().cpu() for key in ("running_mean", "running_var")]
            ratio = ((kept[1] + NOTHING) / (seen[1] + NOTHING)).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
            mean += share * (kept[0] - seen[0])
            variance *= ratio**share
        return mean, variance


def _run_in_pieces(
    slot: ModelSlot, batch: Batch, norms: NormMoments, seen: SiteMoments
) -> tuple[NormMoments, SiteMoments]:
    """Run the batch and merge what the hooks put into `norms` and `seen` for each of its pieces.

    A batch is split into pieces where it does not fit in memory. Moments of an attempt that failed are dropped.
    """

    def forget(*_: object) -> None:
        norms.clear()
        seen.clear()

    handle = slot.module.register_forward_pre_hook(forget)
    try:
        pieces = [(dict(norms), dict(seen)) for _ in slot.outputs(batch)]
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
