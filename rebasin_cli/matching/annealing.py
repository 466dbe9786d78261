"""Annealing: doubly stochastic matrices, annealed to permutations.

At temperature T a cluster's matrix X maximises `<S, X> + T * entropy(X)` over doubly stochastic matrices, with S the
similarity given the present matrices of all other clusters. The Lagrange conditions of that problem are
`X = diag(r) exp(S / T) diag(c)`, so X is found by Sinkhorn's alternate scaling of rows and columns (Sinkhorn and Knopp
1967; Cuturi, "Sinkhorn Distances", 2013). Entropy is strictly concave, so X is unique for a given S. At a high
temperature all pairings are equally likely; as T falls, clear matches are fixed first and guide the others; as T goes
to 0, X goes to the optimal assignment. Runs end close to each other, and above descents from several starts.

Graduated assignment: Gold and Rangarajan, "A Graduated Assignment Algorithm for Graph Matching" (1996). Not from there:
several groups in turn, temperatures in standard deviations of the similarities (so that one schedule fits all groups),
nested groups, and noise.

Nested groups: with X for the blocks and W_ij for the units inside a pair of blocks, the joint problem is to maximise
`<S, X> + T entropy(X) + sum_ij X_ij (<S_ij, W_ij> + T_ij entropy(W_ij))`. Every X_ij is non-negative and the bracket of
a pair depends on W_ij alone, so each bracket is maximised on its own, to F_ij, and then X for the scores `S + F`. That
is the joint optimum, not an alternation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Axes, Cluster, Tile
from rebasin_cli.matching.families import Index
from rebasin_cli.matching.nesting import NestedProblem, cell_map
from rebasin_cli.matching.polish import Settings
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.similarity import Sums
from rebasin_cli.matching.soft import Soft

HOTTEST, COLDEST = 0.6, 0.05
"""Temperatures of the first and of the last sweep, in standard deviations of the similarities."""
_BALANCINGS = 5
"""Scalings of rows and columns in one visit; the next visit continues from the potentials of the last."""
_TINY = 1e-30
_SILENT = 1e-9
"""Similarities whose standard deviation is below this, relative to the norms, are rounding errors: they are ignored."""


class Annealed:
    """Where annealing ended.

    Attributes:
        work: multiply-adds that all replicas took.
    """

    def __init__(self, problem: Problem, balancings: Sequence[Balancing], start: Arrangement | None, work: int) -> None:
        self._problem, self._balancings, self._start, self.work = problem, balancings, start, work

    @cached_property
    def vertices(self) -> tuple[Mapping[int, Index], ...]:
        """The permutations nearest to each replica's matrices, by family."""
        replicas = len(self._balancings[0].noise) if self._balancings else 1
        return tuple(map(self._rounded, range(replicas)))

    def _rounded(self, replica: int) -> dict[int, Index]:
        problem = self._problem
        found = dict(enumerate((self._start or Arrangement(problem.families)).perms))
        for balancing in self._balancings:
            cells = {axes: matrix[replica] for axes, matrix in balancing.cells.items() if _is_chain(problem, axes)}
            if cells:
                found.update(NestedProblem(problem.families, balancing.cluster, cells).solve())
        return found


def memory_needed(problem: Problem, replicas: int = 1) -> int:
    """Bytes of the matrices of all clusters, and of the temporary ones."""
    sizes = [problem.bytes_of(cluster) for cluster in problem.clusters]
    coupled = [4 * len(tile.positions) ** 2 for cluster in problem.clusters for tile in seen_coupled(problem, cluster)]
    return replicas * (sum(sizes) + 4 * max(sizes, default=0) + sum(coupled))


def sweep_work(problem: Problem) -> int:
    """Multiply-adds of one sweep of one replica, at the most: every product needs another one that mixes B."""
    return 2 * problem.full_pass


