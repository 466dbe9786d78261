"""What an axis group allows beyond a permutation: its class, its gauges, its scales. Plain data, as in the spec file.

A value `h` of the group changes to `M h`. What writes it (an output axis, a bias, an embedding) is multiplied by `M`
along its axis; what reads it (an axis contracted with the value) by the transposed inverse of `M`. Such a site is
*dual*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal


class SymmetryClass(str, Enum):
    """The maps of its units that a group allows."""

    PERMUTATION = "permutation"
    """A permutation `P`."""
    SIGNED = "signed"
    """`P S`, where S is diagonal, of ones and minus ones; `AxisGroup.scales` lists what the signs reach."""
    MONOMIAL = "monomial"
    """`P D`, where D is diagonal; `AxisGroup.scales` lists the independent diagonals and what they reach."""
    ORTHOGONAL = "orthogonal"
    """`Q` with `Qᵀ Q = 1`."""
    ORTHOGONAL_ONES = "orthogonal_ones"
    """Orthogonal, and the vector of ones stays: `Q 1 = 1`."""
    PLANES = "planes"
    """One complex number other than zero for each pair of units (`AxisGroup.pairing`); units keep their places."""
    LINEAR = "linear"
    """Any invertible matrix."""

    @property
    def permutable(self) -> bool:
        """Whether every permutation of the units belongs to the class."""
        return self is not SymmetryClass.PLANES

    @property
    def is_matrix(self) -> bool:
        """Whether its maps mix units."""
        return self not in (SymmetryClass.PERMUTATION, SymmetryClass.SIGNED, SymmetryClass.MONOMIAL)


Pairing = Literal["halves", "adjacent"]
"""Which units of a group of size n share a plane: i and i + n/2, or 2i and 2i + 1."""

Side = Literal["read", "write"]
Sign = Literal["positive", "any", "sign"]


@dataclass(frozen=True, slots=True)
class Gauge:
    """Diagonal parameters between the units of a group and some of its sites.

    The sites of `scale` and `shift` are among the group's too: a permutation moves them. Under any other map they are
    not multiplied: they are folded into the sites behind them, and taken out again with the values of another network.

    - *read*: `y = scale * h + shift` is read by the dual sites `sites`. Folded, a reader is `W diag(scale)`, and its
      bias `b + W shift`: the weight contracted with the shift along the site's axis, kernel axes summed.
      Where a reader lacks a bias that can take it (None in `biases`), `shift / scale` is a writer of the group instead.
    - *write*: `scale * u` is added to the group, and the sites `sites` write `u`. Folded, a writer is `diag(scale) W`.

    Args:
        side: on which side of the group.
        scale, shift: names of tensors with one number for each position of the axis on which the sites lie; None for
            ones, or zeros.
        sites: indices into `AxisGroup.sites`.
        biases: for every one of `sites` of a *read* gauge with a shift, the name of its bias.
        offset: added to the tensor `scale` to give the scale; 1 where a norm multiplies by one and its weight.
    """

    side: Side
    scale: str | None
    shift: str | None
    sites: tuple[int, ...]
    biases: tuple[str | None, ...] = ()
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class ScaleFreedom:
    """One diagonal matrix D with a number for each unit: it multiplies every listed site by D or its inverse.

    Args:
        sign: `positive`: numbers above zero; `any`: other than zero; `sign`: one or minus one.
        sites: indices into `AxisGroup.sites`, each with its power of D: 1 or -1. The other sites stay.
    """

    sign: Sign
    sites: tuple[tuple[int, int], ...]


def gauge_to_json(gauge: Gauge) -> dict[str, Any]:
    entry = {
        "side": gauge.side,
        "scale": gauge.scale,
        "shift": gauge.shift,
        "sites": list(gauge.sites),
        "biases": list(gauge.biases),
    }
    return {**entry, "offset": gauge.offset} if gauge.offset else entry


def gauge_from_json(entry: Mapping[str, Any]) -> Gauge:
    """Raises ValueError for an unknown side; KeyError, TypeError where the entry is malformed."""
    if entry["side"] not in ("read", "write"):
        raise ValueError(f"a gauge lies on the side 'read' or 'write', not {entry['side']!r}")
    return Gauge(
        side=entry["side"],
        scale=_name(entry.get("scale")),
        shift=_name(entry.get("shift")),
        sites=tuple(int(site) for site in entry["sites"]),
        biases=tuple(_name(bias) for bias in entry.get("biases", ())),
        offset=float(entry.get("offset", 0.0)),
    )


def scale_to_json(freedom: ScaleFreedom) -> dict[str, Any]:
    return {"sign": freedom.sign, "sites": [list(pair) for pair in freedom.sites]}


def scale_from_json(entry: Mapping[str, Any]) -> ScaleFreedom:
    """Raises ValueError for an unknown sign; KeyError, TypeError where the entry is malformed."""
    if entry["sign"] not in ("positive", "any", "sign"):
        raise ValueError(f"the sign of a scale is 'positive', 'any' or 'sign', not {entry['sign']!r}")
    return ScaleFreedom(entry["sign"], tuple((int(site), int(power)) for site, power in entry["sites"]))


def pairing_from_json(value: Any) -> Pairing | None:
    """Raises ValueError for an unknown pairing."""
    if value is None or value in ("halves", "adjacent"):
        pairing: Pairing | None = value
        return pairing
    raise ValueError(f"a pairing is 'halves' or 'adjacent', not {value!r}")


def _name(value: Any) -> str | None:
    return None if value is None else str(value)
