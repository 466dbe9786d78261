"""Objectives: each is what its name says, commutes with permutations, and never hides what the plain one became."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.search import search
from rebasin_cli.matching.weighing import OBJECTIVES, weigh
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from tests.benchmarks.matching_specs import Tensors, mlp, random_tensors, residual_mlp


def plain(a: Tensors, b: Tensors) -> float:
    return sum(float((a[key].double() * b[key].double()).sum()) for key in a)


def matrices(a: Tensors, b: Tensors) -> float:
    return sum(float((a[key] * b[key]).sum()) for key in a if a[key].dim() > 1)


def tensors(a: Tensors, b: Tensors) -> float:
    return sum(float(cosine_similarity(a[k].flatten(), b[k].flatten(), dim=0)) for k in a if a[k].dim() > 1)


def rows(a: Tensors, b: Tensors) -> float:
    return sum(float(cosine_similarity(a[k].flatten(1), b[k].flatten(1)).sum()) for k in a if a[k].dim() > 1)


STATED = {"plain": plain, "matrices": matrices, "tensors": tensors, "rows": rows}


def uneven(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    """Random weights whose tensors and rows differ in size."""
    drawn, sizes = random_tensors(shapes, seed), torch.Generator().manual_seed(seed)
    return {
        key: value * torch.rand(len(value), *[1] * (value.dim() - 1), generator=sizes) * 3 ** (number % 3)
        for number, (key, value) in enumerate(drawn.items())
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_reported_is_the_objective_and_it_has_not_fallen(name: str) -> None:
    spec, shapes = mlp([5, 12, 12, 4])
    a, b = uneven(shapes, 0), uneven(shapes, 1)
    found = search(spec, a, b, parameters=a.keys(), objective=name)
    moved = apply(spec, found.permutations, b)
    assert found.criterion.name == name
    assert found.criterion.before == pytest.approx(STATED[name](a, b), rel=1e-5)
    assert found.criterion.after == pytest.approx(STATED[name](a, moved), rel=1e-5)
    assert found.criterion.after >= found.criterion.before
    assert found.objective_before == pytest.approx(plain(a, b), rel=1e-5)
    assert found.objective_after == pytest.approx(plain(a, moved), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_planted_permutation_is_found_by_every_objective(name: str) -> None:
    spec, shapes = residual_mlp(12, 20, 3, 6, 4)
    a = uneven(shapes, 0)
    b = apply(spec, random(spec, 1), a)
    found = search(spec, a, b, parameters=a.keys(), objective=name)
    assert all(torch.equal(value, a[key]) for key, value in apply(spec, found.permutations, b).items())


@pytest.mark.parametrize("name", ["tensors", "rows"])
def test_weighing_commutes_with_permutations(name: str) -> None:
    """Also where a permutation moves blocks, and units inside them, and where sites span two axes."""
    shapes = {"first": (12, 9), "grouped": (12, 3, 2), "last": (8, 12), "norm": (12,)}
    sites = (Site("first", 0, inner=3), Site("grouped", 0, inner=3), Site("norm", 0, inner=3), Site("last", 1, inner=3))
    groups = [AxisGroup("blocks", 4, sites)]
    for block in range(4):
        at, parent = block * 3, ParentBlock("blocks", block)
        inputs = (Site("first", 0, at), Site("grouped", 0, at * 3, outer=3, span=2))
        outputs = (Site("grouped", 0, at), Site("norm", 0, at), Site("last", 1, at))
        groups.append(AxisGroup(f"in{block}", 3, inputs, parent))
        groups.append(AxisGroup(f"out{block}", 3, outputs, parent))
    spec = PermutationSpec(tuple(groups))
    b, moved = uneven(shapes, 0), random(spec, 1)
    after = weigh(name, spec, b, apply(spec, moved, b), list(b))
    before = apply(spec, moved, {key: after.a[key] for key in b})
    assert set(after.keys) == {"first", "grouped", "last"}
    for key in b:
        torch.testing.assert_close(after.b[key], before[key])
    by_row = after.a["first"].norm(dim=1)
    assert torch.allclose(by_row, torch.ones(12)) == (name == "rows")


def test_vectors_that_mislead_can_be_left_out() -> None:
    """Large scales of a norm, in another order than the weights say."""
    spec, shapes = mlp([9, 6, 4])
    a = random_tensors(shapes, 0)
    b = apply(spec, {"layer0": torch.tensor([3, 4, 5, 0, 1, 2])}, a)
    a["0.bias"] = b["0.bias"] = torch.arange(6) * 1000.0
    weights = [key for key in a if key.endswith("weight")]

    def restored(name: str) -> bool:
        found = search(spec, a, b, parameters=a.keys(), objective=name)
        moved = apply(spec, found.permutations, b)
        return all(torch.equal(moved[key], a[key]) for key in weights)

    assert [restored(name) for name in OBJECTIVES] == [False, True, True, True]


def test_zero_rows_and_half_precision_stay_finite() -> None:
    spec, shapes = mlp([5, 8, 3])
    a: dict[str, Tensor] = {key: value.half() for key, value in random_tensors(shapes, 0).items()}
    a["0.weight"][3] = 0
    found = search(spec, a, a, parameters=a.keys(), objective="rows")
    assert found.criterion.before == pytest.approx(8 + 3 - 1, rel=1e-3)


def test_an_unknown_objective_is_refused() -> None:
    spec, shapes = mlp([2, 3, 2])
    a = random_tensors(shapes, 0)
    with pytest.raises(UsageError, match="unknown objective 'best'"):
        search(spec, a, a, parameters=a.keys(), objective="best")
