"""Memory does not grow with the number of networks: each is in memory only while it is visited."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.merge_memory import measured, write_copies

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")


@pytest.mark.parametrize("align", ["merge-many", "cycle-consistent"])
def test_six_checkpoints_take_the_memory_of_three(tmp_path: Path, align: str) -> None:
    args = {"width": 448, "depth": 2}
    files = write_copies(tmp_path, 6, args)
    three, six = (measured(files[:count], args, align, tmp_path / "out.safetensors") for count in (3, 6))
    assert six["anonymous"] < 1.15 * three["anonymous"] + (1 << 20)
    assert six["anonymous"] > Path(files[0]).stat().st_size
