"""Regions of interest: boxes and space are pinned, channels pass through."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine
from rebasin_cli.symmetry.arrange import split_dim, view
from rebasin_cli.symmetry.positions import AxisLayout, fixed_layout
from rebasin_cli.symmetry.registry import Op, fixed_results, hold, hold_all, resized, rule

BOXES = "boxes"
SPACE = "spatial positions"


@rule("torchvision.nms")
def kept_boxes(op: Op) -> list[AxisLayout]:
    for layout in op.tensors:
        hold_all(op.relations, layout, BOXES)
    return list(fixed_results(op, BOXES))


@rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(op: Op) -> list[AxisLayout]:
    """(images, channels, H, W) and boxes -> (boxes, channels, h, w)."""
    layout = op.relations.released(hold(op.relations, op.layout("input"), [0, 2, 3], SPACE))
    hold_all(op.relations, op.layout("rois"), BOXES)
    rest = [fixed_layout(shape, BOXES) for shape in op.result_shapes[1:]]
    return [resized(op.relations, layout, [0, 2, 3], op.result_shape, SPACE), *rest]


@rule("torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def position_sensitive_regions(op: Op) -> list[AxisLayout]:
    """Channels are (c, h, w): each position in the box reads a channel of its own."""
    shape, channels = op.shape("input"), op.result_shape[1]
    layout = view(op.relations, op.layout("input"), [shape[0], channels, shape[1] // channels, *shape[2:]])
    layout = op.relations.released(hold(op.relations, layout, [0, 2, 3, 4], SPACE))
    hold_all(op.relations, op.layout("rois"), BOXES)
    kept = resized(op.relations, layout, [0, 2, 3, 4], [op.result_shape[0], channels, 1, *op.result_shape[2:]], SPACE)
    result = replace(kept, dims=(kept.dims[0], kept.dims[1], *kept.dims[3:]))
    rest = [fixed_layout(other, BOXES) for other in op.result_shapes[1:]]
    return [result, *rest]


@rule("torchvision.deform_conv2d")
def deformable_convolution(op: Op) -> AxisLayout:
    """A convolution that samples at `offset`; blocks of channels that share offsets are pinned."""
    layout, weight = op.layout("input"), op.layout("weight")
    groups, blocks = int(op["groups"]), int(op["offset_groups"])
    for name in ("offset", "mask"):
        if op.has(name) and op.layout(name).dims:
            hold_all(op.relations, op.layout(name), "offsets of a deformable convolution")
    layout = hold(op.relations, layout, [2, 3], SPACE)
    weight = hold(op.relations, weight, [2, 3], "convolution kernel positions")
    if blocks > 1:
        apart = hold(op.relations, split_dim(op.relations, layout, 1, blocks), [1], BOXES)
        layout = view(op.relations, apart, op.shape("input"))
    layout = split_dim(op.relations, layout, 1, groups)
    weight = split_dim(op.relations, weight, 0, groups)
    result = combine(
        op.relations,
        [(layout, ["n", "g", "i", "y", "x"]), (weight, ["g", "o", "i", "v", "u"])],
        ["n", "g", "o", "y", "x"],
    )
    result = replace(result, dims=(result.dims[0], (*result.dims[1], *result.dims[2]), *result.dims[3:]))
    result = resized(op.relations, result, [2, 3], op.result_shape, SPACE)
    if not op.has("bias"):
        return result
    return combine(op.relations, [(result, "ncyx"), (op.layout("bias"), "c")], "ncyx")
