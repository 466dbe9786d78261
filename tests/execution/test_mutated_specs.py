"""Wrong specs made from right ones are refused: `tests.benchmarks.mutated_specs` on a few networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.benchmarks.mutated_specs import KINDS, LIMIT, Result, accepted_wrong, models, run_all

NAMES = (
    "attention_rotary",
    "bilinear",
    "channel_shuffle",
    "flattened_convolutions",
    "grouped_convolutions",
    "recurrent_cell",
    "torchvision:vit",
    "unet",
)
COUNT = 240


@pytest.fixture(scope="module")
def results() -> Iterator[list[Result]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield list(run_all([model for model in models() if model.name in NAMES], COUNT, seed=1))
    torch.set_num_threads(threads)


def test_right_specs_are_accepted(results: list[Result]) -> None:
    assert sorted(result.model for result in results) == sorted(NAMES)
    for result in results:
        assert result.right_accepted, result.model
        assert result.right_change <= LIMIT, f"{result.model}: the separate evaluation finds the right spec wrong"


def test_no_wrong_spec_is_accepted(results: list[Result]) -> None:
    assert accepted_wrong(results) == []


def test_most_mutants_are_wrong(results: list[Result]) -> None:
    """The test above has something to refuse, of every kind."""
    mutants = [mutant for result in results for mutant in result.mutants]
    assert len(mutants) == COUNT
    assert sum(mutant.changes for mutant in mutants) >= 0.75 * COUNT
    assert {mutant.kind for mutant in mutants if mutant.changes} >= set(KINDS) - {"groups joined", "nested group freed"}
