"""Weight matching: planted permutations come back, the objective never falls, nothing is worse than the identity."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebasin_cli.errors import NumericalError, UsageError
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.result import PassReport
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from tests.benchmarks.matching_specs import Tensors, mlp, random_tensors, residual_mlp

Shapes = dict[str, tuple[int, ...]]


def objective(a: Tensors, b: Tensors) -> float:
    return sum(float((a[key].double() * b[key].double()).sum()) for key in a)


def recovered(spec: PermutationSpec, shapes: Shapes, seed: int = 0) -> bool:
    """Is A, its groups permuted at random, brought back to A bit for bit?"""
    spec.check(shapes)
    a = random_tensors(shapes, seed)
    b = apply(spec, random(spec, seed + 1000), a)
    found = weight_matching(spec, a, b, parameters=a.keys(), seed=seed)
    back = apply(spec, found.permutations, b)
    return found.converged and all(torch.equal(back[key], a[key]) for key in a)


def heads(name: str, count: int, size: int, dim: int) -> tuple[list[AxisGroup], Shapes]:
    """Separate projections q, k, v and out, heads as blocks, two families of units inside."""
    shapes = {f"{name}.{part}": (count * size, dim) for part in "qkv"} | {f"{name}.out": (dim, count * size)}
    sites = [Site(f"{name}.{part}", 0, inner=size) for part in "qkv"] + [Site(f"{name}.out", 1, inner=size)]
    groups = [AxisGroup(name, count, tuple(sites))]
    for head in range(count):
        parent, at = ParentBlock(name, head), head * size
        qk = (Site(f"{name}.q", 0, at), Site(f"{name}.k", 0, at))
        groups.append(AxisGroup(f"{name}.{head}.qk", size, qk, parent))
        groups.append(
            AxisGroup(f"{name}.{head}.v", size, (Site(f"{name}.v", 0, at), Site(f"{name}.out", 1, at)), parent)
        )
    return groups, shapes


def test_a_chain_is_recovered() -> None:
    assert recovered(*mlp([7, 24, 24, 24, 5]))


@pytest.mark.parametrize("seed", range(5))
def test_a_residual_stream_is_recovered(seed: int) -> None:
    assert recovered(*residual_mlp(30, 50, 5, 10, 10), seed=seed)


def test_heads_and_the_units_inside_them_are_recovered_together() -> None:
    assert recovered(PermutationSpec(tuple(heads("attention", 4, 6, 20)[0])), heads("attention", 4, 6, 20)[1])


def test_two_levels_of_nesting_are_recovered() -> None:
    """Key-value heads of 3, in each 2 query heads, in each 5 units that are theirs alone."""
    shapes = {"q": (30, 11), "k": (3, 11), "out": (11, 30)}
    groups = [AxisGroup("kv", 3, (Site("q", 0, inner=10), Site("k", 0), Site("out", 1, inner=10)))]
    for kv in range(3):
        sites = (Site("q", 0, kv * 10, inner=5), Site("out", 1, kv * 10, inner=5))
        groups.append(AxisGroup(f"kv{kv}.queries", 2, sites, ParentBlock("kv", kv)))
        for query in range(2):
            at = kv * 10 + query * 5
            parent = ParentBlock(f"kv{kv}.queries", query)
            groups.append(AxisGroup(f"kv{kv}.{query}.units", 5, (Site("q", 0, at), Site("out", 1, at)), parent))
    assert recovered(PermutationSpec(tuple(groups)), shapes)


def test_query_heads_beside_shared_value_units_are_recovered() -> None:
    """Grouped queries: on the output projection the query heads and the value units act on the same positions."""
    shapes = {"q": (24, 13), "k": (8, 13), "v": (8, 13), "out": (13, 24)}
    groups = [AxisGroup("kv", 2, tuple(Site(key, axis, inner=inner) for key, axis, inner in
                                       (("q", 0, 12), ("k", 0, 4), ("v", 0, 4), ("out", 1, 12))))]  # fmt: skip
    for kv in range(2):
        parent = ParentBlock("kv", kv)
        queries = (Site("q", 0, kv * 12, inner=4), Site("out", 1, kv * 12, inner=4))
        groups.append(AxisGroup(f"kv{kv}.queries", 3, queries, parent))
        values = (Site("v", 0, kv * 4), Site("out", 1, kv * 12, outer=3))
        groups.append(AxisGroup(f"kv{kv}.values", 4, values, parent))
    assert recovered(PermutationSpec(tuple(groups)), shapes)


def test_a_grouped_convolution_is_recovered() -> None:
    """Blocks of channels; inside each the inputs and the outputs of its own convolution, on one merged axis."""
    blocks, size = 4, 3
    shapes = {"first": (12, 9), "grouped": (12, 3, 2), "last": (8, 12), "norm": (12,)}
    sites = (Site("first", 0, inner=3), Site("grouped", 0, inner=3), Site("norm", 0, inner=3), Site("last", 1, inner=3))
    groups = [AxisGroup("blocks", blocks, sites)]
    for block in range(blocks):
        at, parent = block * size, ParentBlock("blocks", block)
        inputs = (Site("first", 0, at), Site("grouped", 0, at * size, outer=size, span=2))
        outputs = (Site("grouped", 0, at), Site("norm", 0, at), Site("last", 1, at))
        groups.append(AxisGroup(f"in{block}", size, inputs, parent))
        groups.append(AxisGroup(f"out{block}", size, outputs, parent))
    assert recovered(PermutationSpec(tuple(groups)), shapes)


def test_a_group_on_two_axes_of_one_tensor_is_recovered() -> None:
    """A recurrent cell with four gates: its state is on both axes of the recurrent weight."""
    shapes = {"input": (4 * 16, 10), "state": (4 * 16, 16), "bias": (4 * 16,), "head": (5, 16)}
    sites = (Site("input", 0, outer=4), Site("state", 0, outer=4), Site("bias", 0, outer=4), Site("state", 1))
    assert recovered(PermutationSpec((AxisGroup("state", 16, (*sites, Site("head", 1))),)), shapes)


def test_concatenation_flattening_and_listed_positions_are_recovered() -> None:
    shapes = {"left": (6, 5), "right": (4, 5), "joint": (3, 40), "shuffled": (12, 2)}
    spec = PermutationSpec((
        AxisGroup("left", 6, (Site("left", 0), Site("joint", 1, inner=4), Site("shuffled", 0, positions=tuple(
            (2 * unit, 2 * unit + 1) for unit in reversed(range(6)))))),
        AxisGroup("right", 4, (Site("right", 0), Site("joint", 1, offset=24, inner=4))),
    ))  # fmt: skip
    assert recovered(spec, shapes)


def test_children_of_some_blocks_only_stand_alone() -> None:
    """Only one of three blocks has units of its own."""
    shapes = {"w": (12, 9), "out": (7, 12)}
    spec = PermutationSpec((
        AxisGroup("blocks", 3, (Site("w", 0, inner=4), Site("out", 1, inner=4))),
        AxisGroup("units", 4, (Site("w", 0, 4), Site("out", 1, 4)), ParentBlock("blocks", 1)),
    ))  # fmt: skip
    a = random_tensors(shapes, 0)
    b = apply(spec, {"blocks": torch.tensor([2, 1, 0]), "units": torch.tensor([0, 1, 3, 2])}, a)
    found = weight_matching(spec, a, b, parameters=a.keys())
    assert all(torch.equal(apply(spec, found.permutations, b)[key], a[key]) for key in a)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["random", "path", "fixed"]))
def test_the_objective_never_falls_and_is_what_is_said(seed: int, order: str) -> None:
    spec, shapes = residual_mlp(5, 8, 2, 3, 3)
    a, b = random_tensors(shapes, seed), random_tensors(shapes, seed + 1)
    seen: list[PassReport] = []
    found = weight_matching(
        spec, a, b, parameters=a.keys(), seed=seed, order=order, heat=None, on_pass=seen.append  # type: ignore[arg-type]
    )  # fmt: skip
    for start in ("identity", "forward"):
        values = [report.objective for report in seen if report.start == start]
        assert values == sorted(values)
    assert found.objective_before == pytest.approx(objective(a, b), abs=1e-6)
    assert found.objective_after == pytest.approx(objective(a, apply(spec, found.permutations, b)), abs=1e-6)
    assert found.objective_after >= found.objective_before
    distance = sum(float((a[k] - apply(spec, found.permutations, b)[k]).double().square().sum()) for k in a) ** 0.5
    assert found.distance_after == pytest.approx(distance, rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_converged_means_that_no_swap_of_two_units_helps(seed: int) -> None:
    spec, shapes = mlp([3, 6, 6, 2])
    a, b = random_tensors(shapes, seed), random_tensors(shapes, seed + 1)
    found = weight_matching(spec, a, b, parameters=a.keys(), seed=seed)
    assert found.converged
    for group in spec.groups:
        for i in range(group.size):
            for j in range(i):
                perms = dict(found.permutations)
                perm = perms[group.name].clone()
                perm[[i, j]] = perm[[j, i]]
                perms[group.name] = perm
                assert objective(a, apply(spec, perms, b)) <= found.objective_after + 1e-4


def test_what_is_aligned_already_is_left_alone() -> None:
    spec, shapes = residual_mlp(12, 20, 3, 6, 4)
    a = random_tensors(shapes, 0)
    b = {key: value + 0.1 * random_tensors(shapes, 1)[key] for key, value in a.items()}
    found = weight_matching(spec, a, b, parameters=a.keys())
    assert found.already_aligned
    assert found.converged
    assert found.moved_units == 0
    assert [candidate.start for candidate in found.candidates] == ["identity"]
    assert found.objective_after == found.objective_before


@pytest.mark.parametrize(
    ("one", "other"), [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.bfloat16, torch.float32)]
)
def test_half_precision_and_mixed_pairs(one: torch.dtype, other: torch.dtype) -> None:
    spec, shapes = mlp([9, 40, 40, 4])
    a = random_tensors(shapes, 3)
    b = apply(spec, random(spec, 4), a)
    halves = {key: value.to(one) for key, value in a.items()}, {key: value.to(other) for key, value in b.items()}
    found = weight_matching(spec, *halves, parameters=a.keys())
    assert all(torch.equal(apply(spec, found.permutations, b)[key], a[key]) for key in a)


def test_half_precision_products_do_not_overflow() -> None:
    spec, shapes = mlp([9, 8, 4])
    a = {key: (value * 3000).to(torch.float16) for key, value in random_tensors(shapes, 3).items()}
    assert weight_matching(spec, a, a, parameters=a.keys()).already_aligned


def test_tensors_that_do_not_count_move_along() -> None:
    spec, shapes = mlp([5, 8, 3])
    a = random_tensors(shapes, 0)
    b = apply(spec, random(spec, 1), a)
    b["0.bias"] = torch.full((8,), float("nan"))
    found = weight_matching(spec, a, b, parameters=["0.weight", "1.weight"])
    assert torch.equal(apply(spec, found.permutations, b)["0.weight"], a["0.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_no_similarity_can_hold_are_named(value: float) -> None:
    spec, shapes = mlp([5, 8, 3])
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    a["0.weight"][2, 3] = b["0.weight"][4, 3] = value
    with pytest.raises(NumericalError, match=r"non-finite similarity in (layer0|0\.weight)"):
        weight_matching(spec, a, b, parameters=a.keys())


def test_the_same_seed_gives_the_same_result() -> None:
    spec, shapes = residual_mlp(10, 16, 3, 4, 4)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    first, again = (
        weight_matching(spec, a, b, parameters=a.keys(), seed=5, starts=("random", "random")) for _ in range(2)
    )
    assert all(torch.equal(first.permutations[name], again.permutations[name]) for name in first.permutations)
    timeless = [dataclasses.replace(r, permutations={}, seconds=0.0, candidates=()) for r in (first, again)]
    assert timeless[0] == timeless[1]


def test_without_time_the_identity_comes_back() -> None:
    spec, shapes = mlp([5, 30, 30, 3])
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found = weight_matching(spec, a, b, parameters=a.keys(), time_limit=0.0)
    assert found.timed_out
    assert not found.converged
    assert found.objective_after >= found.objective_before


def test_similarities_that_may_not_be_kept_change_nothing() -> None:
    spec, shapes = residual_mlp(10, 16, 3, 4, 4)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    kept, dropped = (weight_matching(spec, a, b, parameters=a.keys(), budget=budget) for budget in (1 << 30, 0))
    assert kept.objective_after == pytest.approx(dropped.objective_after, rel=1e-4)
    assert dropped.converged


def test_an_unknown_start_is_refused() -> None:
    spec, shapes = mlp([2, 3, 2])
    a = random_tensors(shapes, 0)
    with pytest.raises(UsageError, match="unknown start 'nowhere'"):
        weight_matching(spec, a, a, parameters=a.keys(), starts=("nowhere",))


def test_a_pass_limit_is_kept() -> None:
    spec, shapes = residual_mlp(20, 30, 4, 6, 6)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found = weight_matching(spec, a, b, parameters=a.keys(), max_passes=1)
    assert found.passes <= 1
