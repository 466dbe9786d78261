"""Models whose Python code reads what they compute: branches, arrays, lists, compiled code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rebasin_cli import align, trace
from rebasin_cli.errors import CheckpointError
from rebasin_cli.verbs.align import AlignResult

NET = '''
import numpy
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, width=10):
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.l3(self.l2(self.l1(x).relu()).relu())


class Branch(Base):
    """Skips a layer where its input is small: the one path joins what the other keeps apart."""

    def forward(self, x):
        h = self.l1(x).relu()
        if h.mean().item() > 0.2:
            h = self.l2(h).relu()
        return self.l3(h)


class Array(Base):
    def forward(self, x):
        h = torch.from_numpy(self.l1(x).relu().detach().numpy())
        return self.l3(self.l2(h).relu())


class ThroughArray(Base):
    def forward(self, x):
        h = torch.as_tensor(numpy.asarray(self.l1(x).relu().detach()))
        return self.l3(self.l2(h).relu())


class Listed(Base):
    def forward(self, x):
        h = torch.tensor(self.l1(x).relu().tolist(), dtype=x.dtype)
        return self.l3(self.l2(h).relu())


class Numbers(Base):
    """A vector made of single numbers of another one."""

    def forward(self, x):
        h = self.l1(x).relu()
        scale = torch.tensor([value.item() for value in h.mean(0)], dtype=x.dtype)
        return self.l3(self.l2(h * scale).relu())


class Inside(Base):
    def __init__(self):
        super().__init__()
        self.l2 = torch.compile(self.l2)


def compiled():
    return torch.compile(Base())
'''
UNITS = 10


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "branches.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def aligned(name: str, seed: int = 0) -> AlignResult:
    space: dict[str, object] = {}
    exec(Path("branches.py").read_text(), space)
    for letter, number in zip("ab", (seed, seed + 1), strict=True):
        torch.manual_seed(number)
        built = space[name]
        assert callable(built)
        module = built()
        assert isinstance(module, nn.Module)
        torch.save(module.state_dict(), f"{name}-{letter}.pt")
    return align(f"{name}-a.pt", f"{name}-b.pt", model=f"branches.py:{name}", inputs=("2,6",), effort="fast")


@pytest.mark.parametrize("seed", [0, 2, 4])
@pytest.mark.usefixtures("place")
def test_a_branch_on_a_computed_number_keeps_the_units_of_both_paths_in_order(seed: int) -> None:
    result = aligned("Branch", seed)
    assert result.verified.same is not False
    if result.moved_units == 0:
        assert any("computed values decide" in text and "branches.py:" in text for text in result.warnings)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("name", "moved"), [("Array", "l2"), ("ThroughArray", "l2"), ("Listed", "l2"), ("Numbers", "l2")]
)
def test_units_whose_numbers_leave_pytorch_keep_their_order_and_the_others_move(name: str, moved: str) -> None:
    result = aligned(name)
    assert [(group.name, group.size) for group in result.groups] == [(moved, UNITS)]
    assert result.verified.same is True


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["compiled", "Inside"])
def test_a_compiled_model_is_understood_as_it_was_written(name: str) -> None:
    result = aligned(name)
    assert sum(group.size for group in result.groups) == 2 * UNITS
    assert result.verified.same is True


def test_a_file_of_lazy_layers_that_never_ran_is_called_that(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Sequential(nn.LazyLinear(3)).state_dict()}, tmp_path / "lazy.pt")
    with pytest.raises(CheckpointError, match="lazy layers, and was saved before it ran"):
        align(tmp_path / "lazy.pt", tmp_path / "lazy.pt", model="torchvision:resnet18")


GUARDS = '''
import torch
from torch import nn
from torch.distributions import Normal


class Base(nn.Module):
    def __init__(self, width=10):
        super().__init__()
        self.l1, self.l3, self.unread = nn.Linear(6, width), nn.Linear(width, 4), nn.Linear(7, 3)


class Asserts(Base):
    def forward(self, x):
        h = self.l1(x).relu()
        assert torch.isfinite(h).all(), "not finite"
        return self.l3(h)


class Raises(Base):
    def forward(self, x):
        h = self.l1(x).relu()
        if (
            h.isnan().any()
            or h.isinf().any()
        ):
            raise ValueError("not finite")
        return self.l3(h)


class Distribution(Base):
    def forward(self, x):
        return self.l3(Normal(self.l1(x), torch.ones(10)).mean)


class Chooses(Base):
    """No guard: the other path goes on."""

    def forward(self, x):
        h = self.l1(x).relu()
        if h.isnan().any():
            return h[:, :4]
        return self.l3(h)
'''


@pytest.mark.parametrize(("name", "free"), [("Asserts", 10), ("Raises", 10), ("Distribution", 10), ("Chooses", 0)])
def test_a_guard_that_only_raises_costs_no_units_beside_layers_that_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, free: int
) -> None:
    (tmp_path / "guards.py").write_text(GUARDS)
    monkeypatch.chdir(tmp_path)
    result = trace(f"guards.py:{name}", inputs=("2,6",), cache=False)
    assert sum(group.size for group in result.spec.groups) == free
    assert result.unknown_ops == ()
