"""What a metric between two task vectors is: its name, what it reads, and its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Source = Literal["vectors", "layers", "matrices", "activations", "encoder_gradients", "input_gradients"]
"""What a metric's formula is given of two networks.

`vectors`: the sums over all elements (`Closeness`). `layers`: the sums of one tensor; the metric is the mean over
tensors, weighted by the sum of the two norms. `matrices`: the singular value decompositions of one 2-D tensor; the
metric is the mean over tensors. The others: the sums over one vector for each network, measured on data.
"""

OF_DATA: tuple[Source, ...] = ("activations", "encoder_gradients", "input_gradients")

Closer = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric between two task vectors.

    Attributes:
        name: in reports and for `--metrics`.
        help: what it is, in a phrase.
        source: what `value` reads.
        value: the formula: of one `Closeness`, or of two `Decomposition`s; None where it is not defined.
        closer: whether a higher or a lower value says that two task vectors are more alike.
    """

    name: str
    help: str
    source: Source
    value: Callable[..., float | None]
    closer: Closer

    @property
    def needs_data(self) -> bool:
        return self.source in OF_DATA

    @property
    def layered(self) -> bool:
        """Whether it has a value for each tensor."""
        return self.source not in OF_DATA
