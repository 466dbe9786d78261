"""What the methods on task vectors have in common: their options, trimming, and the election of signs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rebasin_cli.merging.method import OneTensor
from rebasin_cli.options import option, options_class

if TYPE_CHECKING:
    from torch import Tensor


@options_class
class ScaleOptions:
    """The factor of merged task vectors."""

    scale: float = option(
        "Factor of the merged task vector, before it is added to the base.", group="Merging", metavar="X", default=1.0
    )


@options_class
class DensityOptions(ScaleOptions):
    """The same, and how much of each task vector is kept."""

    density: float | None = option(
        "Share of each task vector that is kept, by tensor.",
        group="Merging",
        metavar="SHARE",
        at_least=0,
        at_most=1,
        default=None,
        shown_default="0.2 for ties, 0.5 for dare-ties",
    )


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The `int(density * n)` numbers of largest magnitude, at least one; the others are 0."""
    import torch

    flat = delta.flatten()
    kept = min(flat.numel(), max(1, int(density * flat.numel())))
    if kept == flat.numel():
        return delta
    places = torch.topk(flat.abs(), kept).indices
    found = torch.zeros_like(flat)
    found[places] = flat[places]
    return found.view_as(delta)


def dropped(delta: Tensor, density: float, seed: int, key: str, number: int) -> Tensor:
    """Each number kept with probability `density` and divided by it, else 0 (DARE); drawn for tensor and network."""
    import torch

    if density >= 1.0:
        return delta
    digest = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    mask = torch.bernoulli(torch.full(delta.shape, density, dtype=torch.float32), generator=generator)
    return delta * mask / density if density > 0 else torch.zeros_like(delta)


def elected_sum(one: OneTensor, sparse: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
    """By element, the sum of the weighted task vectors that have the elected sign, and the sum of their weights.

    The sign is that of the sum of all weighted task vectors (TIES-Merging, Yadav et al. 2023, section 3); a sum of 0 is
    positive. The task vectors are read twice, so that one of them is in memory at a time.

    Args:
        sparse: makes a task vector sparse, given its number.
    """
    import torch

    def weighted() -> Iterator[tuple[float, Tensor]]:
        for number, (weight, delta) in enumerate(zip(one.weights, one.deltas, strict=True)):
            yield weight, sparse(delta, number) * weight

    votes = torch.zeros_like(one.origin)
    for _, part in weighted():
        votes += part
    elected = torch.where(votes >= 0, 1.0, -1.0).to(votes)
    total, weights = torch.zeros_like(one.origin), torch.zeros_like(one.origin)
    for weight, part in weighted():
        agreeing = (part.sign() == elected).to(part)
        total += part * agreeing
        weights += weight * agreeing
    return total, weights
