"""Networks with quantizers: what the average does to their ranges is said, and only where they differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.interpolation.conftest import Bench

NET = """
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver


def build():
    quantize = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), quantize, nn.Linear(16, 10))
"""


def save(path: Path, seed: int, spread: float) -> None:
    names: dict[str, object] = {}
    exec(NET, names)
    torch.manual_seed(seed)
    module = names["build"]()  # type: ignore[operator]
    assert isinstance(module, nn.Module)
    module.train()
    with torch.no_grad():
        module(spread * torch.randn(8, 1, 8, 8))
    torch.save(module.eval().state_dict(), path)


@pytest.mark.parametrize("spreads", [(1.0, 3.0), (1.0, 1.0)])
def test_a_fine_tuned_quantized_network_on_the_line(bench: Bench, spreads: tuple[float, float]) -> None:
    (bench.path / "qat.py").write_text(NET)
    for letter, spread in zip("ab", spreads, strict=True):
        save(bench.path / f"{letter}.pt", 0, spread)
    arguments = ("--model", "qat.py:build")
    line = bench.run("interpolate", "a.pt", "b.pt", *arguments, "--data", "test.npz", "--steps", "2")
    merged = bench.run("merge", "a.pt", "b.pt", *arguments, "--align", "none", "-o", "m.pt")
    for found in (line, merged):
        assert found.code == 0, found.err
        assert ("quantizers (1 layer) have other ranges" in found.err) == (spreads[0] != spreads[1])
