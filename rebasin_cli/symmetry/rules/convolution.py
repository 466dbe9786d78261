"""Convolutions: grouped, depthwise, transposed; kernel positions and space are pinned where the kernel spans several.

Each spatial axis is judged on its own. A kernel of extent 1 along it treats all its positions alike, so they pass, as
the units do under a kernel (k, 1) over (time, units). A kernel that covers the whole axis, and is applied at one place,
is a sum over it, as in a layer of text convolutions whose kernels span the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rebasin_cli.symmetry.algebra import Label, combine
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
    passing, summed = axes_alike(op, rank), _axes_summed(op, rank)
    scattered = [2 + axis for axis in range(rank) if axis not in passing and axis not in summed]
    if scattered:
        layout = hold(op.relations, layout, scattered, SPACE)
        weight = hold(op.relations, weight, scattered, KERNEL)
    layout = split_dim(op.relations, layout, 1, groups)
    weight = split_dim(op.relations, weight, 0, groups)
    points: list[Label] = [("space", axis) for axis in range(rank)]
    kernel: list[Label] = [("space" if axis in summed else "kernel", axis) for axis in range(rank)]
    kept: list[Label] = [("one", axis) if axis in summed else ("space", axis) for axis in range(rank)]
    if transposed:
        operands = [(layout, ["n", "g", "i", *points]), (weight, ["g", "i", "o", *kernel])]
    else:
        operands = [(layout, ["n", "g", "i", *points]), (weight, ["g", "o", "i", *kernel])]
    result = combine(op.relations, operands, ["n", "g", "o", *kept])
    result = replace(result, dims=(result.dims[0], (*result.dims[1], *result.dims[2]), *result.dims[3:]))
    if scattered:
        result = resized(op.relations, result, scattered, op.result_shape, SPACE)
    if not op.has("bias"):
        return result
    channels = ["n", "c", *kept]
    return combine(op.relations, [(result, channels), (op.layout("bias"), ["c"])], channels)


def axes_alike(op: Op, rank: int) -> set[int]:
    """Spatial axes along which the kernel has extent 1, with stride 1 and no padding: all positions are alike."""
    kernel = op.shape("weight")[2:]
    steps, padding = (_each(op.get(name, default), rank) for name, default in (("stride", 1), ("padding", 0)))
    return {axis for axis in range(rank) if (kernel[axis], steps[axis], padding[axis]) == (1, 1, 0)}


def _axes_summed(op: Op, rank: int) -> set[int]:
    """Spatial axes that the kernel covers as a whole, at one place."""
    if op["transposed"]:
        return set()
    kernel, image = op.shape("weight")[2:], op.shape("input")[-rank:]
    padding = _each(op.get("padding", 0), rank)
    return {axis for axis in range(rank) if kernel[axis] == image[axis] > 1 and padding[axis] == 0}


def _each(given: Any, rank: int) -> Sequence[int]:
    """One number for each spatial axis; a single one is for all of them."""
    numbers = [int(number) for number in (given if isinstance(given, (list, tuple)) else [given])]
    return numbers * rank if len(numbers) == 1 else numbers
