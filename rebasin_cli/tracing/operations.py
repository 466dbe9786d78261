"""The one table of what each ATen operation is: a view, a copy, a contraction, linear, a norm, …

A row is an overload packet: all overloads and in-place forms of an operator (`aten.add` stands for `aten.add_.Tensor`
too). Rules of symmetry, cuts of parameters, activation capture and fake tensors all read these rows, so one row is all
that it takes to introduce a view-like operation. Operations that PyTorch tags as pointwise need no row for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import Flag, auto
from functools import lru_cache
from typing import Any

import torch


class Property(Flag):
    """What an operation is. The data argument is the first tensor argument, `mat1` or `batch1` where a bias leads.

    Members:
        VIEW: the result shares the memory of its argument (the schema says so).
        COPY: the result consists of elements of its arguments, in new memory; nothing is computed.
        SAME, RESHAPE, TRANSPOSE, EXPAND: all elements of one argument, in the same order, in other dimensions of the
            same order, with dimensions permuted, repeated along new dimensions.
        SEGMENT: each result is one evenly spaced segment of one axis (`segments`).
        DROP: a segment of length 1 whose axis is removed.
        PICK: whole positions along axes, selected by index tensors; with constant indices, a rearrangement.
        CONTRACTION: products summed over an axis that two arguments share.
        POINTWISE: every element of the result depends on the elements at its own position, with broadcasting.
        LINEAR: linear in the data argument (jointly in all terms of a sum), the others and any added bias aside.
        NORM: the data argument divided by its own scale along some axes, or by running statistics.
        HOMOGENEOUS: f(c x) = c f(x) for c > 0. Everything linear is.
        ODD: f(-x) = -f(x), any added bias aside. Everything linear is.
        INCIDENTAL: called or not depending on strides and batch size, not on what the model computes.
        META: its meta kernel gives the shapes, strides and dtypes of the real one, so it may be called directly.
        OBSERVED: activation matching prefers to observe units at what this operation reads.
        DECIDES: returns numbers to the model's Python code, or a shape that depends on numbers.
        OVERWRITES: replaces every element of its argument `self`.
        SHAPE_ONLY: reads of its argument `self` nothing but shape and dtype.
        MOVES: writes elements of its arguments to other places, and computes nothing.
        DECOMPOSED: PyTorch's own decomposition into other operations is followed in its place.
    """

    VIEW = auto()
    COPY = auto()
    SAME = auto()
    RESHAPE = auto()
    TRANSPOSE = auto()
    EXPAND = auto()
    SEGMENT = auto()
    DROP = auto()
    PICK = auto()
    CONTRACTION = auto()
    POINTWISE = auto()
    LINEAR = auto()
    NORM = auto()
    HOMOGENEOUS = auto()
    ODD = auto()
    INCIDENTAL = auto()
    META = auto()
    OBSERVED = auto()
    DECIDES = auto()
    OVERWRITES = auto()
    SHAPE_ONLY = auto()
    MOVES = auto()
    DECOMPOSED = auto()


VIEW, COPY, SAME, RESHAPE, TRANSPOSE = (
    Property.VIEW, Property.COPY, Property.SAME, Property.RESHAPE, Property.TRANSPOSE
)  # fmt: skip
EXPAND, SEGMENT, DROP, PICK, CONTRACTION = (
    Property.EXPAND, Property.SEGMENT, Property.DROP, Property.PICK, Property.CONTRACTION
)  # fmt: skip
POINTWISE, LINEAR, NORM, HOMOGENEOUS, ODD = (
    Property.POINTWISE, Property.LINEAR, Property.NORM, Property.HOMOGENEOUS, Property.ODD
)  # fmt: skip
INCIDENTAL, META, OBSERVED, DECIDES, OVERWRITES, SHAPE_ONLY, MOVES, DECOMPOSED = (
    Property.INCIDENTAL, Property.META, Property.OBSERVED, Property.DECIDES, Property.OVERWRITES, Property.SHAPE_ONLY,
    Property.MOVES, Property.DECOMPOSED,
)  # fmt: skip

WHOLE = SAME | RESHAPE | TRANSPOSE | EXPAND
"""Any of these: all elements of one argument, and the same rows hold the same numbers."""

ARRANGEMENT = WHOLE | SEGMENT | COPY
"""Any of these: positions of the arguments in another arrangement, nothing computed."""

_TABLE: dict[str, Property] = {
    # Views and copies of all elements.
    "_conj": VIEW | POINTWISE,
    "_neg_view": VIEW | POINTWISE | LINEAR,
    "_reshape_alias": VIEW | RESHAPE | INCIDENTAL,
    "_to_copy": COPY | SAME | POINTWISE,
    "_unsafe_view": COPY | RESHAPE | INCIDENTAL | META,
    "alias": VIEW | SAME | INCIDENTAL | META,
    "broadcast_to": VIEW | EXPAND,
    "clone": COPY | SAME | POINTWISE | INCIDENTAL | META,
    "conj": VIEW | POINTWISE,
    "contiguous": VIEW | SAME | INCIDENTAL,
    "detach": VIEW | SAME | INCIDENTAL | META,
    "expand": VIEW | EXPAND | INCIDENTAL | META,
    "expand_copy": COPY | EXPAND,
    "flatten": VIEW | RESHAPE,
    "imag": VIEW | POINTWISE | LINEAR,
    "lift": COPY | SAME | POINTWISE,
    "lift_fresh": VIEW | SAME | INCIDENTAL,
    "lift_fresh_copy": COPY | SAME | POINTWISE,
    "mT": VIEW | TRANSPOSE,
    "numpy_T": VIEW | TRANSPOSE,
    "permute": VIEW | TRANSPOSE | INCIDENTAL | META,
    "real": VIEW | POINTWISE | LINEAR,
    "reshape": VIEW | RESHAPE | INCIDENTAL,
    "resolve_conj": VIEW | POINTWISE,
    "resolve_neg": VIEW | POINTWISE,
    "squeeze": VIEW | RESHAPE | INCIDENTAL | META,
    "swapaxes": VIEW | TRANSPOSE,
    "t": VIEW | TRANSPOSE | INCIDENTAL | META,
    "transpose": VIEW | TRANSPOSE | INCIDENTAL | META,
    "unflatten": VIEW | RESHAPE,
    "unsqueeze": VIEW | RESHAPE | INCIDENTAL | META,
    "view": VIEW | RESHAPE | INCIDENTAL | META,
    "view_copy": COPY | RESHAPE,
    # Segments of an axis.
    "chunk": VIEW | SEGMENT,
    "narrow": VIEW | SEGMENT,
    "select": VIEW | SEGMENT | DROP | META,
    "slice": VIEW | SEGMENT | META,
    "split": VIEW | SEGMENT | META,
    "split_copy": COPY | SEGMENT,
    "split_with_sizes": VIEW | SEGMENT | META,
    "split_with_sizes_copy": COPY | SEGMENT,
    "tensor_split": VIEW | SEGMENT,
    "unbind": VIEW | SEGMENT | DROP | META,
    "unsafe_chunk": COPY | SEGMENT,
    "unsafe_split": COPY | SEGMENT,
    "unsafe_split_with_sizes": COPY | SEGMENT,
    # Other views: their rules are special.
    "as_strided": VIEW,
    "diagonal": VIEW,
    "unfold": VIEW,
    "view_as_complex": VIEW | LINEAR,
    "view_as_real": VIEW | LINEAR,
    # Elements rearranged and put together.
    "cat": COPY | LINEAR | META,
    "concat": COPY | LINEAR,
    "constant_pad_nd": COPY | META,  # linear where it pads with zeros only
    "flip": COPY | LINEAR,
    "repeat": COPY | LINEAR,
    "roll": COPY | LINEAR | META,
    "stack": COPY | LINEAR | META,
    # Rows selected by index tensors.
    "_unsafe_index": PICK,
    "index": PICK,
    "index_select": PICK,
    "embedding": LINEAR,
    "gather": MOVES,
    "index_add": LINEAR,
    "index_copy": MOVES,
    "index_put": MOVES,  # unless it accumulates
    "scatter_add": LINEAR,
    "select_scatter": MOVES,
    "slice_scatter": MOVES,
    # Contractions.
    "_grouped_mm": CONTRACTION | LINEAR,
    "_sparse_addmm": CONTRACTION | LINEAR,
    "_trilinear": CONTRACTION | LINEAR,
    "addbmm": CONTRACTION | LINEAR,
    "addmm": CONTRACTION | LINEAR | META | OBSERVED,
    "addmv": CONTRACTION | LINEAR,
    "baddbmm": CONTRACTION | LINEAR | OBSERVED,
    "bmm": CONTRACTION | LINEAR | META | OBSERVED,
    "convolution": CONTRACTION | LINEAR | OBSERVED,  # its meta kernel ignores that the input is channels-last
    "dot": CONTRACTION | LINEAR,
    "linear": CONTRACTION | LINEAR | OBSERVED,
    "mm": CONTRACTION | LINEAR | META | OBSERVED,
    "mv": CONTRACTION | LINEAR,
    "vdot": CONTRACTION | LINEAR,
    # Norms.
    "_fused_rms_norm": NORM | ODD,
    "_native_batch_norm_legit": NORM,
    "_native_batch_norm_legit_no_training": NORM,
    "_weight_norm_interface": NORM | ODD,
    "native_batch_norm": NORM,
    "native_group_norm": NORM | ODD | META,
    "native_layer_norm": NORM | ODD | META | OBSERVED,
    "rms_norm": NORM | ODD,
    # Reductions.
    "_softmax": META,
    "amax": HOMOGENEOUS,
    "amin": HOMOGENEOUS,
    "cumsum": LINEAR,
    "linalg_vector_norm": HOMOGENEOUS | META,
    "max": HOMOGENEOUS,
    "mean": LINEAR | META,
    "min": HOMOGENEOUS,
    "sort": HOMOGENEOUS,
    "std": HOMOGENEOUS,
    "sum": LINEAR | META,
    "topk": HOMOGENEOUS,
    # Pooling and resampling.
    "_adaptive_avg_pool2d": LINEAR,
    "_adaptive_avg_pool3d": LINEAR,
    "avg_pool2d": LINEAR | META,
    "avg_pool3d": LINEAR,
    "max_pool2d_with_indices": HOMOGENEOUS | META,
    "max_pool3d_with_indices": HOMOGENEOUS,
    "pixel_shuffle": LINEAR,
    "pixel_unshuffle": LINEAR,
    "upsample_bicubic2d": LINEAR,
    "upsample_bilinear2d": LINEAR,
    "upsample_linear1d": LINEAR,
    "upsample_nearest1d": LINEAR,
    "upsample_nearest2d": LINEAR,
    # Pointwise operations. Those that PyTorch tags itself are here for their other properties.
    "abs": HOMOGENEOUS,
    "add": POINTWISE | LINEAR | META,
    "addcdiv": POINTWISE,
    "addcmul": POINTWISE,
    "asinh": ODD,
    "atan": ODD,
    "clamp": POINTWISE,
    "clamp_max": POINTWISE,
    "clamp_min": POINTWISE,
    "complex": POINTWISE,
    "copy": POINTWISE | OVERWRITES | MOVES,
    "div": POINTWISE | LINEAR | META,
    "erf": ODD,
    "exp": META,
    "floor_divide": POINTWISE,
    "gelu": META,
    "hardsigmoid": META,
    "hardswish": POINTWISE | META,
    "hardtanh": POINTWISE | META,
    "leaky_relu": HOMOGENEOUS,
    "lerp": POINTWISE,
    "log_sigmoid_forward": POINTWISE,
    "masked_fill": POINTWISE,
    "maximum": POINTWISE | HOMOGENEOUS,
    "minimum": POINTWISE | HOMOGENEOUS,
    "mul": POINTWISE | LINEAR | META,
    "nan_to_num": POINTWISE,
    "native_dropout": POINTWISE,
    "neg": LINEAR,
    "polar": POINTWISE,
    "prelu": HOMOGENEOUS,
    "_prelu_kernel": HOMOGENEOUS,
    "relu": HOMOGENEOUS | META,
    "rrelu_with_noise": POINTWISE,
    "sigmoid": META,
    "sign": ODD,
    "silu": META,
    "sin": ODD,
    "sinh": ODD,
    "sub": POINTWISE | LINEAR | META,
    "tanh": ODD | META,
    "where": POINTWISE,
    # Losses in a forward pass, and gradients in models that return them (forces, flows).
    "_addmm_activation": DECOMPOSED,
    "_fused_rms_norm_backward": DECOMPOSED,
    "_log_softmax_backward_data": DECOMPOSED,
    "_prelu_kernel_backward": DECOMPOSED,
    "_softmax_backward_data": DECOMPOSED,
    "addr": DECOMPOSED,
    "binary_cross_entropy": DECOMPOSED,
    "binary_cross_entropy_backward": DECOMPOSED,
    "binary_cross_entropy_with_logits": DECOMPOSED,
    "diagonal_backward": DECOMPOSED,
    "dist": DECOMPOSED,
    "elu_backward": DECOMPOSED,
    "embedding_dense_backward": DECOMPOSED,
    "glu_backward": DECOMPOSED,
    "hardsigmoid_backward": DECOMPOSED,
    "hardswish_backward": DECOMPOSED,
    "hardtanh_backward": DECOMPOSED,
    "huber_loss": DECOMPOSED,
    "huber_loss_backward": DECOMPOSED,
    "leaky_relu_backward": DECOMPOSED,
    "log_sigmoid_backward": DECOMPOSED,
    "mse_loss": DECOMPOSED,
    "mse_loss_backward": DECOMPOSED,
    "multi_margin_loss": DECOMPOSED,
    "multilabel_margin_loss_forward": DECOMPOSED,
    "native_batch_norm_backward": DECOMPOSED,
    "native_group_norm_backward": DECOMPOSED,
    "native_layer_norm_backward": DECOMPOSED,
    "nll_loss2d_backward": DECOMPOSED,
    "nll_loss_backward": DECOMPOSED,
    "reflection_pad1d_backward": DECOMPOSED,
    "reflection_pad2d_backward": DECOMPOSED,
    "reflection_pad3d_backward": DECOMPOSED,
    "renorm": DECOMPOSED,
    "rot90": DECOMPOSED,
    "select_backward": DECOMPOSED,
    "slice_backward": DECOMPOSED,
    "smooth_l1_loss": DECOMPOSED,
    "smooth_l1_loss_backward": DECOMPOSED,
    "soft_margin_loss": DECOMPOSED,
    "soft_margin_loss_backward": DECOMPOSED,
    "softplus_backward": DECOMPOSED,
    "take": DECOMPOSED,
    "unfold_backward": DECOMPOSED,
    # Tensors made new.
    "empty": INCIDENTAL,
    "empty_like": SHAPE_ONLY,
    "fill": OVERWRITES,
    "full_like": SHAPE_ONLY,
    "new_empty": SHAPE_ONLY,
    "new_empty_strided": SHAPE_ONLY,
    "new_full": SHAPE_ONLY,
    "new_ones": SHAPE_ONLY,
    "new_zeros": SHAPE_ONLY,
    "ones_like": SHAPE_ONLY,
    "rand_like": SHAPE_ONLY,
    "randint_like": SHAPE_ONLY,
    "randn_like": SHAPE_ONLY,
    "zero": OVERWRITES,
    "zeros_like": SHAPE_ONLY,
    # Numbers that the model's code reads.
    "_local_scalar_dense": DECIDES,
    "_unique2": DECIDES,
    "allclose": DECIDES,
    "equal": DECIDES,
    "is_nonzero": DECIDES,
    "masked_select": DECIDES,
    "nonzero": DECIDES,
}

TABLE: dict[str, Property] = {f"aten.{name}": row for name, row in _TABLE.items()}
"""Properties by `namespace.operator`, in-place forms under the name of the functional one."""


def properties(name: str) -> Property:
    """All properties of an operation, those that follow from others included; none for one without a row."""
    found = TABLE.get(name, Property(0))
    if found & (WHOLE | SEGMENT | PICK):
        found |= LINEAR
    if found & LINEAR:
        found |= HOMOGENEOUS | ODD
    return found


def has(name: str, wanted: Property) -> bool:
    """Whether the operation has any of the wanted properties, by its row."""
    return bool(TABLE.get(name, Property(0)) & wanted)


def named(*wanted: Property) -> tuple[str, ...]:
    """Operations with any of the wanted properties; of a union of properties, all are wanted."""
    return tuple(name for name, row in TABLE.items() if any(row & each == each for each in wanted))


def is_counted(overload: str) -> bool:
    """Whether an operation counts where a pass is compared with the trace, operation by operation."""
    return not overload.startswith("prim.") and not has(overload.rpartition(".")[0], INCIDENTAL)


@lru_cache(maxsize=4096)
def is_pointwise(overload: str) -> bool:
    """Whether the operation is pointwise, by its row or by PyTorch's own tag."""
    namespace, name, variant = overload.split(".", 2)
    if has(f"{namespace}.{name.removesuffix('_')}", POINTWISE):
        return True
    packet = getattr(getattr(torch.ops, namespace), name, None)
    operator = getattr(packet, variant, None)
    return operator is not None and torch.Tag.pointwise in operator.tags


