"""Maps: what a network's units may undergo beside permutations, and a network under them.

A map of a group changes its values from `h` to `M h`; `freedom.SymmetryClass` says which M keep the function. What
writes the values becomes `M W` along its axis, what reads them `M^-T W` (a *dual* site): for permutations, signs and
rotations both are the same.
"""

from rebasin_cli.maps.gauges import Frame, Gauges, Read, frame_of, settled
from rebasin_cli.maps.group_map import (
    LARGEST_CONDITION,
    GroupMap,
    Maps,
    complement_of_ones,
    composed,
    fixing_ones,
    from_permutations,
    inverse,
    limited,
    limited_spec,
    plane_matrix,
    plane_numbers,
    plane_units,
    random_map,
    random_maps,
    rotation,
)
from rebasin_cli.maps.mapped import Mapped, sites_of
from rebasin_cli.maps.sites import along, contracted, gathered, mapped_along, multiplied, scaled, unit_means

__all__ = [
    "LARGEST_CONDITION",
    "Frame",
    "Gauges",
    "GroupMap",
    "Mapped",
    "Maps",
    "Read",
    "along",
    "complement_of_ones",
    "composed",
    "contracted",
    "fixing_ones",
    "frame_of",
    "from_permutations",
    "gathered",
    "inverse",
    "limited",
    "limited_spec",
    "mapped_along",
    "multiplied",
    "plane_matrix",
    "plane_numbers",
    "plane_units",
    "random_map",
    "random_maps",
    "rotation",
    "scaled",
    "settled",
    "sites_of",
    "unit_means",
]
