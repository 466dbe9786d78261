"""A task vector on another base: `new + scale (finetuned - old)`, tensor by tensor.

Where `old` and `finetuned` are given with their units in the order of `new`, the change of each unit is added to the
unit that it was matched to. Numbers are computed in float64, in which the differences of neighbouring float32 numbers
are exact, and rounded where they are written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

SMALLEST_VARIANCE = 0.01
"""A running variance does not fall below this share of the new base's, whatever the fine-tuning changed."""


class Transferred(Mapping[str, Tensor]):
    """The new base with a task vector; each tensor is made when it is asked for, in float64.

    Integers (counters of batches) are those of the fine-tuning.

    Args:
        old, finetuned, new: by model key.
        own: keys of which the fine-tuning's tensor is taken as it is: heads that the bases do not have.
    """

    def __init__(
        self,
        old: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        own: Collection[str] = (),
    ) -> None:
        self.old, self.finetuned, self.new, self.scale, self.own = old, finetuned, new, scale, frozenset(own)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.finetuned or key not in self.old:
            return self.finetuned[key] if key in self.finetuned else self.new[key]
        tuned = self.finetuned[key]
        if key in self.own or not (tuned.is_floating_point() or tuned.is_complex()):
            return tuned
        return moved(key, self.old[key], tuned, self.new[key], self.scale)

    def __contains__(self, key: object) -> bool:
        return key in self.new or key in self.finetuned

    def __iter__(self) -> Iterator[str]:
        yield from self.new
        yield from (key for key in self.finetuned if key not in self.new)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def moved(key: str, old: Tensor, finetuned: Tensor, new: Tensor, scale: float) -> Tensor:
    """`new + scale (finetuned - old)` of one tensor, in float64 (complex128); a variance stays positive."""
    wide = torch.complex128 if new.is_complex() else torch.float64
    result = new.to(wide) + scale * (finetuned.to(wide) - old.to(wide))
    if key.rpartition(".")[2] == "running_var":
        return torch.maximum(result, SMALLEST_VARIANCE * new.to(wide))
    return result
