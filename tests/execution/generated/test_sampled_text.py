"""Text that language models sample: it follows their distribution, from half of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data.text import Language
from rebasin_cli.execution.generated.arguments import Arguments
from rebasin_cli.execution.generated.sampled_text import is_language_model, sampled, shape_of
from rebasin_cli.model.example_input import ExampleInput
from tests.execution.generated.nets import Cached, Chain, FixedLength, Masked

LANGUAGE = Language(12, None, 8)


def arguments() -> Arguments:
    return Arguments(ExampleInput((torch.arange(8).view(1, 8) % 12,)))


def tokens_of(networks: list[nn.Module], count: int = 200, seed: int = 0, language: Language = LANGUAGE) -> Tensor:
    shape = shape_of(networks, arguments(), language)
    return sampled(networks, arguments(), language, shape, count, seed)


def test_half_is_written_by_each_and_as_each_writes() -> None:
    tokens = tokens_of([Chain(1), Chain(5)])
    assert tokens.shape == (200, 9)
    assert tokens.dtype == torch.int64
    steps = tokens.diff(dim=1) % 12
    by_first, by_second = ((steps == step).float().mean(1) > 0.5 for step in (1, 5))
    assert 90 <= int(by_first.sum()) <= 110
    assert 90 <= int(by_second.sum()) <= 110
    assert float((steps[by_first] == 1).float().mean()) == pytest.approx(0.9, abs=0.03)
    assert not torch.equal(by_first[:100], torch.ones(100, dtype=torch.bool))  # in random order


def test_a_seed_decides_the_text() -> None:
    assert torch.equal(tokens_of([Chain(1), Chain(5)]), tokens_of([Chain(1), Chain(5)]))
    assert not torch.equal(tokens_of([Chain(1), Chain(5)]), tokens_of([Chain(1), Chain(5)], seed=1))


def test_a_model_of_one_length_only() -> None:
    tokens = tokens_of([FixedLength(1), FixedLength(5)])
    assert tokens.shape == (200, 9)
    steps = tokens.diff(dim=1) % 12
    assert float(((steps == 1) | (steps == 5)).float().mean()) > 0.85


def test_a_cache_gives_the_same_text_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cache, broken = Cached(), Cached(broken=True)
    one, two = tokens_of([with_cache]), tokens_of([broken])
    assert torch.equal(one, two)
    assert with_cache.seen < 0.5 * broken.seen


def test_sequences_are_no_longer_than_the_context() -> None:
    shape = shape_of([Chain(1)], arguments(), Language(12, 40))
    assert shape.tokens + shape.led_in <= 40
    assert shape_of([Chain(1)], arguments(), Language(12, None, 24)).tokens == 24


def test_what_is_a_language_model() -> None:
    assert is_language_model([Chain(1), Chain(2)], arguments(), LANGUAGE)
    assert is_language_model([Cached()], arguments(), LANGUAGE)
    assert not is_language_model([Masked()], arguments(), LANGUAGE)
    assert not is_language_model(
        [nn.Sequential(nn.Embedding(12, 4), nn.Flatten(), nn.Linear(32, 3))], arguments(), LANGUAGE
    )
    assert not is_language_model([Chain(1)], arguments(), None)
