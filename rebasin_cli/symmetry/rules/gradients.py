"""Gradients in the forward pass: models whose output is a derivative (forces, physics-informed networks, flows).

What PyTorch decomposes is in the operation table; here are the gradients of convolutions and of pooling, which it does
not. A gradient with respect to a tensor is laid out like that tensor.
"""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine, reduce
from rebasin_cli.symmetry.arrange import split_dim
from rebasin_cli.symmetry.positions import AxisLayout, dimension
from rebasin_cli.symmetry.registry import Op, hold, resized, rule
from rebasin_cli.symmetry.rules.convolution import KERNEL, axes_alike
from rebasin_cli.symmetry.rules.convolution import SPACE as CONVOLVED
from rebasin_cli.symmetry.rules.pooling import SPACE

_RANKS = {"1d": 1, "2d": 2, "3d": 3}


@rule("aten.convolution_backward")
def convolution_backward(op: Op) -> list[AxisLayout]:
    """Gradients of the input, the weight and the bias, as far as they are asked for."""
    wanted = [bool(one) for one in op["output_mask"]]
    makers = (_input_gradient, _weight_gradient, _bias_gradient)
    return [make(op) for make, asked in zip(makers, wanted, strict=True) if asked]


def _input_gradient(op: Op) -> AxisLayout:
    """`sum_o grad[n, (g, o)] weight[(g, o), i]`; transposed, the weight is `((g, i), o)`."""
    weight, rank, groups = op.layout("weight"), len(op.shape("weight")) - 2, int(op["groups"])
    passing = axes_alike(op, rank)
    scattered = [2 + axis for axis in range(rank) if axis not in passing]
    gradient = hold(op.relations, op.layout("grad_output"), scattered, CONVOLVED)
    weight = hold(op.relations, weight, scattered, KERNEL)
    gradient = split_dim(op.relations, gradient, 1, groups)
    weight = split_dim(op.relations, weight, 0, groups)
    space, kernel = [("space", axis) for axis in range(rank)], [("kernel", axis) for axis in range(rank)]
    rows = ["i", "o"] if op["transposed"] else ["o", "i"]
    operands = [(gradient, ["n", "g", "o", *space]), (weight, ["g", *rows, *kernel])]
    found = combine(op.relations, operands, ["n", "g", "i", *space])
    found = replace(found, dims=(found.dims[0], (*found.dims[1], *found.dims[2]), *found.dims[3:]))
    return resized(op.relations, found, scattered, op.shape("input"), CONVOLVED)


def _weight_gradient(op: Op) -> AxisLayout:
    """`sum_n grad[n, (g, o)] input[n, (g, i)]`, at each position of the kernel."""
    rank, groups = len(op.shape("weight")) - 2, int(op["groups"])
    places = range(2, 2 + rank)
    split = [
        split_dim(op.relations, hold(op.relations, op.layout(name), places, CONVOLVED), 1, groups)
        for name in ("grad_output", "input")
    ]
    new, old = [("new", axis) for axis in range(rank)], [("old", axis) for axis in range(rank)]
    operands = [(split[0], ["n", "g", "o", *new]), (split[1], ["n", "g", "i", *old])]
    found = combine(op.relations, operands, ["g", "i", "o"] if op["transposed"] else ["g", "o", "i"])
    kernel = [dimension(size) for size in op.shape("weight")[2:]]
    dims = ((*found.dims[0], *found.dims[1]), found.dims[2], *kernel)
    return replace(found, dims=dims, fixed={**found.fixed, **{f: KERNEL for dim in kernel for f in dim}})


def _bias_gradient(op: Op) -> AxisLayout:
    gradient = op.relations.released(op.layout("grad_output"))
    return reduce(op.relations, replace(gradient, dims=(gradient.dims[1],)))


@rule(
    *(f"aten.avg_pool{dims}_backward" for dims in ("2d", "3d")),
    *(f"aten._adaptive_avg_pool{dims}_backward" for dims in ("2d", "3d")),
    *(f"aten.adaptive_max_pool{dims}_backward" for dims in ("2d", "3d")),
    *(f"aten.fractional_max_pool{dims}_backward" for dims in ("2d", "3d")),
    *(f"aten.max_pool{dims}_with_indices_backward" for dims in ("2d", "3d")),
    *(f"aten.replication_pad{dims}_backward" for dims in _RANKS),
    *(f"aten.upsample_nearest{dims}_backward" for dims in _RANKS),
    *(f"aten._upsample_nearest_exact{dims}_backward" for dims in _RANKS),
    "aten.upsample_linear1d_backward",
    "aten.upsample_bilinear2d_backward",
    "aten.upsample_bicubic2d_backward",
    "aten.upsample_trilinear3d_backward",
)
def pooling_backward(op: Op) -> AxisLayout:
    """Spread over the positions that were pooled, in the same sample and channel."""
    shape = op.result_shape
    rank = next(rank for name, rank in _RANKS.items() if name in op.call.name)
    lead, places = len(shape) - rank, range(len(shape) - rank, len(shape))
    held = [hold(op.relations, layout, places, SPACE) for layout in op.tensors if len(layout.dims) == len(shape)]
    labels = [[*range(lead), *((number, axis) for axis in range(rank))] for number in range(len(held))]
    found = combine(op.relations, list(zip(held, labels, strict=True)), labels[0])
    return resized(op.relations, found, places, shape, SPACE)


@rule("aten._cdist_backward")
def distances_backward(op: Op) -> AxisLayout:
    """With respect to `x1` (…, n, d), of distances (…, n, m) to `x2` (…, m, d)."""
    lead = list(range(len(op.result_shape) - 2))
    operands = [
        (op.layout("grad"), [*lead, "n", "m"]),
        (op.layout("x1"), [*lead, "n", "d"]),
        (op.layout("x2"), [*lead, "m", "d"]),
    ]
    return combine(op.relations, operands, [*lead, "n", "d"])
