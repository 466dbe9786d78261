"""Habits of PyTorch's users that show in files: pruned, parametrized, wrapped, complex, lazily shaped networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli import align
from rebasin_cli.verbs.align import AlignResult

NET = '''
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune


class Net(nn.Module):
    def __init__(self, wrap=lambda layer: layer, dtype=None):
        super().__init__()
        self.first = wrap(nn.Conv1d(3, 10, 3, padding=1, dtype=dtype))
        self.second = wrap(nn.Conv1d(10, 12, 3, padding=1, dtype=dtype))
        self.last = wrap(nn.Linear(12, 4, dtype=dtype))

    def forward(self, x):
        if self.first.weight.is_complex():
            x = torch.complex(x, x)
            x = self.first(x)
            return torch.view_as_real(self.last(self.second(x * x.abs()).mean(-1)))
        return self.last(self.second(self.first(x).relu()).relu().mean(-1))


def plain():
    return Net()


def pruned():
    net = Net()
    for layer in (net.first, net.second, net.last):
        prune.l1_unstructured(layer, "weight", amount=0.4)
    return net


def weight_norm():
    return Net(parametrizations.weight_norm)


def old_weight_norm():
    return Net(nn.utils.weight_norm)


def spectral_norm():
    return Net(parametrizations.spectral_norm)


def orthogonal():
    return Net(lambda layer: parametrizations.orthogonal(layer) if isinstance(layer, nn.Linear) else layer)


class Symmetric(nn.Module):
    def forward(self, x):
        return x.abs() + 0.1 * x


def own_parametrization():
    net = Net()
    for layer in (net.first, net.second):
        nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    return net


def lazy():
    first, second = nn.LazyConv1d(10, 3, padding=1), nn.LazyLinear(9)
    net = nn.Sequential(first, nn.ReLU(), nn.Flatten(), second, nn.ReLU(), nn.LazyLinear(4))
    net(torch.zeros(2, 3, 8))
    return net


def complex_weights():
    return Net(dtype=torch.complex64)


class Cached(Net):
    """Keeps a tensor that was computed from a weight as an attribute."""

    def __init__(self):
        super().__init__()
        self.scale = self.last.weight.norm() * 2

    def forward(self, x):
        return super().forward(x)


def cached():
    return Cached()
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "habits.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("habits", None)
    return tmp_path


def _made(name: str, seed: int) -> nn.Module:
    import habits  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    module: nn.Module = getattr(habits, name)()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def _save(name: str, wrap: Any = lambda state: state) -> None:
    for file, seed in (("a", 1), ("b", 2)):
        torch.save(wrap(_made(name, seed).state_dict()), f"{file}.pt")


def _outputs(name: str, state: dict[str, Tensor]) -> Tensor:
    net = _made(name, 3).eval()
    net.load_state_dict(state)
    out: Tensor = net(torch.linspace(-1, 1, 5 * 3 * 8).view(5, 3, 8).sin())
    return out


def _align(name: str) -> AlignResult:
    return align("a.pt", "b.pt", model=f"habits.py:{name}", inputs=["2,3,8"], out="out.pt", effort="fast", force=True)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("pruned", "first.weight_mask"),
        ("weight_norm", "first.parametrizations.weight.original0"),
        ("old_weight_norm", "first.weight_g"),
        ("spectral_norm", "second.parametrizations.weight.0._u"),
        ("orthogonal", "second.weight"),
        ("own_parametrization", "first.parametrizations.weight.original"),
        ("lazy", "0.weight"),
        ("complex_weights", "first.weight"),
        ("cached", "first.weight"),
    ],
)
def test_a_network_of_this_habit_is_aligned_and_loads_again(place: Path, name: str, moved: str) -> None:
    _save(name)
    result = _align(name)
    before, after = torch.load("b.pt"), torch.load("out.pt")
    assert list(before) == list(after)
    assert result.moved_units > 10
    assert not torch.equal(before[moved], after[moved])
    torch.testing.assert_close(_outputs(name, after), _outputs(name, before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_data_parallel_and_compile_add_to_the_names_is_kept(place: Path, prefix: str) -> None:
    _save("plain", lambda state: {prefix + key: value for key, value in state.items()})
    assert _align("plain").moved_units > 10
    before, after = ({k.removeprefix(prefix): v for k, v in torch.load(f).items()} for f in ("b.pt", "out.pt"))
    torch.testing.assert_close(_outputs("plain", after), _outputs("plain", before), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before["first.weight"], after["first.weight"])


def test_a_key_that_only_one_of_two_files_has(place: Path) -> None:
    """The generator of a GAN's checkpoint, compared with a file that is a generator."""
    from rebasin_cli import verify
    from rebasin_cli.errors import CheckpointError

    state = _made("plain", 1).state_dict()
    torch.save(state, "alone.pt")
    torch.save({"generator": state, "discriminator": {"w.weight": torch.ones(3, 3)}}, "gan.pt")
    checked = {"model": "habits.py:plain", "inputs": ["2,3,8"]}
    assert verify("alone.pt", "gan.pt", key="generator", **checked).same
    with pytest.raises(CheckpointError, match="generatr"):
        verify("alone.pt", "alone.pt", key="generatr", **checked)
    with pytest.raises(CheckpointError, match="nonsense"):
        verify("alone.pt", "gan.pt", key_a="nonsense", key_b="generator", **checked)