def anneal(
    problem: Problem,
    settings: Settings,
    *,
    sweeps: int,
    noise: Sequence[float] = (0.0,),
    seed: int = 0,
    start: Arrangement | None = None,
    hottest: float = HOTTEST,
) -> Annealed:
    """Anneal all clusters to permutations, from which coordinate descent goes on.

    Args:
        settings: only the deadline is used: after it, matrices stay as they are.
        sweeps: visits of every cluster, at falling temperatures.
        noise: for each of the runs side by side, the standard deviation of what is added to similarities at each visit,
            in units of the temperature. Without noise the result does not depend on the seed.
        seed: of the noise, and of the order of visits where there is noise.
        start: where to begin, instead of the point where all pairings are equally likely.
        hottest: the first temperature, in standard deviations of the similarities; a lower one keeps more of `start`.
    """
    generator = torch.Generator().manual_seed(seed)
    clusters = [cluster for cluster in problem.clusters if cluster.tiles]
    soft = Soft(problem, len(noise))
    for cluster in clusters if start is not None else ():
        assert start is not None
        soft.set(cluster, hard(problem, cluster, start, len(noise)))
    balancings = [Balancing(problem, cluster, noise, generator) for cluster in clusters]
    for sweep in range(sweeps):
        temperature = hottest * (COLDEST / hottest) ** (sweep / max(1, sweeps - 1))
        order = list(range(len(clusters)))[:: -1 if sweep % 2 else 1]
        if any(noise):
            order = torch.randperm(len(clusters), generator=generator).tolist()
        for number in order:
            if settings.out_of_time:
                break
            cluster = clusters[number]
            soft.set(cluster, balancings[number].matrices(soft.similarity(cluster), temperature))
    return Annealed(problem, balancings, start, soft.work)


class Balancing:
    """A cluster's matrices at a temperature, from its similarities; inner families first, then the blocks.

    Args:
        noise: by replica, in units of the temperature.

    Attributes:
        cells: the matrices of the last visit by axes, float32 (replicas, cells, cells); coupled cells included.
    """

    def __init__(self, problem: Problem, cluster: Cluster, noise: Sequence[float], generator: torch.Generator) -> None:
        self.problem, self.cluster, self.generator = problem, cluster, generator
        self.noisy = any(noise)
        self.noise = torch.tensor(noise, dtype=torch.float64, device=problem.device).view(-1, 1, 1, 1)
        self.cells: dict[Axes, Tensor] = {}
        self._potentials: dict[int, Tensor] = {}
        self._inner: dict[int, Tensor] = {}
        families = problem.families.all
        self._children = {
            index: [c for c in cluster.families if families[c].parent == index] for index in cluster.families
        }

    def matrices(self, sums: Sums, temperature: float) -> dict[Axes, Tensor]:
        """Doubly stochastic matrices by axes, float32 (replicas, cells, cells).

        Args:
            sums: similarities by axes, (replicas, cells, cells).
            temperature: relative to the standard deviation of what is assigned.
        """
        own: dict[int, Tensor] = {}
        for axes, total in sums.items():
            own[axes[-1]] = own[axes[-1]] + total if axes[-1] in own else total
        self.cells = {}
        if sums:
            replicas = next(iter(sums.values())).shape[0]
            self._solve(self.cluster.root, own, temperature, replicas)
            root = self._inner[self.cluster.root]
            self._unfold((self.cluster.root,), root.view(replicas, *root.shape[-2:]))
        return self.cells

    def keep(self, put: Callable[[Axes, Tensor], Tensor]) -> dict[Axes, Tensor]:
        """Hold what `put` makes of each matrix instead (a copy in a file); returns them."""
        self.cells = {axes: put(axes, matrix) for axes, matrix in self.cells.items()}
        self._inner.clear()
        return self.cells

    def _solve(self, index: int, own: Mapping[int, Tensor], temperature: float, replicas: int) -> Tensor | None:
        """Balance a family for every pair of its parent's cells; the optimum F of each pair, (replicas, pairs)."""
        family = self.problem.families.all[index]
        cells, size = family.members, family.size
        total = own.get(index)
        for child in self._children[index]:
            gained = self._solve(child, own, temperature, replicas)
            if gained is not None:
                inner = gained.view(replicas, cells * size, cells * size)
                total = inner if total is None else total + inner
        if total is None:
            self._inner[index] = torch.full((replicas, cells * cells, size, size), 1 / size, device=self.problem.device)
            return None
        pairs = (
            total.view(replicas, cells, size, cells, size).transpose(2, 3).contiguous().view(replicas, -1, size, size)
        )
        return self._balance(index, pairs, temperature)

    def _balance(self, index: int, scores: Tensor, temperature: float) -> Tensor | None:
        """Balance a family's scores, (replicas, pairs, size, size), which are changed; the optimum F of each pair."""
        spread = _spread(scores.flatten(1))
        silent = (spread <= _SILENT * self.problem.norms.scale).view(-1, 1, 1, 1)
        step = (temperature * spread).view(-1, 1, 1, 1).to(scores.dtype).masked_fill(silent, float("inf"))
        finite = step.masked_fill(silent, 0.0)
        if self.noisy:
            drawn = torch.randn(scores.shape, generator=self.generator).to(scores)
            scores = scores + drawn.mul_(self.noise.to(scores.dtype) * finite)
        is_root = index == self.cluster.root
        lifted = scores if is_root else scores.clone()
        # v = -T log(c) holds the column scaling of the last visit, so scaling resumes there. Subtracting each row's
        # maximum changes the row scaling only, and keeps the exponentials in range at any T.
        potentials = self._potentials.setdefault(index, torch.zeros_like(scores.narrow(-2, 0, 1)))
        lifted -= potentials
        kernel = lifted.sub_(lifted.amax(dim=-1, keepdim=True)).div_(step).exp_()
        columns = torch.ones_like(potentials)
        for _ in range(_BALANCINGS):
            rows = (kernel @ columns.transpose(-1, -2)).add_(_TINY).reciprocal_()
            columns = (rows.transpose(-1, -2) @ kernel).add_(_TINY).reciprocal_()
        potentials -= finite * columns.log()
        matrix = kernel.mul_(rows).mul_(columns)
        self._inner[index] = matrix.float()
        if is_root:
            return None
        # An inner pair's optimum at this temperature; at T = 0 the value of its best assignment.
        entropy: Tensor = torch.special.entr(matrix).sum(dim=(-1, -2))
        return finite.view(-1, 1) * entropy + (matrix * scores).sum(dim=(-1, -2))

    def _unfold(self, axes: Axes, matrix: Tensor) -> None:
        """Store the matrices of the cells of `axes`, and of all families nested in them: `X_ij * X_inner`."""
        self.cells[axes] = matrix
        replicas, cells, _ = matrix.shape
        inside = {}
        for child in self._children[axes[-1]]:
            size = self.problem.families.all[child].size
            pairs = self._inner[child].view(replicas, cells, cells, size, size)
            inside[child] = pairs
            deeper = (
                (matrix.unsqueeze(-1).unsqueeze(-1) * pairs)
                .transpose(2, 3)
                .contiguous()
                .view(replicas, cells * size, -1)
            )
            self._unfold((*axes, child), deeper)
        self._couple(axes, matrix, inside)

    def _couple(self, axes: Axes, matrix: Tensor, inside: Mapping[int, Tensor]) -> None:
        """Cells that two siblings resolve together: within a pair of blocks, the product of both their matrices."""
        for tile in seen_coupled(self.problem, self.cluster):
            if tile.axes[:-2] == axes and tile.axes not in self.cells:
                first, second = (inside[child] for child in tile.axes[-2:])
                both = torch.einsum("rij,rijab,rijcd->riacjbd", matrix, first, second)
                self.cells[tile.axes] = both.contiguous().view(len(matrix), len(tile.positions), -1)


