"""What the midpoints of A and of B in different orders are worth on the same samples.

As `rebasin interpolate --lam 0.5 --recalibrate` has it: running statistics are measured on other samples than those
that judge, and without labels the outputs are compared with those of the checkpoints (see `agreement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.data import BatchSource
from rebasin_cli.execution.agreement import DISTANCE
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.execution.midpoint_loss import CROSS_ENTROPY, LOSS
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot, Network
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.recalibration import Recalibration
from rebasin_cli.execution.scores import Values, values
from rebasin_cli.execution.spectral_norm import singular_vectors, spectral_sites
from rebasin_cli.execution.targets import fitted
from rebasin_cli.execution.user_score import Score
from rebasin_cli.permutation import Permutations, gathers, permute_tensor
from rebasin_cli.spec import PermutationSpec


class MidpointJudge:
    """Scores midpoints on the same samples.

    Memory holds one network beside the checkpoints.

    Args:
        pair, spec: A, B, and the groups.
        held: the samples that judge.
        others: samples that running statistics are measured on.
        device: where networks run.
        loss: the user's, in place of cross-entropy.

    Attributes:
        by: what is measured, in words.

    Raises:
        DataError: the data do not fit the model.
    """

    def __init__(
        self,
        pair: Pair,
        spec: PermutationSpec,
        held: BatchSource,
        others: BatchSource,
        device: torch.device,
        loss: Score | None = None,
    ) -> None:
        self._pair, self._spec, self._held, self._others = pair, spec, held, others
        self._slot = ModelSlot(pair.subject.factory.build(), device)
        self._measure = Measure(loss)
        self._ends = (_End("a", 0, pair.a), _End("b", 1, pair.b))
        self._unlabelled = loss is None and not self._has_labels()
        self.by = LOSS if loss is not None else DISTANCE if self._unlabelled else CROSS_ENTROPY

    def _has_labels(self) -> bool:
        """Whether the targets are class numbers that fit the outputs."""
        self._slot.load(self._ends[0])
        batch = next(iter(self._held.batches()))
        return any(fitted(output, piece) is not None for piece, output in self._slot.outputs(batch))

    def midpoint(self, permutations: Permutations) -> Values:
        """The midpoint of A and B permuted, with its own running statistics."""
        network = _Midpoint(self._pair, self._spec, permutations)
        found = Recalibration(self._slot, self._others, [*self._ends, network], repair=False).run(RunningSums())
        return self._score(network, found.get(network.name, NO_ADJUSTMENT))

    def ends(self) -> tuple[Values, ...]:
        """A and B as they are; none without labels, because then they are what midpoints are compared with."""
        return () if self._unlabelled else tuple(self._score(end, NO_ADJUSTMENT) for end in self._ends)

    def _score(self, network: Network, adjustment: Adjustment) -> Values:
        networks = [*self._ends, network] if self._unlabelled else [network]
        changed = {network.name: adjustment}
        sums = evaluate(
            self._slot,
            self._held,
            networks,
            self._measure,
            RunningSums(),
            adjustments=changed,
            unlabelled=self._unlabelled,
        )
        return values(sums[network.name])


@dataclass(frozen=True)
class _End:
    """A checkpoint as a `Network`."""

    name: str
    end: int
    weights: Mapping[str, Tensor]
    adjusted: bool = False

    @property
    def keys(self) -> Sequence[str]:
        return tuple(self.weights)

    @property
    def between(self) -> tuple[int, int]:
        return (0, 1)

    @property
    def lam(self) -> float:
        return float(self.end)

    @property
    def shares(self) -> Sequence[tuple[int, float]]:
        return ((self.end, 1.0),)

    def tensor(self, key: str, device: torch.device | None = None) -> Tensor:
        return self.weights[key].to(device)


class _Midpoint:
    """`(A + B permuted) / 2` as a `Network`; integers are A's, the vectors of spectral norms those of its weights."""

    name, end, between, lam, adjusted = "midpoint", None, (0, 1), 0.5, True
    shares = ((0, 0.5), (1, 0.5))

    def __init__(self, pair: Pair, spec: PermutationSpec, permutations: Permutations) -> None:
        self._a, self._b, self._spec, self._permutations = pair.a, pair.b, spec, permutations
        self._ties = pair.subject.ties
        self.keys = tuple(key for key in pair.a if key in pair.b)
        sites = spectral_sites(pair.subject.module)
        self._vectors = {key: site for site in sites for key in (site.u, site.v) if site.weight in self.keys}

    def tensor(self, key: str, device: torch.device | None = None) -> Tensor:
        mine = self._a[key].to(device)
        if not (mine.is_floating_point() or mine.is_complex()):
            return mine
        if key in self._vectors:
            return self._vector(key, device)
        theirs = self._permuted(key, device)
        wide = torch.promote_types(torch.promote_types(mine.dtype, theirs.dtype), torch.float32)
        return torch.lerp(mine.to(wide), theirs.to(wide), 0.5)

    def _permuted(self, key: str, device: torch.device | None) -> Tensor:
        theirs = self._b[key].to(device)
        return permute_tensor(theirs, gathers(self._spec, self._permutations, key, theirs.shape, self._ties))

    def _vector(self, key: str, device: torch.device | None) -> Tensor:
        site, mine = self._vectors[key], self._a[key].to(device)
        starts = [self._a[site.u].to(device), self._permuted(site.u, device)]
        found = singular_vectors(self.tensor(site.weight, device), site.axis, starts)
        return mine if found is None else found[0 if key == site.u else 1].reshape(mine.shape).to(mine)
