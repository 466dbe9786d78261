"""Singular values s1 >= s2 of the two task vectors stacked as rows (2 x D), and what they say of the rank.

The squares of s1 and s2 are the eigenvalues of the 2 x 2 Gram matrix [[a, b], [b, c]] with a = |t1|^2, b = t1·t2 and
c = |t2|^2, so nothing of length D is decomposed:

    s1^2 = (a + c)/2 + sqrt(((a - c)/2)^2 + b^2)      s2^2 = (a c - b^2) / s1^2

With p_i = s_i / (s1 + s2), the effective rank is exp(-sum p_i log p_i) (Roy and Vetterli, "The effective rank", 2007):
1 for parallel vectors, 2 for orthogonal ones of one length.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import TYPE_CHECKING

from rebasin_cli.task_vectors.metric import Metric

if TYPE_CHECKING:
    from rebasin_cli.execution.closeness import Closeness

EPSILON = 1e-10


def pair_spectrum(sums: Closeness) -> tuple[float, float]:
    """The singular values (s1, s2) of the stack of two vectors, s1 >= s2 >= 0."""
    a, b, c = sums.square_a, sums.dot, sums.square_b
    largest = (a + c) / 2 + sqrt(((a - c) / 2) ** 2 + b * b)
    if largest <= 0.0:
        return 0.0, 0.0
    smallest = 0.0 if sums.square_difference == 0.0 else max(0.0, (a * c - b * b) / largest)
    return sqrt(largest), sqrt(smallest)


def effective_rank(sums: Closeness) -> float:
    """exp of the entropy of the normalised singular values: between 1 and 2."""
    values = pair_spectrum(sums)
    total = sum(values) + EPSILON
    return exp(-sum(s / total * log(s / total + EPSILON) for s in values))


def mergeability_score(sums: Closeness) -> float:
    """2 less the effective rank, within [0, 1]."""
    return min(1.0, max(0.0, 2.0 - effective_rank(sums)))


def stable_rank(sums: Closeness) -> float:
    """(s1 + s2)^2 / (s1^2 + s2^2)."""
    values = pair_spectrum(sums)
    return float(sum(values) ** 2 / (sum(s * s for s in values) + EPSILON))


def spectral_gap(sums: Closeness) -> float:
    """(s1 - s2) / s1."""
    largest, smallest = pair_spectrum(sums)
    return (largest - smallest) / (largest + EPSILON)


def singular_value_ratio(sums: Closeness) -> float:
    """s2 / s1."""
    largest, smallest = pair_spectrum(sums)
    return smallest / (largest + EPSILON)


METRICS = (
    Metric("effective_rank", "effective rank of the two vectors, from 1 to 2", "vectors", effective_rank, "lower"),
    Metric(
        "effective_rank_mergeability_score",
        "2 less the effective rank, in [0, 1]",
        "vectors",
        mergeability_score,
        "higher",
    ),
    Metric("stable_rank", "(s1 + s2)^2 / (s1^2 + s2^2) of the two vectors", "vectors", stable_rank, "lower"),
    Metric("spectral_gap", "(s1 - s2) / s1 of the two vectors", "vectors", spectral_gap, "higher"),
    Metric("singular_value_ratio", "s2 / s1 of the two vectors", "vectors", singular_value_ratio, "lower"),
    Metric("layerwise_effective_rank", "mean effective rank of the tensors", "layers", effective_rank, "lower"),
    Metric(
        "layerwise_effective_rank_mergeability_score",
        "mean of 2 less the effective rank of the tensors",
        "layers",
        mergeability_score,
        "higher",
    ),
)
