"""Every metric equals its formula, evaluated on its own in float64 with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.task_vectors.decomposition import decompose
from rebasin_cli.task_vectors.measure import TensorPart, assemble, tensor_part, undetermined_tensors
from rebasin_cli.task_vectors.metrics import all_metrics, chosen_metrics
from rebasin_cli.task_vectors.vectors import TaskVector, pairs_of, sums_of_rows
from tests.task_vectors.formulas import evaluate_directly

SHAPES = {"a.weight": (40, 50), "a.bias": (40,), "b.weight": (6, 40), "c.weight": (3, 4, 3, 3), "d.weight": (60, 45)}


def network(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {key: scale * torch.randn(shape, generator=draw) for key, shape in SHAPES.items()}


def task_vectors(count: int) -> list[TaskVector]:
    """Fine-tunings of one base whose differences share a part, so that nothing is orthogonal by chance."""
    base, shared = network(0), network(1, 0.02)
    return [
        TaskVector({key: base[key] + shared[key] + own[key] for key in base}, base)
        for own in (network(seed, 0.03) for seed in range(2, 2 + count))
    ]


def test_all_metrics_equal_a_separate_evaluation_of_their_formulas() -> None:
    vectors = task_vectors(3)
    metrics = chosen_metrics((), data=False)
    parts = [tensor_part(vectors, key, metrics) for key in SHAPES]
    found = {one.metric.name: one for one in assemble(metrics, parts, 3, {}, per_layer=True)}
    assert len(found) == 18
    dicts = [{key: one.matrix(key).numpy() for key in SHAPES} for one in vectors]
    for pair, (i, j) in enumerate(pairs_of(3)):
        wanted = evaluate_directly(dicts[i], dicts[j])
        assert set(wanted) == set(found)
        for name, value in wanted.items():
            assert found[name].values[pair] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    layers = found["layerwise_effective_rank"].layers[0]
    assert set(layers) == set(SHAPES)
    for key in SHAPES:
        alone = evaluate_directly({key: dicts[0][key]}, {key: dicts[1][key]})
        assert layers[key] == pytest.approx(alone["effective_rank"], abs=1e-6)


def test_metrics_of_data_are_the_formulas_on_one_vector_of_each_network() -> None:
    rows = list(torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0)))
    metrics = [metric for metric in all_metrics() if metric.needs_data]
    assert len(metrics) == 10
    sums = {metric.source: sums_of_rows(rows) for metric in metrics}
    found = {one.metric.name: one.values for one in assemble(metrics, [], 3, sums)}
    for pair, (i, j) in enumerate(pairs_of(3)):
        a, b = rows[i].double().numpy(), rows[j].double().numpy()
        lengths = np.linalg.norm(a), np.linalg.norm(b)
        wanted = {
            "cosine_similarity": a @ b / (lengths[0] * lengths[1]),
            "l2_distance": np.linalg.norm(a - b),
            "dot_product": a @ b,
            "magnitude_ratio": min(lengths) / max(lengths),
        }
        for name, values in found.items():
            formula = next(text for text in wanted if name.endswith(text))
            assert values[pair] == pytest.approx(wanted[formula], rel=1e-9), name


def test_equal_task_vectors_are_as_alike_as_can_be() -> None:
    one = task_vectors(1)[0]
    metrics = chosen_metrics((), data=False)
    parts = [tensor_part([one, one], key, metrics) for key in SHAPES]
    found = {entry.metric.name: entry.values[0] for entry in assemble(metrics, parts, 1, {})}
    assert found["task_vector_l2_distance"] == 0.0
    assert found["task_vector_cosine_similarity"] == 1.0
    assert found["weight_space_angle"] == 0.0
    assert found["effective_rank"] == pytest.approx(1.0, abs=1e-6)
    assert found["right_subspace_overlap_bottom_k"] == pytest.approx(1.0, abs=1e-9)


def test_a_small_distance_is_summed_from_differences() -> None:
    base, far = network(0), network(5, 0.1)
    near = {key: value.double() + 1e-9 for key, value in far.items()}
    vectors = [TaskVector(far, base), TaskVector(near, base)]
    metrics = chosen_metrics(("task_vector_l2_distance",), data=False)
    parts = [tensor_part(vectors, key, metrics) for key in SHAPES]
    (found,) = assemble(metrics, parts, 1, {})
    elements = sum(value.numel() for value in base.values())
    assert found.values[0] == pytest.approx(1e-9 * elements**0.5, rel=1e-6)


def test_a_task_vector_that_is_zero_has_no_subspaces() -> None:
    base = network(0)
    vectors = [TaskVector(base, base), task_vectors(1)[0]]
    metrics = chosen_metrics((), data=False)
    parts = [tensor_part(vectors, key, metrics) for key in SHAPES]
    found = {entry.metric.name: entry.values[0] for entry in assemble(metrics, parts, 1, {})}
    assert found["subspace_overlap"] is None
    assert found["singular_value_overlap"] is None
    assert found["task_vector_cosine_similarity"] == 0.0


@pytest.mark.parametrize("shape", [(200, 60), (60, 200), (70, 70)])
def test_the_gram_matrix_gives_the_subspaces_of_the_matrix(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = decompose(matrix)
    assert found is not None
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    assert found.spectrum.numpy() == pytest.approx(values, rel=1e-9)
    for mine, wanted in (
        (found.left_top, left[:, :10]),
        (found.right_top, right[:10].T),
        (found.right_bottom, right[-10:].T),
    ):
        assert mine is not None
        assert np.linalg.norm(mine.numpy().T @ wanted) ** 2 == pytest.approx(10, abs=1e-8)


def test_the_last_vectors_of_a_matrix_of_low_rank_are_not_made_up() -> None:
    draw = torch.Generator().manual_seed(4)
    left, right = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((90, 12), (12, 80)))
    low = left @ right
    found = decompose(low)
    assert found is not None
    assert found.right_bottom is None
    assert found.right_top is not None
    base = {"w": torch.zeros(90, 80, dtype=torch.float64)}
    vectors = [TaskVector({"w": low}, base), TaskVector({"w": 2 * low}, base)]
    metrics = chosen_metrics((), data=False)
    part = tensor_part(vectors, "w", metrics)
    assert undetermined_tensors([part]) == ["w"]
    values = {one.metric.name: one.values[0] for one in assemble(metrics, [part], 1, {})}
    assert values["right_subspace_overlap_bottom_k"] is None
    assert values["right_subspace_overlap_top_k"] == pytest.approx(1.0, abs=1e-9)


def test_a_part_survives_its_journal_bit_for_bit() -> None:
    part = tensor_part(task_vectors(3), "a.weight", chosen_metrics((), data=False))
    assert TensorPart.from_json(part.to_json()) == part
    assert TensorPart("b", (Closeness(0.1, 0.2, 0.3, 0.4),)).to_json()["matrices"] == {}
