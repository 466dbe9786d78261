"""Pointwise operations, with broadcasting."""

from __future__ import annotations

import numpy as np

from rebasin_cli.symmetry.algebra import combine, elementwise
from rebasin_cli.symmetry.arrange import take
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.registry import Op, hold_all, rule
from rebasin_cli.tracing.operations import POINTWISE, VIEW, has, named


@rule(*(name for name in named(POINTWISE) if not has(name, VIEW)))
def pointwise(op: Op) -> list[AxisLayout]:
    """Dimensions are aligned from the right; all arguments are permuted alike."""
    shape = op.result_shape
    tensors = [layout for layout in op.tensors if len(layout.dims) <= len(shape)]
    if op.call.name == "aten.copy":
        tensors = [op.layout("src")]
    layout = elementwise(op.relations, tensors, shape)
    return [layout for _ in op.call.results]


@rule("aten._prelu_kernel", "aten.prelu")
def prelu(op: Op) -> AxisLayout:
    """One slope for all channels or one for each; the channels are dimension 1."""
    layout, weight = op.layout("self"), op.layout("weight")
    if len(weight.dims) == 1 and len(layout.dims) > 1:
        dims = (*[()] * 1, weight.dims[0], *[()] * (len(layout.dims) - 2))
        weight = AxisLayout(dims, weight.entries, weight.fixed)
    return elementwise(op.relations, [layout, weight], op.result_shape)


@rule("aten.bucketize")
def between(op: Op) -> AxisLayout:
    """The index of each value among the sorted boundaries."""
    hold_all(op.relations, op.layout("boundaries"), "bucket boundaries")
    return elementwise(op.relations, [op.layout("self")], op.result_shape)


@rule("aten.glu")
def glu(op: Op) -> AxisLayout:
    """The first half of a dimension, gated by the second."""
    layout = op.layout("self")
    place = op.dim("dim", len(layout.dims))
    halves = np.arange(layout.shape[place]).reshape(2, -1)
    return elementwise(op.relations, [take(op.relations, layout, place, half) for half in halves], op.result_shape)


@rule(
    "aten.fake_quantize_per_tensor_affine_cachemask",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "aten._fake_quantize_learnable_per_tensor_affine",
)
def rounded(op: Op) -> list[AxisLayout]:
    """One scale for all elements: scale and zero point are single numbers."""
    found = elementwise(op.relations, [op.layout("self")], op.result_shape)
    return [found for _ in op.call.results]


@rule("aten.fake_quantize_per_channel_affine_cachemask", "aten._fake_quantize_learnable_per_channel_affine")
def rounded_by_channel(op: Op) -> list[AxisLayout]:
    """A scale and a zero point for each position along one axis."""
    rank = len(op.result_shape)
    along = [op.dim("axis", rank)]
    by_channel = [(op.layout(name), along) for name in ("scale", "zero_point")]
    found = combine(op.relations, [(op.layout("self"), list(range(rank))), *by_channel], range(rank))
    return [found for _ in op.call.results]
