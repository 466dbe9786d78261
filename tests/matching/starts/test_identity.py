"""The question that saves a descent: is B anywhere near A as it stands?"""

from __future__ import annotations

import pytest
import torch

from rebasin_cli import permutation
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.search import search
from rebasin_cli.matching.starts.identity import near_identity
from tests.benchmarks.matching_specs import mlp, random_tensors

SPEC, SHAPES = mlp((16, 64, 48, 64, 10))


def test_a_copy_with_noise_is_near_and_a_reordered_or_unrelated_one_is_not() -> None:
    a = random_tensors(SHAPES, 0)
    noisy = {key: tensor + 0.3 * torch.randn_like(tensor) for key, tensor in a.items()}
    moved = permutation.apply(SPEC, permutation.random(SPEC, 1), a)
    assert near_identity(prepare(SPEC, a, noisy, tuple(a)))
    assert not near_identity(prepare(SPEC, a, moved, tuple(a)))
    assert not near_identity(prepare(SPEC, a, random_tensors(SHAPES, 1), tuple(a)))


@pytest.mark.parametrize("seed", range(4))
def test_small_groups_keep_a_unit_each_by_chance(seed: int) -> None:
    spec, shapes = mlp((4, *[10] * 30, 3))
    a, b = random_tensors(shapes, seed), random_tensors(shapes, seed + 100)
    assert not near_identity(prepare(spec, a, b, tuple(a)))
    noisy = {key: tensor + 0.3 * torch.randn_like(tensor) for key, tensor in a.items()}
    assert near_identity(prepare(spec, a, noisy, tuple(a)))


def test_fast_follows_the_identity_only_where_it_leads_somewhere_or_was_asked_for() -> None:
    a, b = random_tensors(SHAPES, 0), random_tensors(SHAPES, 1)
    found = search(SPEC, a, b, parameters=tuple(a), effort="fast")
    assert {end.start for end in found.candidates} == {"forward"}
    asked = search(SPEC, a, b, parameters=tuple(a), effort="fast", starts=("identity", "forward"))
    assert {end.start for end in asked.candidates} == {"identity", "forward"}
    near = search(SPEC, a, {key: tensor + 0.01 for key, tensor in a.items()}, parameters=tuple(a), effort="fast")
    assert near.already_aligned
    assert near.converged
