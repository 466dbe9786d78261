"""The formulas of the metrics, written out with numpy in float64; they share no code with the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TOP = 10


def flat(vector: Mapping[str, Array]) -> Array:
    return np.concatenate([vector[key].reshape(-1) for key in sorted(vector)])


def rank_of(one: Array, other: Array) -> tuple[float, Array]:
    values = np.linalg.svd(np.stack([one, other]), compute_uv=False)
    shares = values / (values.sum() + 1e-10)
    return float(np.exp(-(shares * np.log(shares + 1e-10)).sum())), values


def mean_over_matrices(
    one: Mapping[str, Array], other: Mapping[str, Array], formula: Callable[[Array, Array], float]
) -> float | None:
    found = [formula(one[key], other[key]) for key in one if one[key].ndim == 2]
    return float(np.mean(found)) if found else None


def spectra(a: Array, b: Array) -> float:
    x, y = (np.linalg.svd(m, compute_uv=False) for m in (a, b))
    x, y = x[:100] / (x.sum() + 1e-8), y[:100] / (y.sum() + 1e-8)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def left(a: Array, b: Array) -> float:
    k = min(TOP, *a.shape)
    x, y = (np.linalg.svd(m, full_matrices=False)[0][:, :k] for m in (a, b))
    return float(np.linalg.norm(x.T @ y) / k)


def right(a: Array, b: Array, *, last: bool, interaction: bool) -> float:
    k = min(TOP, *a.shape)
    x, y = (np.linalg.svd(m, full_matrices=False)[2] for m in (a, b))
    x, y = (x[-k:], y[-k:]) if last else (x[:k], y[:k])
    product = x @ y.T
    if interaction:
        return float(np.mean(np.linalg.svd(product, compute_uv=False) ** 2))
    return float(np.linalg.norm(product) / np.sqrt(k))


def of_two_vectors(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, float | None]:
    a, b = flat(one), flat(other)
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    cosine = float(np.clip(a @ b / (na * nb), -1, 1))
    rank, values = rank_of(a, b)
    return {
        "task_vector_cosine_similarity": cosine,
        "task_vector_dot_product": float(a @ b),
        "task_vector_l2_distance": float(np.linalg.norm(a - b)),
        "weight_space_angle": float(np.degrees(np.arccos(cosine))),
        "task_vector_magnitude_ratio": float(min(na, nb) / max(na, nb)),
        "effective_rank": rank,
        "effective_rank_mergeability_score": float(np.clip(2 - rank, 0, 1)),
        "stable_rank": float(values.sum() ** 2 / ((values**2).sum() + 1e-10)),
        "spectral_gap": float((values[0] - values[1]) / (values[0] + 1e-10)),
        "singular_value_ratio": float(values[1] / (values[0] + 1e-10)),
    }


def of_layers(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, float | None]:
    ranks, weights = [], []
    for key in one:
        weight = np.linalg.norm(one[key]) + np.linalg.norm(other[key])
        if weight >= 1e-10:
            ranks.append(rank_of(one[key].reshape(-1), other[key].reshape(-1))[0])
            weights.append(weight)
    mean = float(np.average(ranks, weights=weights))
    return {
        "layerwise_effective_rank": mean,
        "layerwise_effective_rank_mergeability_score": float(np.clip(2 - mean, 0, 1)),
    }


def evaluate_directly(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, float | None]:
    """Every metric of two task vectors that needs no data."""
    found = of_two_vectors(one, other) | of_layers(one, other)
    found["singular_value_overlap"] = mean_over_matrices(one, other, spectra)
    found["subspace_overlap"] = mean_over_matrices(one, other, left)
    for end in ("top", "bottom"):
        for name in ("right_subspace_overlap", "interaction_matrix_overlap"):
            formula = partial(right, last=end == "bottom", interaction=name.startswith("interaction"))
            found[f"{name}_{end}_k"] = mean_over_matrices(one, other, formula)
    return found
