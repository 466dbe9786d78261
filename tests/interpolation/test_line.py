"""The line goes through the checkpoints' own tensors, and leaves alone what cannot be interpolated."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebasin_cli.errors import UsageError
from rebasin_cli.interpolation.line import Line, Point, grid

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(["lerp", "slerp"]))
def test_the_ends_are_the_checkpoints_bit_for_bit(seed: int, of_a: torch.dtype, of_b: torch.dtype, mode: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = {"w": torch.randn(3, 5, generator=generator).to(of_a)}
    b = {"w": torch.randn(3, 5, generator=generator).to(of_b)}
    line = Line([a, b], mode="slerp" if mode == "slerp" else "lerp", parameters=["w"])
    assert torch.equal(line.tensor("w", Point(0, 0.0)), a["w"])
    assert torch.equal(line.tensor("w", Point(0, 1.0)), b["w"])
    middle = line.tensor("w", Point(0, 0.5))
    assert middle.dtype == (torch.float64 if torch.float64 in (of_a, of_b) else torch.float32)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_lerp_is_the_straight_line_and_fixed_where_the_ends_agree(lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    line = Line([{"w": a, "same": a}, {"w": b, "same": a}])
    straight = (1 - lam) * a.double() + lam * b.double()
    torch.testing.assert_close(line.tensor("w", Point(0, lam)).double(), straight, atol=1e-6, rtol=1e-6)
    assert torch.equal(line.tensor("same", Point(0, lam)), a)


def test_slerp_keeps_to_the_arc() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    line = Line([{"w": a, "buffer": a}, {"w": b, "buffer": b}], mode="slerp", parameters=["w"])
    for lam in (0.25, 0.5, 0.9):
        angle = lam * math.pi / 2
        expected = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)])
        torch.testing.assert_close(line.tensor("w", Point(0, lam)), expected)
        torch.testing.assert_close(line.tensor("buffer", Point(0, lam)), torch.lerp(a, b, lam))


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0])
def test_slerp_between_parallel_opposite_or_zero_vectors_is_lerp(factor: float) -> None:
    a = torch.tensor([1.0, 2.0])
    line = Line([{"w": a}, {"w": factor * a}], mode="slerp", parameters=["w"])
    torch.testing.assert_close(line.tensor("w", Point(0, 0.25)), torch.lerp(a, factor * a, 0.25))


def test_integers_come_from_the_nearer_end() -> None:
    line = Line([{"n": torch.tensor(3)}, {"n": torch.tensor(8)}])
    assert [int(line.tensor("n", Point(0, lam))) for lam in (0.0, 0.5, 0.6, 1.0)] == [3, 3, 8, 8]


def test_keys_that_not_all_have_are_left_out() -> None:
    assert Line([{"w": torch.ones(1), "count": torch.ones(1)}, {"w": torch.ones(1)}]).keys == ("w",)


def test_a_line_through_three_has_two_segments() -> None:
    points = grid(2, 3)
    assert [(point.segment, point.lam) for point in points] == [
        (0, 0.0),
        (0, 0.5),
        (0, 1.0),
        (1, 0.0),
        (1, 0.5),
        (1, 1.0),
    ]
    assert [point.end for point in points] == [0, None, 1, 1, None, 2]


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(UsageError, match="steps"):
        grid(0, 2)
    with pytest.raises(UsageError, match="at least two"):
        grid(3, 1)