def segments(arguments: Mapping[str, Any], size: int) -> list[range]:
    """The positions that each result of a `SEGMENT` operation takes of an axis of length `size`.

    Args:
        arguments: of the call, by name. What they are called tells how the axis is cut.
        size: length of the axis.
    """
    if "index" in arguments:  # select
        index = int(arguments["index"]) % size
        return [range(index, index + 1)]
    if "length" in arguments:  # narrow
        start = int(arguments["start"]) % max(size, 1)
        return [range(start, start + int(arguments["length"]))]
    if "step" in arguments:  # slice
        return [range(*slice(arguments["start"], arguments["end"], int(arguments["step"])).indices(size))]
    edges = list(itertools.accumulate(_widths(arguments, size), initial=0))
    return [range(start, end) for start, end in itertools.pairwise(edges)]


def _widths(arguments: Mapping[str, Any], size: int) -> list[int]:
    """Lengths of segments that lie end to end."""
    given = arguments.get("split_sizes", arguments.get("split_size"))
    if isinstance(given, (list, tuple)):
        return [int(width) for width in given]
    if "indices" in arguments:  # tensor_split
        edges = [0, *(min(int(edge), size) for edge in arguments["indices"]), size]
        return [end - start for start, end in itertools.pairwise(edges)]
    if "sections" in arguments:
        count = int(arguments["sections"])
        return [size // count + (place < size % count) for place in range(count)]
    if "chunks" in arguments:
        given = -(-size // int(arguments["chunks"]))
    if given is None:  # unbind
        return [1] * size
    step = int(given)
    return [min(step, size - start) for start in range(0, size, step)] if size else [0]
