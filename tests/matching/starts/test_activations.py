"""The start from activations: networks of two inputs at once, and networks that take another path on noise."""

from __future__ import annotations

from pathlib import Path

import torch

from rebasin_cli.verbs.align import AlignOptions, AlignResult, run_align

NET = """
import torch
from torch import nn


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 12, 2, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = self.into(x).relu()
        if len(x) == 1 and float(x[0, 0]) > 0:
            h = h.sin()
        return self.out(h)
"""


def _pair(folder: Path, network: str) -> tuple[Path, Path, str]:
    (folder / "net.py").write_text(NET)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NET, scope)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(scope[network]().state_dict(), folder / f"{name}.pt")
    return folder / "a.pt", folder / "b.pt", f"{folder / 'net.py'}:{network}"


def _aligned(folder: Path, network: str, shape: str) -> AlignResult:
    a, b, model = _pair(folder, network)
    out = folder / "out.pt"
    return run_align(AlignOptions(a, b, model=model, out=out, inputs=(shape,), starts=("activations",), cache=False))


def test_an_lstm_that_takes_two_inputs_at_once_starts_from_activations(tmp_path: Path) -> None:
    result = _aligned(tmp_path, "Recurrent", "2,5,6")
    assert result.start == "noise"
    assert result.moved_units > 12


def test_a_network_that_takes_another_path_on_noise_is_aligned_from_its_own_order(tmp_path: Path) -> None:
    result = _aligned(tmp_path, "Branching", "1,6")
    assert result.moved_units > 6
    assert result.cosine.after > result.cosine.before
