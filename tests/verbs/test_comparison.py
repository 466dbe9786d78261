"""`compare` on networks trained on digits: a handful of every kind of pair gets its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from rebasin_cli import CompareResult, compare, trace
from tests.benchmarks.compare_pairs import EXPECTED, KINDS, Made, apart, fine_tuned, pairs, permuted
from tests.benchmarks.small_pairs import load_images, read, trained

MLP = KINDS[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nets")


def made(cache: Path, seed: int) -> Made:
    train, _ = load_images("digits", cache, cache)
    spec = trace(model=MLP.model, model_args=MLP.model_args, inputs=("1,1,8,8",)).spec
    return Made(MLP, read(trained(MLP, seed, train, cache)), seed, train, spec)


def compared(cache: Path, base: Made, other: dict[str, object]) -> CompareResult:
    a, b = cache / "a.safetensors", cache / "b.safetensors"
    save_file({key: value.contiguous() for key, value in base.base.items()}, a)
    save_file({key: value.contiguous() for key, value in other.items()}, b)  # type: ignore[attr-defined]
    return compare(a, b, model=MLP.model, model_args=MLP.model_args, inputs=("1,1,8,8",), effort="fast")


@pytest.mark.parametrize("kind", list(EXPECTED))
@pytest.mark.parametrize("seed", [100, 101])
def test_a_pair_gets_its_verdict(cache: Path, kind: str, seed: int) -> None:
    base = made(cache, seed)
    result = compared(cache, base, dict(pairs(base, cache)[kind]()))
    assert result.verdict == EXPECTED[kind]
    assert result.p_value is not None
    assert (result.p_value > 0.9) == (EXPECTED[kind] == "unrelated")


def test_a_permuted_copy_is_recognized_bit_for_bit(cache: Path) -> None:
    base = made(cache, 100)
    result = compared(cache, base, dict(permuted(base, base.base)))
    assert result.verdict == "permuted-copy"
    assert result.p_value is None
    assert result.cosine.after == 1.0
    assert result.distance.after == 0.0
    assert not any(module.changed for module in result.modules)
    assert all(module.distance.before is not None and module.distance.before > 0 for module in result.modules)


def test_scaled_units_are_the_same_function_and_no_copy(cache: Path) -> None:
    """ReLU units times 2, and what reads them by a half: no permutation, and yet the same outputs."""
    base = made(cache, 100)
    other = dict(base.base)
    other["1.weight"], other["1.bias"] = 2 * other["1.weight"], 2 * other["1.bias"]
    other["4.weight"] = other["4.weight"] / 2
    result = compared(cache, base, dict(other))
    assert result.verdict == "same-function"
    assert result.function is not None
    assert result.function.same


def test_the_changed_module_is_named(cache: Path) -> None:
    base = made(cache, 100)
    other = dict(base.base)
    other["7.bias"] = other["7.bias"] + 0.5
    result = compared(cache, base, dict(permuted(base, other)))
    assert [module.name for module in result.modules if module.changed] == ["7"]
    assert result.verdict == "permuted-fine-tuned"


def test_a_part_that_was_permuted_makes_a_permuted_fine_tuning(cache: Path) -> None:
    """Only one of three groups is in another order: most units still lie at their places."""
    base = made(cache, 100)
    tuned = fine_tuned(base)
    order = list(reversed(range(64)))
    tuned["4.weight"], tuned["4.bias"] = tuned["4.weight"][order], tuned["4.bias"][order]
    tuned["7.weight"] = tuned["7.weight"][:, order]
    assert compared(cache, base, dict(tuned)).verdict == "permuted-fine-tuned"


def test_an_average_of_strangers_is_not_called_unrelated(cache: Path) -> None:
    """Half of it is the base: more than strangers share, and no more than the limit of the tests by much."""
    base = made(cache, 100)
    other = apart(base, cache)
    half = {key: (base.base[key] + other[key]) / 2 for key in other}
    assert compared(cache, base, dict(half)).verdict in ("undecided", "fine-tuned")
