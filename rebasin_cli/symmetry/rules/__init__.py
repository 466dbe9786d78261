"""How the axes of each operation's results relate to those of its arguments: one family of operations a file."""

from rebasin_cli.symmetry.rules import (
    attention,
    convolution,
    creation,
    detection,
    index_meaning,
    indexing,
    joining,
    linear_algebra,
    matmul,
    normalization,
    pointwise,
    pooling,
    reduction,
    view,
)

__all__ = [
    "attention",
    "convolution",
    "creation",
    "detection",
    "index_meaning",
    "indexing",
    "joining",
    "linear_algebra",
    "matmul",
    "normalization",
    "pointwise",
    "pooling",
    "reduction",
    "view",
]
