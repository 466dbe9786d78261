"""The geometry of the mean activations of two fine-tuned networks on the same calibration data."""

from __future__ import annotations

from rebasin_cli.task_vectors.metric import Metric
from rebasin_cli.task_vectors.metrics.geometry import cosine, distance, dot, magnitude_ratio

METRICS = (
    Metric("activation_l2_distance", "distance of the mean activations", "activations", distance, "lower"),
    Metric("activation_cosine_similarity", "cosine of the mean activations", "activations", cosine, "higher"),
    Metric("activation_magnitude_ratio", "ratio of their lengths", "activations", magnitude_ratio, "higher"),
    Metric("activation_dot_product", "inner product of the mean activations", "activations", dot, "higher"),
)
