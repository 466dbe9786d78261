"""Products on another device than the files' tensors: nothing may mix the two.

No accelerator is needed: tensors that have a device but no numbers complain where two devices meet, as real ones would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rebasin_cli.matching.annealing import Balancing
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.products import Products
from rebasin_cli.matching.search import search
from rebasin_cli.matching.soft import Soft
from rebasin_cli.spec import PermutationSpec
from tests.benchmarks.matching_specs import cifar_resnet20, cifar_vit, grouped_queries, mlp, random_tensors, shapes_of

SPEC, SHAPES = mlp((8, 24, 20, 5))


def test_the_device_is_an_argument_and_the_cpu_its_default() -> None:
    a, b = random_tensors(SHAPES, 0), random_tensors(SHAPES, 1)
    for run in (weight_matching, search):
        there = run(SPEC, a, b, parameters=tuple(a), device=torch.device("cpu"))
        here = run(SPEC, a, b, parameters=tuple(a))
        assert there.objective_after == here.objective_after
        assert all(torch.equal(there.permutations[name], here.permutations[name]) for name in here.permutations)


plainly = torch.Tensor.to


def moved_to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, also to devices that this build of PyTorch does not have."""
    device = kwargs.get("device", args[0] if args and isinstance(args[0], torch.device) else tensor.device)
    if device == tensor.device:
        return plainly(tensor, *args, **kwargs)
    return torch.ops.aten._to_copy.default(tensor, dtype=kwargs.get("dtype", tensor.dtype), device=device)


def contiguous(tensor: Tensor) -> Tensor:
    """`Tensor.contiguous`, likewise."""
    plain = tensor.is_contiguous()
    return tensor if plain else torch.ops.aten.clone.default(tensor, memory_format=torch.contiguous_format)


@pytest.mark.parametrize("build", [cifar_resnet20, cifar_vit])
def test_products_stay_on_the_device_they_are_made_on(
    build: Callable[[], PermutationSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build()
    shapes = shapes_of(spec)
    real = random_tensors(shapes, 0)
    problem = prepare(spec, real, real, tuple(real))
    arrangement = Arrangement(problem.families)
    generator = np.random.default_rng(0)
    monkeypatch.setattr(torch.Tensor, "to", moved_to)
    with FakeTensorMode(allow_non_fake_inputs=True):
        sides = [{key: torch.empty(shape) for key, shape in shapes.items()} for _ in range(2)]
        products = Products((sides[0], sides[1]), arrangement, torch.device("cuda"))
        for cluster in problem.clusters:
            before = [products.gathers_of(cluster, tile) for tile in cluster.tiles]
            for family in problem.families.all:
                moved = [generator.permutation(family.size) for _ in family.names]
                arrangement.set({family.index: np.stack(moved)})
            for tile, seen in zip(cluster.tiles, before, strict=True):
                cells = len(tile.positions)
                into = torch.zeros(cells, cells, device="cuda")
                now = products.gathers_of(cluster, tile)
                products.product(into, tile, now, None)
                if seen.same_rows(now):
                    products.product(into, tile, now, seen)
                left, right = products.whole(tile, now)
                assert (left.device.type, right.device.type) == ("cuda", "cuda")


@pytest.mark.parametrize("build", [cifar_resnet20, cifar_vit, partial(grouped_queries, 5, 2, 3, 4)])
def test_annealing_stays_on_the_device_of_its_products(
    build: Callable[[], PermutationSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build()
    shapes = shapes_of(spec)
    real = random_tensors(shapes, 0)
    problem = prepare(spec, real, real, tuple(real))
    monkeypatch.setattr(torch.Tensor, "to", moved_to)
    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    with FakeTensorMode(allow_non_fake_inputs=True):
        sides = [{key: torch.empty(shape) for key, shape in shapes.items()} for _ in range(2)]
        there = replace(problem, a=sides[0], b=sides[1], device=torch.device("cuda"))
        soft = Soft(there, 2)
        balancings = [Balancing(there, cluster, (0.5, 1.0), torch.Generator()) for cluster in problem.clusters]
        for _ in range(2):
            for cluster, balancing in zip(problem.clusters, balancings, strict=True):
                soft.set(cluster, balancing.matrices(soft.similarity(cluster), 0.5))
                assert {matrix.device.type for matrix in balancing.cells.values()} == {"cuda"}
