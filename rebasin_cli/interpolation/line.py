"""The line through checkpoints: the weights at `lam`, and the networks of a sweep.

`lerp`: (1 - lam) A + lam B, tensor by tensor. `slerp` (Shoemake 1985, for each parameter flattened to a vector):
sin((1 - lam) t)/sin t A + sin(lam t)/sin t B with t the angle between A and B; where t is near 0 or pi it is `lerp`.
Running statistics are always interpolated by `lerp`. The vectors of a spectral norm are not interpolated: they are
computed from the weight at `lam` (see `execution/spectral_norm.py`). At lam 0 and 1 the tensors are those of A and B,
bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.execution.lams import Lams
from rebasin_cli.execution.spectral_norm import SpectralSite, site_by_vector
from rebasin_cli.execution.weight_arithmetic import angle_between, compute_dtype, slerp

Mode = Literal["lerp", "slerp"]
MODES: tuple[Mode, ...] = ("lerp", "slerp")


@dataclass(frozen=True, slots=True)
class Point:
    """A point on the line: `lam` in [0, 1] between checkpoint number `segment` and the next, outside extrapolated.

    `mixed`: the line's own `lams` hold for some tensors, and `lam` for the others, so it is not on the line.
    """

    segment: int
    lam: float
    mixed: bool = False

    @property
    def end(self) -> int | None:
        """The number of the checkpoint at this point, or None between two."""
        if self.mixed or self.lam not in (0.0, 1.0):
            return None
        return self.segment + int(self.lam)


def grid(steps: int, checkpoints: int) -> tuple[Point, ...]:
    """`steps + 1` values of lam on each segment of the line through that many checkpoints.

    Raises:
        UsageError: fewer than one step or two checkpoints.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: must be at least 1")
    if checkpoints < 2:
        raise UsageError(f"{checkpoints} checkpoint given: need at least two")
    return tuple(Point(segment, number / steps) for segment in range(checkpoints - 1) for number in range(steps + 1))


def single_point(lams: Lams) -> Point | None:
    """The only network that is asked for; None where there are several."""
    return None if lams.single is None else Point(0, lams.single, mixed=bool(lams.patterns))


def points_of(lams: Lams) -> tuple[Point, ...]:
    """The points to evaluate, along the line: both ends are among them."""
    single = single_point(lams)
    asked = {single} if single is not None else {Point(0, number) for number in lams.numbers}
    both = {Point(0, 0.0), Point(0, 1.0)}
    return tuple(sorted({*both, *asked}, key=lambda one: (one.lam, one.mixed)))


class Line:
    """The line through two or more checkpoints, tensors by model key.

    Args:
        checkpoints: lazily reading mappings with the same shapes; dtypes may differ. Keys that some of them lack (older
            files lack some counters) are left out.
        parameters: keys that `slerp` applies to; the others (buffers) are interpolated by `lerp`.
        spectral: the weights under spectral norm, whose vectors follow from the weight at each point.
        lams: lam by key at mixed points, where it is another one than the point's.
    """

    def __init__(
        self,
        checkpoints: Sequence[Mapping[str, Tensor]],
        *,
        mode: Mode = "lerp",
        parameters: Collection[str] = (),
        spectral: Sequence[SpectralSite] = (),
        lams: Mapping[str, float] | None = None,
    ) -> None:
        self.checkpoints = tuple(checkpoints)
        self.mode = mode
        self.keys = tuple(key for key in checkpoints[0] if all(key in other for other in checkpoints[1:]))
        self._lams = dict(lams or {})
        self._by_slerp = frozenset(parameters) if mode == "slerp" else frozenset()
        self._angles: dict[tuple[int, str], float] = {}
        self._spectral = site_by_vector(spectral, self.keys)
        self._vectors: dict[tuple[Point, str], Mapping[str, Tensor]] = {}

    def tensor(self, key: str, point: Point, device: torch.device | None = None, *, treated: bool = False) -> Tensor:
        """The tensor at a point: at an end the checkpoint's own, elsewhere in `compute_dtype` of the wider of the two.

        Integers and booleans are not interpolated: they are those of the nearer end, or of A in the middle.

        Args:
            treated: also at an end, the vectors of a spectral norm are computed from the weight.
        """
        end = point.end
        if end is not None:
            own = _on(self.checkpoints[end][key], device)
            vector = self._spectral_vector(key, point) if treated and self.computes(key) else None
            return own if vector is None else vector.reshape(own.shape).to(own)
        a = _on(self.checkpoints[point.segment][key], device)
        b = _on(self.checkpoints[point.segment + 1][key], device)
        lam = self._lams.get(key, point.lam) if point.mixed else point.lam
        if not (a.dtype.is_floating_point or a.dtype.is_complex):
            return a if lam <= 0.5 else b
        dtype = torch.promote_types(compute_dtype(a.dtype), compute_dtype(b.dtype))
        a, b = a.to(dtype), b.to(dtype)
        if self.computes(key):
            computed = self._spectral_vector(key, point)
            if computed is not None:
                return computed.reshape(a.shape).to(a)
        if key not in self._by_slerp:
            return torch.lerp(a, b, lam)
        return slerp(a, b, lam, self._angle(key, point.segment, a, b))

    def computes(self, key: str) -> bool:
        """Whether this tensor is computed from another one."""
        return key in self._spectral

    def _spectral_vector(self, key: str, point: Point) -> Tensor | None:
        """u or v of the weight at this point, float64; None for a weight of zeros, which has none."""
        site = self._spectral[key]
        if (point, site.u) not in self._vectors:
            starts = [self.checkpoints[point.segment + number][site.u] for number in (0, 1)]
            self._vectors[(point, site.u)] = site.vectors(lambda name: self.tensor(name, point), starts)
        return self._vectors[(point, site.u)].get(key)

    def _angle(self, key: str, segment: int, a: Tensor, b: Tensor) -> float:
        """Angle between the two, in [0, pi]; 0 where one is zero."""
        if (segment, key) not in self._angles:
            self._angles[(segment, key)] = angle_between(a, b)
        return self._angles[(segment, key)]


