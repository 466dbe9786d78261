"""Tensors made new: the same everywhere, or with an order of their own."""

from __future__ import annotations

from rebasin_cli.symmetry.positions import Layout, uniform_layout
from rebasin_cli.symmetry.registry import Op, fixed_results, rule


@rule(
    *(f"aten.{name}{ending}" for name in ("empty", "full", "ones", "zeros") for ending in ("", "_like")),
    *(f"aten.new_{name}" for name in ("empty", "full", "ones", "zeros", "empty_strided")),
    "aten.empty_strided",
    "aten.fill",
    "aten.scalar_tensor",
    "aten.zero",
)
def uniform(op: Op) -> list[Layout]:
    return [uniform_layout(shape) for shape in op.result_shapes]


@rule(
    *(f"aten.{name}{ending}" for name in ("rand", "randn", "randint") for ending in ("", "_like")),
    *(f"aten.{name}" for name in ("bernoulli", "exponential", "normal", "normal_functional", "randperm", "uniform")),
    "aten.arange",
    "aten.linspace",
    "aten.eye",
)
def ordered(op: Op) -> list[Layout]:
    return fixed_results(op, "numbers made by the model in this order")
