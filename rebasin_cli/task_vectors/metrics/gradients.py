"""The geometry of mean loss gradients, each network's on its own data: of the encoder's weights, and of the input."""

from __future__ import annotations

from rebasin_cli.task_vectors.metric import Metric, Source
from rebasin_cli.task_vectors.metrics.geometry import cosine, distance, dot


def _family(prefix: str, what: str, source: Source) -> tuple[Metric, ...]:
    return (
        Metric(f"{prefix}_cosine_similarity", f"cosine of the mean loss gradients of {what}", source, cosine, "higher"),
        Metric(f"{prefix}_l2_distance", f"distance of the mean loss gradients of {what}", source, distance, "lower"),
        Metric(f"{prefix}_dot_product", f"inner product of the mean loss gradients of {what}", source, dot, "higher"),
    )


METRICS = (
    *_family("encoder_gradient", "all weights but the output layer's", "encoder_gradients"),
    *_family("input_gradient", "the input", "input_gradients"),
)
