"""Trained weights that packages ship, where these packages are installed.

All of them, installed in a scratch directory: `python -m tests.benchmarks.shipped_checkpoints`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rebasin_cli.model.names import is_installed
from tests.loading.shipped_checkpoints import SHIPPED, recover


@pytest.mark.parametrize("name", list(SHIPPED))
def test_a_permuted_noised_copy_of_shipped_weights_is_brought_back_exactly(name: str, tmp_path: Path) -> None:
    shipped = SHIPPED[name]
    absent = [package for package in shipped.imports if not is_installed(package)]
    if absent:
        pytest.skip(f"{absent[0]} is not installed")
    found = recover(shipped, tmp_path, effort="fast")
    assert found.planted > found.tensors // 2
    assert found.wrong == ()
    assert found.exact, found
    assert all(sibling.moved for sibling in found.result.siblings)
    assert len(found.result.siblings) == (shipped.optimizer is not None)
