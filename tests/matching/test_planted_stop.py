"""Noisy permuted copies come back exactly, and the default search sees that it is done."""

from __future__ import annotations

import pytest

from tests.benchmarks.planted_stop import MODELS, row

SMALL = [name for name in MODELS if name != "ResNet-50"]


@pytest.mark.parametrize("name", SMALL)
def test_the_search_ends_when_a_noisy_copy_is_found(name: str) -> None:
    found = row(name, 0.3)
    assert found["exact"]["auto"]
    assert found["stopped"]["auto"] == "margin"


@pytest.mark.parametrize("name", SMALL)
def test_a_copy_without_noise_ends_at_the_bound(name: str) -> None:
    found = row(name, 0.0)
    assert found["exact"] == {"fast": True, "auto": True}
    assert found["stopped"]["auto"] == "bound"
