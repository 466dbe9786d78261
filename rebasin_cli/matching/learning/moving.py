"""What learning moves: a network that gives its interpolation with A, and follows the gradients of a loss.

The loop (`loop.py`) knows nothing else of what is learned. Permutations learned through their projection are one
implementation (`straight_through.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Found = Mapping[str, Tensor]
"""What has been found, as named tensors: permutations by axis group, or whatever describes maps completely.

It can be saved and loaded exactly, judged by its midpoint, and made the start of a further search. Two of them are the
same if their tensors are."""


@dataclass(frozen=True, slots=True)
class Interpolated:
    """A network between A and B, and what its loss is differentiated by.

    Attributes:
        network: its tensors by state-dict key, tied ones once; float32 where they are floating.
        leaves: tensors that require gradients, and that `network` depends on; in the same order every time.
    """

    network: Mapping[str, Tensor]
    leaves: tuple[Tensor, ...]


class Moving(Protocol):
    """Something that is learned. Nothing in it may depend on the clock or on a random state outside it."""

    def interpolated(self, lam: float) -> Interpolated:
        """`(1 - lam) A + lam B`, B as it is brought to A at present, with gradients to its leaves."""

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move against the gradients, one for each leaf of the last `interpolated`; None where the loss lacks a leaf.

        All are finite. They are of the mean loss of one or several batches, at one lam.
        """

    def slow(self, factor: float) -> None:
        """Take smaller steps from now on, by this factor. It is part of the state; `begin` does not undo it."""

    def project(self) -> int:
        """Bring what must be discrete (permutations) back to what is allowed; how many units have moved.

        Called after every few steps, and before `found`.
        """

    def found(self) -> Found:
        """The present candidate. The tensors are not changed afterwards."""

    def midpoint(self, found: Found) -> Mapping[str, Tensor]:
        """The network at lam = 1/2 of any candidate, by which it is judged; without gradients."""

    def allowed(self, found: Found) -> bool:
        """Whether a candidate may be the result, whatever its loss: it may have too little similarity to A."""

    def begin(self, found: Found) -> None:
        """Restart from a candidate, without momentum."""

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what follows, by name; `restore` with it continues with exactly the same numbers.

        The tensors are of dtypes that numpy knows, and are saved at once.
        """

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave in another process, for the same A, B and settings."""
