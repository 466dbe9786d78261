"""Sums of products: float64 between tensors, however wide the group, and however its similarities are kept."""

from __future__ import annotations

import pytest
import torch

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from tests.benchmarks.matching_specs import Tensors

WIDTHS = (64, 520)
HUGE = 3e8


def cancelling(size: int) -> tuple[Problem, Tensors, Tensors]:
    """One group on three matrices: two products that are huge and cancel, with a small one between them."""
    generator = torch.Generator().manual_seed(0)
    column, small = torch.ones(size, 2), torch.randn(size, 5, generator=generator)
    a = {"a huge": HUGE * column, "b small": small, "c huge": HUGE * column}
    b = {"a huge": column, "b small": small.flip(0), "c huge": -column}
    spec = PermutationSpec((AxisGroup("units", size, tuple(Site(key, 0) for key in a)),))
    return prepare(spec, a, b, tuple(a), budget=1 << 30, device="cpu"), a, b


@pytest.mark.parametrize("size", WIDTHS)
def test_small_products_survive_huge_ones_that_cancel(size: int) -> None:
    problem, a, b = cancelling(size)
    similarity = problem.similarity(Arrangement(problem.families))
    (found,) = similarity.of(problem.clusters[0]).values()
    expected = a["b small"].double() @ b["b small"].double().T
    assert found.dtype is (torch.float32 if size >= 512 else torch.float64)
    assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("size", WIDTHS)
def test_mended_similarities_are_those_made_anew(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    other = 600
    shapes = {"left": (size, other), "right": (other, size), "bias": (size,)}
    a, b = ({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(2))
    units = AxisGroup("units", size, (Site("left", 0), Site("right", 1), Site("bias", 0)))
    beside = AxisGroup("others", other, (Site("left", 1), Site("right", 0)))
    problem = prepare(PermutationSpec((units, beside)), a, b, tuple(a), budget=1 << 30, device="cpu")
    arrangement = Arrangement(problem.families)
    similarity = problem.similarity(arrangement)
    similarity.of(problem.clusters[0])
    for moved in (20, other):  # few columns, then more than wait for each other
        perm = torch.arange(other).numpy()
        perm[:moved] = perm[:moved][::-1]
        arrangement.set({problem.clusters[1].root: perm[None]})
        (mended,) = similarity.of(problem.clusters[0]).values()
        (anew,) = problem.similarity(arrangement).of(problem.clusters[0]).values()
        assert torch.allclose(mended.double(), anew.double(), atol=2e-3)
        assert not torch.equal(mended, torch.zeros_like(mended))
