"""Square matrices of which one group permutes rows and columns, inside blocks that are permuted as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rebasin_cli.verbs.align import AlignOptions, run_align

NET = """
import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self, heads=3, width=10):
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(6, heads * width)
        self.gate = nn.Parameter(torch.randn(heads, width, width) / width**0.5)
        self.out = nn.Linear(heads * width, 4)

    def forward(self, x):
        x = self.into(x)
        blocks = x.reshape(-1, self.heads, x.shape[-1] // self.heads).transpose(0, 1)
        gated = torch.bmm(blocks, self.gate).transpose(0, 1).reshape(x.shape)
        return self.out(x * gated.sigmoid())
"""


@pytest.mark.parametrize("effort", ["fast", "standard"])
def test_gates_inside_blocks_are_matched(tmp_path: Path, effort: str) -> None:
    (tmp_path / "net.py").write_text(NET)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    a = scope["Gated"]().state_dict()
    blocks = torch.randperm(3)
    inner = [torch.randperm(10) for _ in range(3)]
    rows = torch.cat([10 * int(block) + inner[int(block)] for block in blocks])
    b = {
        "gate": torch.stack([a["gate"][block][inner[block]][:, inner[block]] for block in blocks.tolist()]),
        "into.weight": a["into.weight"][rows],
        "into.bias": a["into.bias"][rows],
        "out.weight": a["out.weight"][:, rows],
        "out.bias": a["out.bias"],
    }
    torch.save(a, tmp_path / "a.pt")
    torch.save({key: b[key] for key in a}, tmp_path / "b.pt")
    out = tmp_path / "out.pt"
    model = f"{tmp_path / 'net.py'}:Gated"
    result = run_align(
        AlignOptions(
            tmp_path / "a.pt", tmp_path / "b.pt", model=model, out=out, inputs=("2,6",), effort=effort, cache=False
        )
    )
    assert any(group.name.endswith("[0]") for group in result.groups)
    assert all(torch.equal(value, a[key]) for key, value in torch.load(out).items())


def test_gates_of_two_random_networks_are_matched(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NET, scope)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(scope["Gated"]().state_dict(), tmp_path / f"{name}.pt")
    options = AlignOptions(
        tmp_path / "a.pt",
        tmp_path / "b.pt",
        model=f"{tmp_path / 'net.py'}:Gated",
        out=tmp_path / "out.pt",
        inputs=("2,6",),
        cache=False,
    )
    result = run_align(options)
    assert result.cosine.after > result.cosine.before
    assert result.moved_units > 20
