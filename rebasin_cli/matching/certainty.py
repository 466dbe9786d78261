"""Whether a search is done: two unlike starts ended alike, and no unit's match is in doubt.

Where two descents that begin in different places (B's own order; the order that follows the data) reach the very same
permutations, these are an optimum that both led to. On trained pairs of strangers they end apart. It is no proof, so
there is a second condition: in every similarity matrix of every cluster the matched entry must exceed all others of
its row and column by a wide margin. Then a unit that changed places would lose at once more than its neighbours'
moves could give back, unless many moved together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.nesting import cell_map
from rebasin_cli.matching.polish import Polished
from rebasin_cli.matching.problem import Problem

MARGIN = 0.25
"""By this share of a matched similarity, it must exceed the others in its row and in its column."""
SILENT = 1e-6
"""Units whose similarities are below this share of the mean matched one have no weights, and no place of their own."""


def agreed(problem: Problem, ends: Sequence[Polished], least: float) -> Polished | None:
    """The best end, where two starts with different names led to it and no match is in doubt; else None.

    Args:
        least: differences of the objective that do not count.
    """
    done = [end for end in ends if end.converged]
    best = max((end.value for end in done), default=0.0)
    leading = [end for end in done if end.value >= best - least]
    for one, other in combinations(leading, 2):
        if (
            one.start != other.start
            and _alike(one.arrangement, other.arrangement)
            and decided(problem, one.arrangement)
        ):
            return one
    return None


def _alike(one: Arrangement, other: Arrangement) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one.perms, other.perms, strict=True))


def decided(problem: Problem, arrangement: Arrangement) -> bool:
    """Whether every unit's match exceeds all other matches of it, and of its partner, by `MARGIN`."""
    similarity = problem.similarity(arrangement)
    perms = dict(enumerate(arrangement.perms))
    for cluster in problem.clusters:
        for axes, total in (similarity.of(cluster) if cluster.tiles else {}).items():
            cells = torch.from_numpy(cell_map(problem.families, axes, perms)).to(total.device)
            if not _by_a_margin(total, cells):
                return False
    return True


def _by_a_margin(total: Tensor, cells: Tensor) -> bool:
    """Whether `total[c, cells[c]]` stands out in its row and its column, for each cell c that is not silent."""
    if len(cells) < 2:
        return True
    rows = torch.arange(len(cells), device=total.device)
    matched = total[rows, cells]
    others = total.clone()
    others[rows, cells] = -torch.inf
    rivals = torch.maximum(others.amax(1), others.amax(0)[cells])
    heard = torch.maximum(matched.abs(), rivals.abs()) > SILENT * matched.abs().mean()
    return bool((matched - rivals >= MARGIN * matched.abs())[heard].all())
