"""The portfolio: what descents alone miss is found, steps of Frank–Wolfe are exact, and results are reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.frank_wolfe import MixedArrangement, Mixture, frank_wolfe, near_barycentre
from rebasin_cli.matching.nesting import worth
from rebasin_cli.matching.polish import Settings
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permutations, apply, identity, random
from rebasin_cli.spec import PermutationSpec
from tests.benchmarks.matching_specs import Tensors, free_residual_mlp, mlp, random_tensors, residual_mlp


def planted(
    stream: int, hidden: int, seed: int, noise: float = 0.0
) -> tuple[PermutationSpec, Tensors, Tensors, Tensors]:
    spec, shapes = free_residual_mlp(stream, hidden, 3)
    a = random_tensors(shapes, seed)
    other = random_tensors(shapes, seed + 500)
    noisy = {key: value + noise * other[key] for key, value in a.items()}
    return spec, a, apply(spec, random(spec, seed + 1000), noisy), noisy


@pytest.mark.parametrize("seed", range(6))
def test_planted_permutations_of_a_free_residual_stream_are_recovered(seed: int) -> None:
    spec, a, b, _ = planted(30, 50, seed)
    found = search(spec, a, b, parameters=a.keys(), seed=seed)
    assert all(torch.equal(value, a[key]) for key, value in apply(spec, found.permutations, b).items())
    assert found.converged


def test_a_perfect_match_ends_the_search() -> None:
    spec, a, b, _ = planted(30, 50, 0)
    found = search(spec, a, b, parameters=a.keys())
    assert not any("again" in candidate.start for candidate in found.candidates)


def test_a_perfect_match_asks_for_no_activations() -> None:
    spec, shapes = mlp((8, 24, 20, 5))
    a, asked = random_tensors(shapes, 0), []

    def build() -> Permutations:
        asked.append("noise")
        return identity(spec)

    b = apply(spec, random(spec, 1), a)
    found = search(spec, a, b, parameters=tuple(a), effort="standard", makers={"activations": {"noise": build}})
    assert found.cosine_after > 1 - 1e-12
    assert not asked


def test_wide_groups_make_a_search_fast_by_default() -> None:
    spec, shapes = mlp((2, 3000, 2))
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    assert {one.start for one in search(spec, a, b, parameters=tuple(a)).candidates} <= {"identity", "forward"}


def test_planted_permutations_are_recovered_through_noise() -> None:
    spec, a, b, noisy = planted(30, 50, 3, noise=1.0)
    found = search(spec, a, b, parameters=a.keys())
    assert all(torch.equal(value, noisy[key]) for key, value in apply(spec, found.permutations, b).items())


def small(seed: int = 0) -> Problem:
    spec, shapes = residual_mlp(6, 9, 2, 4, 3)
    a, b = random_tensors(shapes, seed), random_tensors(shapes, seed + 1)
    return prepare(spec, a, b, a.keys())


def dense(perm: np.ndarray) -> torch.Tensor:
    return torch.eye(len(perm), dtype=torch.float64)[torch.from_numpy(perm)]


def test_the_similarity_in_a_mixture_is_that_of_doubly_stochastic_matrices() -> None:
    """Computed here with real matrices: `X = 0.4 J + 0.6 P` for the stream seen from the first block's hidden units."""
    problem = small()
    stream = problem.families.all[0]
    generator = np.random.default_rng(0)
    vertex = {f.index: np.stack([generator.permutation(f.size)]) for f in problem.families.all}
    mixed = MixedArrangement(problem, Mixture(0.4, ((0.6, vertex),)))
    x = 0.4 * torch.full((6, 6), 1 / 6, dtype=torch.float64) + 0.6 * dense(vertex[stream.index][0])
    a, b = ({key: side[key].double() for key in problem.keys} for side in (problem.a, problem.b))
    expected = a["0.up"] @ (b["0.up"] @ x.T).T + a["0.down"].T @ (x @ b["0.down"])
    cluster = problem.clusters[1]
    assert torch.allclose(next(iter(mixed.similarity(cluster).values())), expected, atol=1e-4)