def _on(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor if device is None else tensor.to(device)


@dataclass(frozen=True, slots=True)
class NetworkOnLine:
    """One network of a sweep; a `Network` for whatever runs it.

    `end` is the number of a checkpoint among all checkpoints of the sweep, or None for an interpolated network, and
    `between` holds the numbers of the checkpoints at the ends of its segment. `treated` is a checkpoint with statistics
    measured like those of the interpolated networks.
    """

    name: str
    line: Line
    point: Point
    end: int | None
    between: tuple[int, int]
    treated: bool = False

    @property
    def adjusted(self) -> bool:
        """Whether its statistics are measured, where any are."""
        return self.end is None or self.treated

    @property
    def keys(self) -> tuple[str, ...]:
        return self.line.keys

    @property
    def lam(self) -> float:
        return self.point.lam

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        return (self.between[0], 1 - self.lam), (self.between[1], self.lam)

    def tensor(self, key: str, device: torch.device | None = None) -> Tensor:
        return self.line.tensor(key, self.point, device, treated=self.treated)

    def changes(self, key: str) -> bool:
        """Whether this tensor is not a checkpoint's own."""
        return self.end is None or (self.treated and self.line.computes(key))


@dataclass(frozen=True)
class SweepNetworks:
    """All networks of a sweep, each once, and for each curve its points with the name of the network there.

    Attributes:
        loaded: for each curve its checkpoints as they were loaded, in order, by name.
    """

    all: tuple[NetworkOnLine, ...]
    curves: Mapping[str, tuple[tuple[Point, str], ...]]
    loaded: Mapping[str, tuple[str, ...]]

    @cached_property
    def by_name(self) -> dict[str, NetworkOnLine]:
        return {network.name: network for network in self.all}

    @property
    def first(self) -> NetworkOnLine:
        """The first checkpoint."""
        return self.all[0]

    @property
    def inner(self) -> tuple[NetworkOnLine, ...]:
        """The interpolated networks."""
        return tuple(network for network in self.all if network.end is None)

    @property
    def adjusted(self) -> tuple[NetworkOnLine, ...]:
        """The networks whose statistics are measured, where any are."""
        return tuple(network for network in self.all if network.adjusted)


def sweep_networks(lines: Mapping[str, Line], points: Sequence[Point], *, treated: bool = False) -> SweepNetworks:
    """The networks at `points` on each of the lines, by curve name; the checkpoints come first.

    Two curves that share a checkpoint (the same mapping object) share its evaluation, and so do two segments that meet
    in a checkpoint of a longer line.

    Args:
        treated: the networks between have measured statistics or computed vectors, so the curves have the checkpoints
            treated likewise at their ends, and those as loaded are networks besides.
    """
    numbers: dict[int, int] = {}
    for line in lines.values():
        for checkpoint in line.checkpoints:
            numbers.setdefault(id(checkpoint), len(numbers))
    found: dict[str, NetworkOnLine] = {}
    curves: dict[str, tuple[tuple[Point, str], ...]] = {}
    loaded: dict[str, tuple[str, ...]] = {}
    for curve, line in lines.items():
        row = []
        for point in points:
            number = point.end
            end = None if number is None else numbers[id(line.checkpoints[number])]
            left, right = line.checkpoints[point.segment], line.checkpoints[point.segment + 1]
            between = (numbers[id(left)], numbers[id(right)])
            segment = f", segment {point.segment + 1}" if len(line.checkpoints) > 2 else ""
            mixed = ", mixed" if point.mixed else ""
            name = f"checkpoint {end}" if end is not None else f"{curve}{segment}, lam {point.lam!r}{mixed}"
            found.setdefault(name, NetworkOnLine(name, line, point, end, between))
            if end is not None and treated:
                name = f"{name}, treated"
                found.setdefault(name, NetworkOnLine(name, line, point, end, between, treated=True))
            row.append((point, name))
        curves[curve] = tuple(row)
        loaded[curve] = tuple(f"checkpoint {numbers[id(one)]}" for one in line.checkpoints)
    return SweepNetworks(tuple(sorted(found.values(), key=lambda network: network.end is None)), curves, loaded)
