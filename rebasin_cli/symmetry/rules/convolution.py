"""Convolutions: grouped, depthwise, transposed; kernel positions and space are pinned."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine
from rebasin_cli.symmetry.arrange import split_dim
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.registry import Op, hold, resized, rule

KERNEL = "convolution kernel positions"
SPACE = "spatial positions of a convolution"


@rule("aten.convolution", "aten._convolution", "aten.convolution_overrideable", "aten.mkldnn_convolution")
def convolution(op: Op) -> AxisLayout:
    """Input channels (g, i), weight ((g, o), i): the channels of a group are multiplied by its own weights only."""
    layout, weight = op.layout("input"), op.layout("weight")
    rank = len(op.shape("weight")) - 2
    groups = int(op["groups"])
    transposed = bool(op["transposed"])
    space = range(2, 2 + rank)
    scattered = not _is_pointwise_kernel(op, rank)
    if scattered:
        layout = hold(op.relations, layout, space, SPACE)
        weight = hold(op.relations, weight, space, KERNEL)
    layout = split_dim(op.relations, layout, 1, groups)
    weight = split_dim(op.relations, weight, 0, groups)
    points = [("space", axis) for axis in range(rank)]
    kernel = [("kernel", axis) for axis in range(rank)]
    if transposed:
        operands = [(layout, ["n", "g", "i", *points]), (weight, ["g", "i", "o", *kernel])]
    else:
        operands = [(layout, ["n", "g", "i", *points]), (weight, ["g", "o", "i", *kernel])]
    result = combine(op.relations, operands, ["n", "g", "o", *points])
    result = replace(result, dims=(result.dims[0], (*result.dims[1], *result.dims[2]), *result.dims[3:]))
    if scattered:
        result = resized(op.relations, result, list(space), op.result_shape, SPACE)
    if not op.has("bias"):
        return result
    channels = ["n", "c", *points]
    return combine(op.relations, [(result, channels), (op.layout("bias"), ["c"])], channels)


def _is_pointwise_kernel(op: Op, rank: int) -> bool:
    """A kernel of size 1 with stride 1 and no padding treats all spatial positions alike, so they need no pin."""
    kernel = op.shape("weight")[2:]
    strides, padding = op.get("stride", [1]), op.get("padding", [0])
    return all(size == 1 for size in kernel) and all(s == 1 for s in strides) and all(p == 0 for p in padding)
