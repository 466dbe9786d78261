"""Forward: groups are matched along the path of the data, each on the tensors whose other axes are already matched.

The first group is matched on what reads the model's input, whose order both networks share; the next one on what reads
the first, and so on. No group is matched against units that are still in an arbitrary order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.matching.start import Descend, Start

if TYPE_CHECKING:
    from rebasin_cli.matching.clusters import Cluster, Tile
    from rebasin_cli.matching.descent import Descent
    from rebasin_cli.matching.families import GroupFamilies


def forward(descent: Descent, seed: int = 0) -> None:
    """Match every group once, on the tiles on which no unmatched group acts as well; `seed` has no effect.

    Other groups act on a tile's other folds, and, where segments of one axis are permuted separately, on the tile's own
    positions.
    """
    matched: set[int] = set()
    for number, cluster in enumerate(descent.problem.clusters):
        known = [
            index
            for index, tile in enumerate(cluster.tiles)
            if not tile.coupled and _others(descent.problem.families, cluster, tile) <= matched
        ]
        if known:
            descent.place(number, known)
            matched.update(cluster.families)


def _others(families: GroupFamilies, cluster: Cluster, tile: Tile) -> set[int]:
    """The families of other clusters that a tile's similarity depends on."""
    import numpy as np

    folds = range(len(families.shapes[tile.key].sizes))
    found = {f for fold in folds if fold != tile.fold for f in families.places.get((tile.key, fold), ())}
    beside = set(families.places[tile.place]) - set(cluster.families)
    if beside:
        own = np.zeros(families.shapes[tile.key].sizes[tile.fold], dtype=bool)
        own[tile.positions] = True
        found |= {f for f in beside if own[families.all[f].rows[tile.place]].any()}
    return found


START = Start(
    name="forward",
    help="Groups matched one by one along the path of the data.",
    rank=20,
    efforts=frozenset({"fast", "standard", "thorough"}),
    descend=Descend(forward),
)
