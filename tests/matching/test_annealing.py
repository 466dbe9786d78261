"""Annealing: its similarities are those of real matrices, its matrices are doubly stochastic, its ends are good."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from rebasin_cli.matching import annealing
from rebasin_cli.matching.annealing import Balancing, anneal, hard, memory_needed
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.polish import DescentRun, Settings
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.matching.search import search
from rebasin_cli.matching.soft import Soft
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from tests.benchmarks.matching_specs import (
    cifar_resnet20,
    cifar_vit,
    free_residual_mlp,
    grouped_queries,
    mlp,
    random_tensors,
    residual_mlp,
    shapes_of,
)

BUILDS = {
    "residual network": partial(cifar_resnet20, 4),
    "transformer": partial(cifar_vit, 16, 2, 4),
    "grouped queries": partial(grouped_queries, 6, 2, 3, 4),
}


def problem_of(name: str, seed: int = 0) -> Problem:
    spec = BUILDS[name]()
    shapes = shapes_of(spec)
    a, b = random_tensors(shapes, seed), random_tensors(shapes, seed + 1)
    return prepare(spec, a, b, tuple(a))


def shuffled(problem: Problem, seed: int) -> Arrangement:
    generator = np.random.default_rng(seed)
    arrangement = Arrangement(problem.families)
    arrangement.set({f.index: np.stack([generator.permutation(f.size) for _ in f.names]) for f in problem.families.all})
    return arrangement


def stochastic(size: int, replicas: int, seed: int) -> Tensor:
    """Random doubly stochastic matrices: means of permutations."""
    generator = torch.Generator().manual_seed(seed)
    found = [
        sum(torch.eye(size)[torch.randperm(size, generator=generator)] for _ in range(3)) / 3 for _ in range(replicas)
    ]
    return torch.stack(found)


@pytest.mark.parametrize("name", BUILDS)
def test_hard_matrices_have_the_similarity_of_their_permutations(name: str) -> None:
    problem = problem_of(name)
    arrangements = [shuffled(problem, 3), shuffled(problem, 4)]
    soft = Soft(problem, 2)
    for cluster in problem.clusters:
        both = [hard(problem, cluster, arrangement, 1) for arrangement in arrangements]
        soft.set(cluster, {axes: torch.cat([one[axes] for one in both]) for axes in both[0]})
    for replica, arrangement in enumerate(arrangements):
        plain = problem.similarity(arrangement)
        for cluster in problem.clusters:
            if any(tile.coupled for other in problem.clusters for tile in other.tiles) and cluster.root == 0:
                continue  # the stream sees coupled cells, which permutations as matrices leave out
            expected, found = plain.of(cluster), soft.similarity(cluster)
            assert expected.keys() == found.keys()
            for axes, matrix in expected.items():
                torch.testing.assert_close(found[axes][replica].double(), matrix.double(), rtol=1e-4, atol=1e-3)


def test_the_similarity_is_that_of_doubly_stochastic_matrices() -> None:
    """Computed here with real matrices, for the stream and for a block's hidden units."""
    spec, shapes = residual_mlp(6, 9, 2, 4, 3)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    problem = prepare(spec, a, b, tuple(a))
    soft = Soft(problem, 2)
    matrices = []
    for number, cluster in enumerate(problem.clusters):
        matrices.append(stochastic(problem.families.all[cluster.root].size, 2, number))
        soft.set(cluster, {(cluster.root,): matrices[-1]})
    stream, hidden = problem.clusters[:2]
    for replica in range(2):
        x, h = matrices[0][replica], matrices[1][replica]
        expected = a["0.up"] @ (b["0.up"] @ x.T).T + a["0.down"].T @ (x @ b["0.down"])
        torch.testing.assert_close(soft.similarity(hidden)[hidden.root,][replica].float(), expected)
        part = a["0.up"].T @ (h @ b["0.up"]) + a["0.down"] @ (b["0.down"] @ h.T).T
        other = matrices[2][replica]
        part += a["1.up"].T @ (other @ b["1.up"]) + a["1.down"] @ (b["1.down"] @ other.T).T
        rest = soft.similarity(stream)[stream.root,][replica].float() - part
        still = {key for key in a if key.split(".")[0] not in "01"}
        ends = sum(
            a[key].reshape(6, -1) @ b[key].reshape(6, -1).T if a[key].shape[0] == 6 else a[key].T @ b[key]
            for key in still
            if 6 in a[key].shape
        )
        assert isinstance(ends, Tensor)
        torch.testing.assert_close(rest, ends, rtol=1e-4, atol=1e-4)


