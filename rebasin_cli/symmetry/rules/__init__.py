"""How the positions of each operation's results relate to those of its arguments: one family, one file."""

from rebasin_cli.symmetry.rules import (
    attention,
    constant,
    convolution,
    detection,
    embedding,
    indexing,
    joining,
    matmul,
    normalization,
    picking,
    pointwise,
    pooling,
    reduction,
    sorting,
    view,
)

__all__ = [
    "attention",
    "constant",
    "convolution",
    "detection",
    "embedding",
    "indexing",
    "joining",
    "matmul",
    "normalization",
    "picking",
    "pointwise",
    "pooling",
    "reduction",
    "sorting",
    "view",
]
