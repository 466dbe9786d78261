"""The merging methods against straight evaluations of their published definitions, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rebasin_cli.errors import UsageError
from rebasin_cli.merging.method import OneTensor
from rebasin_cli.merging.methods import MergingOptions, find_method, names
from rebasin_cli.merging.methods.greedy_soup import choose

Array = NDArray[np.float64]
COUNT = 4


def tensors(seed: int, *, near: float = 0.3) -> tuple[Array, list[Array]]:
    """A base, and fine-tunings of it that have something in common, so that angles are acute."""
    generator = np.random.default_rng(seed)
    base, common = generator.normal(size=(6, 10)), generator.normal(size=(6, 10))
    return base, [base + near * (common + 0.8 * generator.normal(size=(6, 10))) for _ in range(COUNT)]


def merged(name: str, base: Array | None, networks: list[Array], weights: tuple[float, ...], **options: float) -> Array:
    method = find_method(name)
    one = OneTensor(
        "layer.weight",
        weights,
        lambda number: torch.from_numpy(networks[number]),
        None if base is None else torch.from_numpy(base),
        7,
        None if method.options is None else method.own_options(MergingOptions(**options)),
    )
    found: Array = method.combine(one).numpy()
    return found


def trimmed(delta: Array, density: float) -> Array:
    kept = int(density * delta.size)
    least = np.sort(np.abs(delta).ravel())[::-1][kept - 1]
    return np.where(np.abs(delta) >= least, delta, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_linear_is_the_weighted_mean(seed: int) -> None:
    _, networks = tensors(seed)
    weights = (0.1, 0.2, 0.3, 0.4)
    expected = np.einsum("n,nij->ij", np.array(weights), np.array(networks))
    assert np.allclose(merged("linear", None, networks, weights), expected, rtol=1e-12)


def test_the_mean_of_copies_is_the_copy_bit_for_bit() -> None:
    _, networks = tensors(0)
    single = torch.from_numpy(networks[0]).float()
    found = find_method("linear").combine(OneTensor("layer.weight", (0.2,) * 5, lambda _: single, None, 0, None))
    assert found.dtype is torch.float32
    assert torch.equal(found, single)


@pytest.mark.parametrize("lam", [0.25, 0.5, 0.9])
def test_slerp_walks_along_the_arc(lam: float) -> None:
    _, (a, b, *_) = tensors(1)
    angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    expected = (np.sin((1 - lam) * angle) * a + np.sin(lam * angle) * b) / np.sin(angle)
    assert np.allclose(merged("slerp", None, [a, b], (1 - lam, lam)), expected, rtol=1e-12)


def test_slerp_keeps_the_length_where_the_mean_does_not() -> None:
    a, b = np.zeros((2, 2)), np.zeros((2, 2))
    a[0, 0] = b[1, 1] = 2.0
    assert np.linalg.norm(merged("slerp", None, [a, b], (0.5, 0.5))) == pytest.approx(2.0)
    assert np.linalg.norm(merged("linear", None, [a, b], (0.5, 0.5))) == pytest.approx(2.0 / np.sqrt(2))


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_task_arithmetic_adds_task_vectors(scale: float) -> None:
    base, networks = tensors(2)
    weights = (1.0, -0.5, 0.25, 2.0)
    expected = base + scale * sum(weight * (one - base) for weight, one in zip(weights, networks, strict=True))
    assert np.allclose(merged("task-arithmetic", base, networks, weights, scale=scale), expected, rtol=1e-12)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0,) * COUNT, (0.5, 1.0, 2.0, 0.1)])
def test_ties_trims_elects_and_takes_the_disjoint_mean(density: float, weights: tuple[float, ...]) -> None:
    base, networks = tensors(3, near=1.0)
    parts = [trimmed(one - base, density) * weight for one, weight in zip(networks, weights, strict=True)]
    elected = np.where(sum(parts) >= 0, 1.0, -1.0)
    expected = base.copy()
    for place in np.ndindex(base.shape):
        agreeing = [
            (part[place], weight)
            for part, weight in zip(parts, weights, strict=True)
            if part[place] * elected[place] > 0
        ]
        if agreeing:
            expected[place] += 0.7 * sum(part for part, _ in agreeing) / sum(weight for _, weight in agreeing)
    assert np.allclose(merged("ties", base, networks, weights, density=density, scale=0.7), expected, rtol=1e-12)


def test_dare_drops_by_the_seed_and_rescales() -> None:
    base, networks = tensors(4)
    alone = merged("dare-ties", base, networks[:1], (1.0,), density=0.5)
    delta = networks[0] - base
    kept = ~np.isclose(alone, base)
    assert np.allclose((alone - base)[kept], 2 * delta[kept])
    assert 0.3 < kept.mean() < 0.7
    assert np.array_equal(alone, merged("dare-ties", base, networks[:1], (1.0,), density=0.5))


def test_dare_keeps_the_mean_of_a_task_vector() -> None:
    base = np.zeros((300, 300))
    found = merged("dare-ties", base, [np.full((300, 300), 0.1)], (1.0,), density=0.25)
    assert set(np.unique(found.round(12))) == {0.0, 0.4}
    assert found.mean() == pytest.approx(0.1, rel=0.02)


def test_dare_with_density_1_sums_what_has_the_elected_sign() -> None:
    base, networks = tensors(5, near=1.0)
    parts = [one - base for one in networks]
    elected = np.where(sum(parts) >= 0, 1.0, -1.0)
    expected = base + sum(np.where(np.sign(part) == elected, part, 0.0) for part in parts)
    assert np.allclose(merged("dare-ties", base, networks, (1.0,) * COUNT, density=1.0), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock_goes_by_the_angle(count: int) -> None:
    base, networks = tensors(6)
    deltas = [one - base for one in networks[:count]]
    cosines = [
        (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        for number, a in enumerate(deltas)
        for b in deltas[number + 1 :]
    ]
    cosine = np.mean(cosines)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    assert 0.1 < ratio < 0.99
    expected = ratio * np.mean(networks[:count], axis=0) + (1 - ratio) * base
    assert np.allclose(merged("model-stock", base, networks[:count], (1 / count,) * count), expected, rtol=1e-10)


class Scores:
    """Candidates whose score depends on who is in the soup."""

    count = 4

    def __init__(self, scores: dict[frozenset[int], float]) -> None:
        self.scores, self.asked = scores, list[frozenset[int]]()

    def score(self, shares: Sequence[float]) -> float:
        members = frozenset(number for number, share in enumerate(shares) if share)
        assert sum(shares) == pytest.approx(1.0)
        self.asked.append(members)
        return self.scores[members]


def test_a_greedy_soup_takes_in_order_of_score_what_does_not_lower_it() -> None:
    alone = {frozenset({0}): 0.6, frozenset({1}): 0.9, frozenset({2}): 0.8, frozenset({3}): 0.7}
    more = {frozenset({1, 2}): 0.91, frozenset({1, 2, 3}): 0.905, frozenset({0, 1, 2}): 0.91}
    candidates = Scores({**alone, **more})
    assert choose(candidates) == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0.0))
    assert candidates.asked[4:] == [frozenset({1, 2}), frozenset({1, 2, 3}), frozenset({0, 1, 2})]


def test_weights_are_shares_or_factors() -> None:
    assert find_method("linear").weights((3.0, 1.0), 2) == (0.75, 0.25)
    assert find_method("linear").weights(None, 4) == (0.25,) * 4
    assert find_method("ties").weights((3.0, 1.0), 2) == (3.0, 1.0)
    assert find_method("task-arithmetic").weights(None, 2) == (1.0, 1.0)
    with pytest.raises(UsageError, match="sum to 0"):
        find_method("linear").weights((1.0, -1.0), 2)
    with pytest.raises(UsageError, match="3 numbers, and there are 2"):
        find_method("linear").weights((1.0, 1.0, 1.0), 2)
    with pytest.raises(UsageError, match="finds its own"):
        find_method("model-stock").weights((1.0, 1.0), 2)


def test_the_registry_has_the_names_of_mergekit() -> None:
    assert names() == (
        "linear",
        "dare-ties",
        "greedy-soup",
        "model-stock",
        "slerp",
        "task-arithmetic",
        "ties",
    )