def test_before_anything_is_known_every_cell_is_as_likely_as_another() -> None:
    problem = problem_of("transformer")
    uniform, soft = Soft(problem, 1), Soft(problem, 1)
    for cluster in problem.clusters:
        cells = {tile.axes: len(tile.positions) for tile in cluster.tiles}
        soft.set(cluster, {axes: torch.full((1, count, count), 1 / count) for axes, count in cells.items()})
    for cluster in problem.clusters:
        for axes, matrix in soft.similarity(cluster).items():
            torch.testing.assert_close(uniform.similarity(cluster)[axes], matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILDS)
def test_matrices_are_doubly_stochastic_and_sharpen_as_it_cools(name: str) -> None:
    problem = problem_of(name)
    for cluster in problem.clusters:
        balancing = Balancing(problem, cluster, (0.0, 0.0), torch.Generator())
        purity: list[float] = []
        for temperature in (2.0, 0.5, 0.1):
            for _ in range(20):
                cells = balancing.matrices(Soft(problem, 2).similarity(cluster), temperature)
            for axes, matrix in cells.items():
                ones = torch.ones(matrix.shape[:2])
                assert (matrix >= 0).all()
                torch.testing.assert_close(matrix.sum(1), ones, rtol=0, atol=1e-4, msg=str(axes))
                torch.testing.assert_close(matrix.sum(2), ones, rtol=0, atol=2e-2, msg=str(axes))
            purity.append(float(cells[cluster.root,].square().sum()))
        assert purity == sorted(purity)


