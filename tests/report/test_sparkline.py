"""A row of numbers as blocks keeps its order, and what is missing shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rebasin_cli.report.sparkline import BLOCKS, PLAIN, sparkline


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_higher_values_never_get_lower_blocks(values: list[float]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    for one, block in zip(values, line, strict=True):
        for other, its in zip(values, line, strict=True):
            assert one > other or BLOCKS.index(block) <= BLOCKS.index(its)


def test_the_extremes_get_the_extreme_blocks() -> None:
    assert sparkline([0.0, 1.0]) == BLOCKS[0] + BLOCKS[-1]
    assert sparkline([0.5], low=0.0, high=1.0) in BLOCKS[3:5]


def test_gaps_and_plain_streams() -> None:
    assert sparkline([1.0, None, 2.0])[1] == "·"
    assert sparkline([None, None]) == "··"
    assert set(sparkline([1.0, 2.0, 3.0], plain=True)) <= set(PLAIN)
    assert sparkline([2.0, 2.0]) == BLOCKS[0] * 2
