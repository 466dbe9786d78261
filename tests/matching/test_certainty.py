"""The search ends where two starts agree by a wide margin, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.certainty import decided
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import apply, random
from tests.benchmarks.matching_specs import mlp, random_tensors

SPEC, SHAPES = mlp((8, 24, 20, 5))


def noisy_copy(noise: float, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    a, other = random_tensors(SHAPES, seed), random_tensors(SHAPES, seed + 1)
    return a, apply(SPEC, random(SPEC, seed + 2), {key: value + noise * other[key] for key, value in a.items()})


@pytest.mark.parametrize("seed", range(3))
def test_a_noisy_copy_is_found_by_the_descents_and_nothing_more_is_tried(seed: int) -> None:
    a, b = noisy_copy(0.1, seed)
    found = search(SPEC, a, b, parameters=tuple(a), effort="standard")
    assert found.stopped == "margin"
    assert {candidate.start for candidate in found.candidates} == {"identity", "forward"}
    undone = random(SPEC, seed + 2)
    for name, perm in found.permutations.items():
        assert torch.equal(undone[name][perm], torch.arange(len(perm)))


def test_networks_without_a_common_origin_are_searched_to_the_end() -> None:
    a, b = random_tensors(SHAPES, 0), random_tensors(SHAPES, 1)
    found = search(SPEC, a, b, parameters=tuple(a), effort="standard")
    assert found.stopped == "effort"
    assert len(found.candidates) > 2


def test_an_exact_copy_ends_at_the_bound_and_equal_weights_by_agreement() -> None:
    a, b = noisy_copy(0.0)
    assert search(SPEC, a, b, parameters=tuple(a), effort="standard").stopped == "bound"
    tuned = {key: value + 1e-3 * random_tensors(SHAPES, 7)[key] for key, value in a.items()}
    assert search(SPEC, a, tuned, parameters=tuple(a), effort="standard").stopped == "agreement"


def test_a_start_that_was_asked_for_is_not_left_out() -> None:
    a, b = noisy_copy(0.2)
    found = search(SPEC, a, b, parameters=tuple(a), starts=("identity", "forward", "annealing"))
    assert "annealing" in {candidate.start.partition(" ")[0] for candidate in found.candidates}


def of_rows(rows: Tensor) -> bool:
    """Whether B = A is decided, for a layer of these rows and a readout that tells them apart as little."""
    spec, shapes = mlp((rows.shape[1], rows.shape[0], 2))
    a = {key: torch.zeros(shape) for key, shape in shapes.items()}
    a[next(key for key, shape in shapes.items() if shape == tuple(rows.shape))] = rows
    problem = prepare(spec, a, a, tuple(a))
    return decided(problem, Arrangement(problem.families))


def test_twins_are_never_decided_and_units_without_weights_do_not_matter() -> None:
    rows = torch.eye(6)
    assert of_rows(rows)
    assert not of_rows(torch.cat([rows, rows[:1]]))
    assert not of_rows(rows + 1)
    assert of_rows(torch.cat([rows, torch.zeros(2, 6)]))
