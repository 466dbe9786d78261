"""Checkpoints in half precision are aligned and verified as those in full precision are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.dtype_table import PRECISIONS, cell, is_verified
from tests.symmetry.small_zoo import FOLDER

MODELS = ["tied_autoencoder", "multihead_attention", "transformer_decoder", "bidirectional_gru", "recurrent_cell"]


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("name", MODELS)
def test_a_pair_is_aligned_and_verified(name: str, precision: str, tmp_path: Path) -> None:
    """Views of parameters, attention that borrows a module's weights, recurrent layers that keep a list of theirs."""
    seen = cell(f"{FOLDER / name}.py:build", PRECISIONS[precision], tmp_path)
    assert is_verified(seen), seen