def test_siblings_that_share_cells_are_seen_through_both_their_matrices() -> None:
    """Each pair of blocks has the Kronecker product of both, weighted by how much the blocks go together."""
    problem = problem_of("grouped queries")
    cluster = next(one for one in problem.clusters if any(tile.coupled for tile in one.tiles))
    balancing = Balancing(problem, cluster, (0.0,), torch.Generator())
    cells = balancing.matrices(Soft(problem, 1).similarity(cluster), 0.7)
    both = next(tile.axes for tile in cluster.tiles if tile.coupled)
    root, first, second = both
    heads = cells[root,][0]
    for row in range(2):
        for column in range(2):
            weight = heads[row, column]
            queries = cells[root, first][0][3 * row : 3 * row + 3, 3 * column : 3 * column + 3] / weight
            values = cells[root, second][0][4 * row : 4 * row + 4, 4 * column : 4 * column + 4] / weight
            found = cells[both][0][12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            torch.testing.assert_close(found, weight * torch.kron(queries, values))


def test_what_says_nothing_breaks_no_tie() -> None:
    """All of B's units are equal but for rounding, so no unit may be preferred."""
    spec, shapes = mlp((5, 8, 3))
    a, b = random_tensors(shapes, 0), {key: torch.ones(shape) for key, shape in shapes.items()}
    problem = prepare(spec, a, b, tuple(a))
    cluster = problem.clusters[0]
    sums = {axes: matrix * 0 + 1e-14 for axes, matrix in Soft(problem, 1).similarity(cluster).items()}
    sums[cluster.root,][0, 0, 0] += 1e-13
    matrix = Balancing(problem, cluster, (1.0,), torch.Generator()).matrices(sums, 0.1)[cluster.root,]
    torch.testing.assert_close(matrix, torch.full((1, 8, 8), 1 / 8))


@pytest.mark.parametrize("name", BUILDS)
def test_annealing_ends_in_permutations_better_than_the_identity(name: str) -> None:
    problem = problem_of(name, 7)
    found = anneal(problem, Settings(), sweeps=12, noise=(0.0, 1.0), seed=1)
    assert len(found.vertices) == 2
    for vertex in found.vertices:
        arrangement = Arrangement(problem.families)
        arrangement.set(vertex)
        assert all((np.sort(perm, axis=1) == np.arange(perm.shape[1])).all() for perm in arrangement.perms)
        assert problem.value(arrangement) > problem.identity
    assert found.work > 0


def same(one: annealing.Annealed, other: annealing.Annealed) -> bool:
    pairs = zip(one.vertices, other.vertices, strict=True)
    return all(np.array_equal(left[index], right[index]) for left, right in pairs for index in left)


def test_without_noise_there_is_nothing_to_draw_and_with_noise_seeds_repeat() -> None:
    problem = problem_of("residual network")
    run = partial(anneal, problem, Settings(), sweeps=8)
    assert same(run(seed=1), run(seed=2))
    assert same(run(seed=1, noise=(1.0, 2.0)), run(seed=1, noise=(1.0, 2.0)))
    assert not same(run(seed=1, noise=(2.0,)), run(seed=2, noise=(2.0,)))


def test_little_heat_keeps_the_start_and_much_heat_forgets_it() -> None:
    problem = problem_of("residual network")
    run = DescentRun(problem, "here", 0, Settings(), shuffled(problem, 0).permutations())
    run.advance(None)
    assert run.converged

    def moved(start: Arrangement, hottest: float) -> int:
        vertex = anneal(problem, Settings(), sweeps=12, start=start, hottest=hottest).vertices[0]
        return sum(int((vertex[index] != perm).sum()) for index, perm in enumerate(start.perms))

    units = sum(perm.size for perm in run.arrangement.perms)
    assert moved(run.arrangement, 0.06) < 0.2 * units
    assert moved(shuffled(problem, 5), 1.0) > 0.6 * units


def test_past_the_deadline_there_are_permutations_all_the_same() -> None:
    problem = problem_of("transformer")
    start = shuffled(problem, 0)
    kept = anneal(problem, Settings(deadline=time.monotonic() - 1), sweeps=50, start=start)
    assert all(np.array_equal(kept.vertices[0][index], perm) for index, perm in enumerate(start.perms))


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_ten_descents_do_not(seed: int) -> None:
    spec, shapes = free_residual_mlp(12, 20, 3)
    a, b = random_tensors(shapes, seed), random_tensors(shapes, seed + 50)
    keys = tuple(a)
    descents = [
        weight_matching(spec, a, b, parameters=keys, starts=["identity"], seed=one).objective_after for one in range(10)
    ]
    found = search(spec, a, b, parameters=keys, starts=["annealing"], seed=seed)
    assert found.start == "annealing"
    assert found.objective_after > max(descents)


def test_replicas_take_memory_each() -> None:
    problem = problem_of("transformer")
    assert memory_needed(problem, 3) == 3 * memory_needed(problem) > 0


def test_siblings_whose_cells_nobody_else_sees_cost_no_memory() -> None:
    """Input beside output channels of a grouped convolution: every pair of cells would be a huge matrix."""
    kernel, groups, size = "kernel", 3, 4
    blocks = (Site(kernel, 0, inner=size), Site("before", 0, inner=size), Site("after", 1, inner=size))
    spec = [AxisGroup("groups", groups, (replace(blocks[0], inner=size * size, span=2), *blocks[1:]))]
    for group in range(groups):
        parent, first = ParentBlock("groups", group), group * size
        inputs = (Site(kernel, 0, offset=first * size, outer=size, span=2), Site("before", 0, offset=first))
        outputs = (Site(kernel, 0, offset=first * size, inner=size, span=2), Site("after", 1, offset=first))
        spec += [AxisGroup(f"in {group}", size, inputs, parent), AxisGroup(f"out {group}", size, outputs, parent)]
    shapes = {kernel: (groups * size, size, 3), "before": (groups * size, 5), "after": (5, groups * size)}
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    problem = prepare(PermutationSpec(tuple(spec)), a, b, tuple(a))
    (cluster,) = problem.clusters
    assert any(tile.coupled for tile in cluster.tiles)
    balancing = Balancing(problem, cluster, (0.0,), torch.Generator())
    cells = balancing.matrices(Soft(problem, 1).similarity(cluster), 0.5)
    assert max(matrix.shape[-1] for matrix in cells.values()) == groups * size
    assert memory_needed(problem) < 8 * (groups * size * size) ** 2
