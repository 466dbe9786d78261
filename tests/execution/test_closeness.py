"""Cosine and distance are what the formulas say, and exact where tensors agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebasin_cli.errors import NumericalError
from rebasin_cli.execution import closeness
from rebasin_cli.execution.closeness import Closeness, check_finite, same_bits


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
def test_sums_over_chunks_equal_the_formulas(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(7, 5, generator=generator).to(dtype) for _ in range(2))
    measured = Closeness()
    whole = closeness.CHUNK
    try:
        closeness.CHUNK = 4
        measured.add(a, b)
    finally:
        closeness.CHUNK = whole
    x, y = a.double().flatten(), b.double().flatten()
    assert measured.cosine == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)), abs=1e-12)
    assert measured.distance == pytest.approx(float((x - y).norm()), rel=1e-12)


def test_equal_tensors_are_exactly_equal() -> None:
    tensor = torch.randn(1000)
    measured = Closeness()
    measured.add(tensor, tensor.clone())
    assert (measured.cosine, measured.distance) == (1.0, 0.0)


def test_integers_do_not_count() -> None:
    measured = Closeness()
    measured.add(torch.tensor([3]), torch.tensor([9]))
    assert (measured.cosine, measured.distance) == (0.0, 0.0)


def test_bits_are_compared_and_not_values() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float16))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert same_bits(torch.zeros(0), torch.zeros(0))
    assert same_bits(torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_what_is_not_finite_is_counted_in_every_precision(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 4)
    check_finite(tensor.to(dtype), "fine", Path("f"))
    tensor[0, 1] = tensor[2, 2] = float("nan")
    with pytest.raises(NumericalError, match=r"f: tensor 'w' holds 2 NaN of 12 values"):
        check_finite(tensor.to(dtype), "w", Path("f"))
