"""The projection follows the gradient: permutations that weight matching does not see are learned from the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rebasin_cli.matching.learning.straight_through import StraightThrough, between
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permutations, apply, random
from tests.benchmarks.matching_specs import mlp, random_tensors


def descend(learner: StraightThrough, wanted: Mapping[str, Tensor]) -> int:
    """A step towards a network that is wanted at the midpoint; how many units moved."""
    between = learner.interpolated(0.5)
    network = between.network
    loss = sum(((network[key] - wanted[key]).square().sum() for key in network), torch.zeros(()))
    learner.step(torch.autograd.grad(loss, between.leaves))
    return learner.project()


def test_the_permutations_go_where_the_loss_is_lowest() -> None:
    """The loss wants a permutation that the weights alone say nothing of."""
    spec, shapes = mlp([6, 10, 10, 4])
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    wanted = between(spec, a, b, random(spec, 5), 0.5)
    start = search(spec, a, b, parameters=a.keys()).permutations
    learner = StraightThrough(spec, a, b, parameters=a.keys(), start=start, rate=0.1)

    def away(permutations: Permutations) -> float:
        network = between(spec, a, b, permutations, 0.5)
        return sum(float((network[key] - wanted[key]).square().sum()) for key in network)

    before = away(start)
    for _ in range(60):
        descend(learner, wanted)
        if away(learner.permutations) == 0:
            break
    assert away(learner.permutations) == 0 < before
    assert learner.objective(learner.permutations) < learner.objective(start)


def test_a_floor_is_kept() -> None:
    """The loss wants far less similarity than the floor allows."""
    spec, shapes = mlp([6, 10, 10, 4])
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    wanted = between(spec, a, b, random(spec, 5), 0.5)
    start = search(spec, a, b, parameters=a.keys()).permutations
    top = StraightThrough(spec, a, b, parameters=a.keys(), start=start, rate=0.05).objective(start)
    floor = 0.9 * top

    def learned(floor: float | None) -> list[float]:
        learner = StraightThrough(spec, a, b, parameters=a.keys(), start=start, rate=0.05, floor=floor)
        values = []
        for _ in range(80):
            descend(learner, wanted)
            values.append(learner.objective(learner.permutations))
        return values

    free, bound = learned(None), learned(floor)
    assert max(free[-20:]) < floor
    assert floor <= min(bound) < top


def test_without_a_gradient_nothing_moves() -> None:
    spec, shapes = mlp([5, 8, 3])
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    start = search(spec, a, b, parameters=a.keys()).permutations
    learner = StraightThrough(spec, a, b, parameters=a.keys(), start=start, rate=0.1)
    learner.step([torch.zeros_like(leaf) for leaf in learner.interpolated(0.5).leaves])
    assert learner.project() == 0
    assert all(torch.equal(learner.permutations[name], start[name]) for name in start)


def test_the_midpoint_is_the_mean_and_only_parameters_are_learned() -> None:
    spec, shapes = mlp([5, 8, 3])
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    a["steps"] = b["steps"] = torch.tensor(7)
    moved = random(spec, 2)
    halves = {k: v.half() if v.dim() else v for k, v in a.items()}
    found = between(spec, halves, b, moved, 0.5, learned=["0.weight"])
    permuted = apply(spec, moved, b)
    assert found["steps"].dtype == torch.int64
    assert [key for key in found if found[key].requires_grad] == ["0.weight"]
    for key in shapes:
        torch.testing.assert_close(found[key].detach(), (a[key] + permuted[key]) / 2, atol=2e-3, rtol=1e-3)