def seen_coupled(problem: Problem, cluster: Cluster) -> list[Tile]:
    """The coupled tiles of a cluster whose tensor also moves on another fold.

    Where more than two families act on a tile, its cells stay equally likely.
    """
    families, moving = problem.families.all, Counter(key for key, _ in problem.families.places)
    shared = [tile for tile in cluster.tiles if tile.coupled and len(tile.axes) > 2 and moving[tile.key] > 1]
    return [tile for tile in shared if all(families[child].parent == tile.axes[-3] for child in tile.axes[-2:])]


def _spread(rows: Tensor) -> Tensor:
    """Standard deviations; `Tensor.std` takes four times as long."""
    length: Tensor = torch.linalg.vector_norm(rows - rows.mean(dim=1, keepdim=True), dim=1)
    return length / sqrt(rows.shape[1])


def hard(problem: Problem, cluster: Cluster, start: Arrangement, replicas: int) -> dict[Axes, Tensor]:
    """A cluster's permutations as matrices; coupled cells stay equally likely."""
    perms = {index: start.perms[index] for index in cluster.families}
    found = {}
    for axes in {tile.axes for tile in cluster.tiles if not tile.coupled}:
        cells = torch.from_numpy(cell_map(problem.families, axes, perms))
        matrix = torch.nn.functional.one_hot(cells, len(cells)).float().to(problem.device)
        found[axes] = matrix.expand(replicas, *matrix.shape).contiguous()
    return found


def _is_chain(problem: Problem, axes: Sequence[int]) -> bool:
    return all(problem.families.all[axes[i + 1]].parent == axes[i] for i in range(len(axes) - 1))
