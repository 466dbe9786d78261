"""The line between checkpoints: what the weights are at `lam`.

`lerp`: (1 - lam) A + lam B, tensor by tensor. `slerp` (Shoemake 1985, for each parameter flattened to a vector):
sin((1 - lam) t)/sin t A + sin(lam t)/sin t B with t the angle between A and B; where t is near 0 or pi it is `lerp`.
Running statistics are always taken by `lerp`. At lam 0 and 1 the tensors are those of A and B, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError

Mode = Literal["lerp", "slerp"]
MODES: tuple[Mode, ...] = ("lerp", "slerp")
NEARLY_PARALLEL = 1e-4


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the line: `lam` in [0, 1] between checkpoint number `segment` and the next."""

    segment: int
    lam: float

    @property
    def end(self) -> int | None:
        """The number of the checkpoint that lies here, or None between two."""
        if self.lam == 0.0:
            return self.segment
        return self.segment + 1 if self.lam == 1.0 else None


def grid(steps: int, checkpoints: int) -> tuple[Point, ...]:
    """`steps + 1` values of lam on each segment of the line through that many checkpoints.

    Raises:
        UsageError: fewer than one step or two checkpoints.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: at least one step is needed")
    if checkpoints < 2:
        raise UsageError(f"{checkpoints} checkpoint given: a line needs two or more")
    return tuple(Point(segment, number / steps) for segment in range(checkpoints - 1) for number in range(steps + 1))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of this dtype are combined: float32 or better; integers and booleans as they are."""
    if dtype.is_complex or not dtype.is_floating_point:
        return dtype
    return dtype if dtype.itemsize >= 4 else torch.float32


class Line:
    """The path through two or more checkpoints, tensors by model key.

    Args:
        checkpoints: lazily reading mappings with the same shapes; dtypes may differ. Keys that not all have (counters
            that older files lack) are left out.
        parameters: keys that `slerp` turns; the others (buffers) are taken by `lerp`.
    """

    def __init__(
        self, checkpoints: Sequence[Mapping[str, Tensor]], *, mode: Mode = "lerp", parameters: Collection[str] = ()
    ) -> None:
        self.checkpoints = tuple(checkpoints)
        self.mode = mode
        self.keys = tuple(key for key in checkpoints[0] if all(key in other for other in checkpoints[1:]))
        self._turned = frozenset(parameters) if mode == "slerp" else frozenset()
        self._angles: dict[tuple[int, str], float] = {}

    def tensor(self, key: str, point: Point, device: torch.device | None = None) -> Tensor:
        """The tensor at a point; at an end the checkpoint's own, elsewhere in `compute_dtype` of the wider of the two.

        Integers and booleans are not blended: the nearer end's are taken, A's in the middle.
        """
        end = point.end
        if end is not None:
            return _on(self.checkpoints[end][key], device)
        a = _on(self.checkpoints[point.segment][key], device)
        b = _on(self.checkpoints[point.segment + 1][key], device)
        if not (a.dtype.is_floating_point or a.dtype.is_complex):
            return a if point.lam <= 0.5 else b
        dtype = torch.promote_types(compute_dtype(a.dtype), compute_dtype(b.dtype))
        a, b = a.to(dtype), b.to(dtype)
        if key not in self._turned:
            return torch.lerp(a, b, point.lam)
        angle = self._angle(key, point.segment, a, b)
        if not NEARLY_PARALLEL < angle < math.pi - NEARLY_PARALLEL:
            return torch.lerp(a, b, point.lam)
        sine = math.sin(angle)
        return a * (math.sin((1 - point.lam) * angle) / sine) + b * (math.sin(point.lam * angle) / sine)

    def _angle(self, key: str, segment: int, a: Tensor, b: Tensor) -> float:
        """Angle between the two, in [0, pi]; 0 where one is zero."""
        if (segment, key) not in self._angles:
            x, y = a.double().flatten(), b.double().flatten()
            norms = float(x.norm() * y.norm())
            cosine = float(x @ y) / norms if norms > 0 and math.isfinite(norms) else 1.0
            self._angles[(segment, key)] = math.acos(max(-1.0, min(1.0, cosine)))
        return self._angles[(segment, key)]


def _on(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor if device is None else tensor.to(device)
