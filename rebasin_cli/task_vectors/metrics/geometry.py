"""Angle, product, distance and lengths of two vectors t1 and t2.

cosine = t1·t2 / (|t1| |t2|)      angle = degrees(acos(cosine))
distance = |t1 - t2|              magnitude ratio = min(|t1|, |t2|) / max(|t1|, |t2|)
"""

from __future__ import annotations

from math import acos, degrees, sqrt
from typing import TYPE_CHECKING

from rebasin_cli.task_vectors.metric import Metric

if TYPE_CHECKING:
    from rebasin_cli.execution.closeness import Closeness

SHORTEST = 1e-8
"""Length below which a vector has no ratio of magnitudes."""


def cosine(sums: Closeness) -> float:
    """cos(t1, t2); 0 where one of them vanishes."""
    return sums.cosine


def dot(sums: Closeness) -> float:
    """t1·t2."""
    return sums.dot


def distance(sums: Closeness) -> float:
    """|t1 - t2|."""
    return sums.distance


def angle(sums: Closeness) -> float:
    """The angle between t1 and t2 in degrees."""
    return degrees(acos(sums.cosine))


def magnitude_ratio(sums: Closeness) -> float:
    """The shorter length over the longer one; 0 where the longer one is below `SHORTEST`."""
    short, long = sorted((sqrt(sums.square_a), sqrt(sums.square_b)))
    return 0.0 if long < SHORTEST else short / long


METRICS = (
    Metric("task_vector_cosine_similarity", "cosine of the angle between the vectors", "vectors", cosine, "higher"),
    Metric("task_vector_dot_product", "inner product of the vectors", "vectors", dot, "higher"),
    Metric("task_vector_l2_distance", "length of their difference", "vectors", distance, "lower"),
    Metric("weight_space_angle", "angle between the vectors in degrees", "vectors", angle, "lower"),
    Metric("task_vector_magnitude_ratio", "shorter length over longer length", "vectors", magnitude_ratio, "higher"),
)