def test_rounding_never_lowers_the_multilinear_objective() -> None:
    """From the barycentre, whose value is computed here with real matrices."""
    problem = small(3)
    total = 0.0
    for key in problem.keys:
        a, b = problem.a[key].double(), problem.b[key].double()
        moved = [fold for fold in range(2) if (key, fold) in problem.families.places]
        for fold in moved:
            b = b.mean(dim=fold, keepdim=True).expand_as(b)
        total += float((a * b).sum())
    rounded, _ = frank_wolfe(problem, Settings(), near_barycentre(problem, 0, 0.0), iterations=0)
    assert problem.value(Arrangement(problem.families, rounded)) >= total - 1e-6


def test_frank_wolfe_ends_where_no_direction_leads_up_by_much() -> None:
    problem = small(5)
    found, _ = frank_wolfe(problem, Settings(), near_barycentre(problem, 0, 0.1))
    arrangement = Arrangement(problem.families, found)
    assert problem.value(arrangement) > problem.identity
    similarity = problem.similarity(arrangement)
    for cluster in problem.clusters:
        sums = similarity.of(cluster)
        here = worth(problem.families, sums, {index: arrangement.perms[index] for index in cluster.families})
        swapped = arrangement.perms[cluster.root].copy()
        swapped[0, [0, 1]] = swapped[0, [1, 0]]
        assert worth(problem.families, sums, {cluster.root: swapped}) <= here + 0.05 * problem.norms.scale


def test_more_effort_finds_no_less_and_seeds_repeat() -> None:
    spec, shapes = free_residual_mlp(8, 12, 3)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    values = [search(spec, a, b, parameters=a.keys(), effort=e).objective_after for e in ("fast", "standard")]
    assert values[0] <= values[1]
    first, again = (search(spec, a, b, parameters=a.keys(), seed=4) for _ in range(2))
    assert all(torch.equal(first.permutations[name], again.permutations[name]) for name in first.permutations)
    assert first.start == again.start
    assert len(first.candidates) > 4


def test_starts_from_activations_take_part_under_their_name() -> None:
    spec, a, b, _ = planted(8, 12, 0)
    truth = search(spec, a, b, parameters=a.keys()).permutations
    found = search(
        spec, a, b, parameters=a.keys(), starts=["activations"], makers={"activations": {"noise": lambda: truth}}
    )
    assert found.start == "noise"
    assert [candidate.start for candidate in found.candidates] == ["noise"]


def test_an_aligned_pair_costs_one_descent_from_each_simple_start() -> None:
    spec, a, _, noisy = planted(10, 14, 0, noise=0.1)
    found = search(spec, a, noisy, parameters=a.keys())
    assert found.already_aligned
    assert [one.start for one in found.candidates] == ["identity", "forward"]
    assert all(one.converged for one in found.candidates)
    assert all(torch.equal(found.permutations[name], perm) for name, perm in identity(spec).items())


def test_without_room_annealing_and_frank_wolfe_are_left_out() -> None:
    spec, a, b, _ = planted(10, 14, 0)
    found = search(spec, a, b, parameters=a.keys(), memory=0)
    assert {candidate.start for candidate in found.candidates} == {"identity", "forward"}
    assert found.converged


def test_without_time_there_is_still_a_result() -> None:
    spec, a, b, _ = planted(10, 14, 0)
    found = search(spec, a, b, parameters=a.keys(), time_limit=0.0)
    assert found.timed_out
    assert found.objective_after >= found.objective_before


def test_time_may_run_out_in_the_middle_of_annealing() -> None:
    spec, shapes = free_residual_mlp(40, 80, 4)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found = search(spec, a, b, parameters=a.keys(), effort="thorough", time_limit=1.0)
    assert found.timed_out
    assert found.objective_after > found.objective_before
    assert all((np.sort(perm) == np.arange(len(perm))).all() for perm in found.permutations.values())


def test_restarts_say_how_often_the_search_is_taken_up_again() -> None:
    spec, shapes = free_residual_mlp(8, 12, 3)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)

    def taken_up(restarts: int) -> list[str]:
        found = search(spec, a, b, parameters=a.keys(), effort="standard", restarts=restarts)
        return [one.start for one in found.candidates if "again" in one.start or "noise" in one.start]

    assert taken_up(0) == []
    assert 1 <= sum("again" in name for name in taken_up(2)) <= 2


def test_an_unknown_effort_is_refused() -> None:
    spec, a, b, _ = planted(3, 5, 0)
    with pytest.raises(UsageError, match="unknown effort 'heroic'"):
        search(spec, a, b, parameters=a.keys(), effort="heroic")  # type: ignore[arg-type]
