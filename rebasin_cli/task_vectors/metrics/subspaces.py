"""How the singular values and singular subspaces of the 2-D tensors of two task vectors agree.

With `U_k` the first k left singular vectors, `V_k` the first or last k right ones, and k = min(10, rows, columns):

    subspace overlap = |U1_k^T U2_k|_F / k        right subspace overlap = |V1_k^T V2_k|_F / sqrt(k)
    interaction = mean of the squared singular values of V1_k^T V2_k = |V1_k^T V2_k|_F^2 / k

All of them depend on the subspaces only, not on the basis of a decomposition. A subspace that the matrix does not
determine (equal singular values at its border, such as the last ones of a matrix of low rank) has no value.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from rebasin_cli.task_vectors.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from rebasin_cli.task_vectors.decomposition import Decomposition

LONGEST_SPECTRUM = 100
EPSILON = 1e-8


def _squared_overlap(one: Tensor | None, other: Tensor | None) -> float | None:
    """|A^T B|_F^2 of two bases (d, k)."""
    return None if one is None or other is None else float((one.T @ other).square().sum())


def singular_value_overlap(one: Decomposition, other: Decomposition) -> float:
    """Cosine of the two spectra, each its first `LONGEST_SPECTRUM` singular values over the sum of all."""
    a, b = (found.spectrum[:LONGEST_SPECTRUM] / (found.spectrum.sum() + EPSILON) for found in (one, other))
    return float(a @ b / (a.norm() * b.norm()))


def subspace_overlap(one: Decomposition, other: Decomposition) -> float | None:
    square = _squared_overlap(one.left_top, other.left_top)
    return None if square is None else sqrt(square) / one.k


def right_top(one: Decomposition, other: Decomposition) -> float | None:
    square = _squared_overlap(one.right_top, other.right_top)
    return None if square is None else sqrt(square / one.k)


def right_bottom(one: Decomposition, other: Decomposition) -> float | None:
    square = _squared_overlap(one.right_bottom, other.right_bottom)
    return None if square is None else sqrt(square / one.k)


def interaction_top(one: Decomposition, other: Decomposition) -> float | None:
    square = _squared_overlap(one.right_top, other.right_top)
    return None if square is None else square / one.k


def interaction_bottom(one: Decomposition, other: Decomposition) -> float | None:
    square = _squared_overlap(one.right_bottom, other.right_bottom)
    return None if square is None else square / one.k


METRICS = (
    Metric(
        "singular_value_overlap",
        "cosine of the singular values, mean over 2-D tensors",
        "matrices",
        singular_value_overlap,
        "higher",
    ),
    Metric("subspace_overlap", "overlap of the first 10 left singular vectors", "matrices", subspace_overlap, "higher"),
    Metric(
        "right_subspace_overlap_top_k",
        "overlap of the first 10 right singular vectors",
        "matrices",
        right_top,
        "higher",
    ),
    Metric(
        "right_subspace_overlap_bottom_k",
        "overlap of the last 10 right singular vectors",
        "matrices",
        right_bottom,
        "higher",
    ),
    Metric(
        "interaction_matrix_overlap_top_k",
        "mean squared cosine of the first 10 right singular vectors",
        "matrices",
        interaction_top,
        "higher",
    ),
    Metric(
        "interaction_matrix_overlap_bottom_k",
        "mean squared cosine of the last 10 right singular vectors",
        "matrices",
        interaction_bottom,
        "higher",
    ),
)
