"""The table of groups: like groups in the blocks of one group are one row, and `-v` shows each."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rebasin_cli.report.formats.table import renderable
from rebasin_cli.report.other_verbs import trace_table
from rebasin_cli.verbs.trace import trace

NET = """
from torch import nn


def build():
    layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
    return nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 2))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[str]]:
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    result = trace(f"{file}:build", inputs=["1,4,5"], check=False)
    tables = {}
    for verbose in (False, True):
        console = Console(file=io.StringIO(), width=200)
        console.print(renderable(trace_table(result, verbose=verbose)))
        assert isinstance(console.file, io.StringIO)
        tables[verbose] = console.file.getvalue().splitlines()
    return tables


def test_like_groups_in_blocks_are_one_row(shown: dict[bool, list[str]]) -> None:
    rows = [line.split() for line in shown[False] if "self_attn" in line]
    assert ["1.self_attn", "3", "3", "permutation"] in rows
    assert [row[-1] for row in rows if "blocks]" in " ".join(row)] == ["linear", "linear"]
    assert sum("blocks]" in " ".join(row) for row in rows) == 2
    assert all("3 x 4" in " ".join(row) for row in rows if "blocks]" in " ".join(row))


def test_verbose_shows_every_group(shown: dict[bool, list[str]]) -> None:
    text = "\n".join(shown[True])
    for block in range(3):
        assert f"1.self_attn[{block}] " in text
        assert f"1.self_attn[{block}]#2 " in text
    assert "blocks]" not in text
    assert "post-norm: 1.norm1.weight scales what is normalised again: LayerNorm at 1.norm1" in text


def test_outputs_that_show_nothing_are_called_so(tmp_path: Path) -> None:
    """A detector that finds no boxes returns nothing to compare."""
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 2)\n\n"
        "    def forward(self, x):\n"
        "        return self.two(self.one(x).relu()).relu() * 0\n"
    )
    result = trace(f"{file}:Net", inputs=["3,5"])
    assert result.verified is not None
    assert result.verified.silent
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable(trace_table(result)))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("not verified") == 2
