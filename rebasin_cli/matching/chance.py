"""How much of a match is chance: the similarity gained, against the gain on weights that have no relation.

Matching raises the similarity of any two networks, related or not, because it chooses the largest of many sums. Weights
whose entries were shuffled within each tensor have the same sizes and no relation, so their gain is what chance gives.
On four pairs trained on CIFAR-10 the gain is 3.94 (MLP), 1.68 (ResNet20), 1.60 (VGG) and 1.05 (vision transformer)
times that of chance (`python -m tests.benchmarks.chance PAIRS`); on the last, matching by weights merges far worse
than by activations (docs/matching.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.matching.search import search
from rebasin_cli.spec import PermutationSpec

MOST_ELEMENTS = 1 << 22
"""Parameters of the largest network on which this is measured: two short searches, and a copy of its weights."""


@dataclass(frozen=True, slots=True)
class Chance:
    """Gains of the cosine in a short search (`effort` fast): on the pair, and on weights without relation."""

    gain: float
    gain_by_chance: float

    @property
    def ratio(self) -> float:
        """How many times the gain is that of chance."""
        return self.gain / self.gain_by_chance if self.gain_by_chance > 0 else float("inf")


def gain_against_chance(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Chance:
    """Match A with B, and with B shuffled.

    Args:
        spec, a, b, parameters, seed, device: as for `search`.

    Raises:
        ModelError, NumericalError: as for `search`.
    """
    gains = []
    for other in (b, _Shuffled(b, seed)):
        found = search(spec, a, other, parameters=parameters, effort="fast", seed=seed, device=device)
        gains.append(found.cosine_after - found.cosine_before)
    return Chance(*gains)


class _Shuffled(Mapping[str, Tensor]):
    """Tensors whose entries are shuffled; each is made when it is asked for, the same every time."""

    def __init__(self, tensors: Mapping[str, Tensor], seed: int) -> None:
        self._tensors, self._seed = tensors, seed

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.reshape(-1)[order].reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
