"""When two results are equal: their difference is measured in noise floors, output by output.

Let `y` be the reference, `z` the candidate and `y'` the reference with all weights and sums perturbed by one rounding.
Positions of an output differ in size (boxes in pixels beside probabilities), so each is compared at its own scale

    s = min over axes of (largest |y| with that index along the axis),  at least 1e-6 of the largest |y| of the output.

The noise floor of the output is `r = max |y - y'| / s`, at least `4 eps`; the difference is `max |y - z| / (r s)`.
A right permutation only reorders sums and lies within a few floors; a wrong one lies many orders of magnitude above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

TOLERANCE = 100.0
"""How many noise floors a difference may have and still be rounding."""

LEAST_SCALE = 1e-6

Outputs = Sequence[Tensor]
"""The tensors that one input gave, in order."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two functions lie apart on the same inputs.

    Args:
        floors: largest difference of any output in noise floors; infinite where shapes or discrete outputs differ.
        absolute: the largest difference.
        relative: the largest difference divided by the largest magnitude of the same output.
        noise_floor: the largest noise floor of any output, relative to the local scale.
        argmax_agreement: share of the first output's decisions that agree; None where it makes none.
        finite: whether the reference's outputs are numbers; masks of infinities count as such.
        silent: all outputs are zero, or there is none: being equal then shows nothing.
    """

    floors: float
    absolute: float
    relative: float
    noise_floor: float
    argmax_agreement: float | None
    finite: bool
    silent: bool

    def within(self, tolerance: float = TOLERANCE) -> bool:
        return self.finite and self.floors <= tolerance


@dataclass
class Comparison:
    """Collects the outputs of many inputs, and says how far they lie apart.

    Attributes:
        eps: relative rounding of the precision that was computed in.
        floors: the noise floor of each output, by its place; may begin with those of other inputs.
    """

    eps: float = torch.finfo(torch.float64).eps
    floors: dict[int, float] = field(default_factory=dict)
    _scaled: dict[int, float] = field(default_factory=dict)
    _absolute: float = 0.0
    _relative: float = 0.0
    _agreeing: int = 0
    _decisions: int = 0
    _finite: bool = True
    _silent: bool = True

    def add(self, reference: Outputs, perturbed: Outputs, candidate: Outputs) -> None:
        """The outputs for one input."""
        if len(reference) != len(candidate):
            self._differ()
        for place, (y, n, z) in enumerate(zip(reference, perturbed, candidate, strict=False)):
            if y.shape != z.shape:
                self._differ(place)
            elif y.numel():
                self._add_output(place, y.detach(), n.detach(), z.detach())
        decided = next((pair for pair in zip(reference, candidate, strict=False) if pair[0].is_floating_point()), None)
        if decided is not None:
            self._add_decisions(*decided)

    def _differ(self, place: int = 0) -> None:
        self._scaled[place] = self._absolute = self._relative = float("inf")
        self._silent = False

    def _add_output(self, place: int, y: Tensor, n: Tensor, z: Tensor) -> None:
        if y.is_complex():
            y, n, z = torch.view_as_real(y), torch.view_as_real(n), torch.view_as_real(z)
        if not y.is_floating_point():
            self._silent = self._silent and not bool((y != 0).any())
            stable = y == n if n.shape == y.shape else torch.zeros_like(y, dtype=torch.bool)
            if not torch.equal(y[stable], z[stable]):
                self._differ(place)
            return
        y, n, z = y.double(), n.double() if n.shape == y.shape else y.double(), z.double()
        endless = ~torch.isfinite(y)
        if bool(endless.any()):
            if bool(y.isnan().any()):
                self._finite = False
                return
            if not torch.equal(y[endless], z[endless]):
                self._differ(place)
                return
            y, n, z = (t.masked_fill(endless, 0.0) for t in (y, n, z))
        largest = float(y.abs().max())
        self._silent = self._silent and largest == 0.0
        scale = local_scale(y)
        error = (y - z).abs()
        worst = float(error.max())
        if worst != worst:
            self._differ(place)
            return
        noise = torch.nan_to_num((y - n).abs() / scale, nan=0.0)
        self.floors[place] = max(self.floors.get(place, 4 * self.eps), float(noise.max()))
        self._scaled[place] = max(self._scaled.get(place, 0.0), float((error / scale).max()))
        self._absolute = max(self._absolute, worst)
        self._relative = max(self._relative, worst / largest if largest > 0.0 else worst)

    def _add_decisions(self, y: Tensor, z: Tensor) -> None:
        if y.dim() < 2 or y.shape != z.shape or y.numel() == 0:
            return
        axis = -1 if y.dim() == 3 else 1  # (batch, time, classes), else (batch, classes, …)
        if y.shape[axis] > 1:
            agree = y.argmax(axis) == z.argmax(axis)
            self._agreeing += int(agree.sum())
            self._decisions += agree.numel()

    def result(self) -> Difference:
        floor = 4 * self.eps
        return Difference(
            floors=max((scaled / self.floors.get(place, floor) for place, scaled in self._scaled.items()), default=0.0),
            absolute=self._absolute,
            relative=self._relative,
            noise_floor=max(self.floors.values(), default=floor),
            argmax_agreement=self._agreeing / self._decisions if self._decisions else None,
            finite=self._finite,
            silent=self._silent,
        )


def local_scale(y: Tensor) -> Tensor:
    """The size of what surrounds each position (see above); broadcasts against `y`, and is never zero."""
    magnitude = y.abs()
    largest = float(magnitude.max()) if y.numel() else 0.0
    if largest == 0.0:
        return torch.ones_like(y)
    scale = torch.full_like(y, largest)
    for axis, size in enumerate(y.shape):
        if size > 1 and y.dim() > 1:
            others = [other for other in range(y.dim()) if other != axis]
            scale = torch.minimum(scale, magnitude.amax(others, keepdim=True))
    return scale.clamp_min(LEAST_SCALE * largest)
