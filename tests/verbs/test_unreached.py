"""Tensors that one forward pass does not read: heads for training, heads of other tasks, methods of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rebasin_cli import align, trace
from rebasin_cli.errors import ModelError, UsageError
from rebasin_cli.verbs.align import AlignResult

NET = '''
import torch
from torch import nn


class Auxiliary(nn.Module):
    """A head on a hidden layer that runs in training mode only, behind dropout that is a function."""

    def __init__(self, width=12):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.fc, self.aux = nn.BatchNorm2d(width), nn.Linear(width, 5), nn.Linear(width, 5)

    def forward(self, x):
        h = self.norm(self.c1(x)).relu()
        h = nn.functional.dropout(h, 0.5, self.training)
        y = self.fc(self.c2(h).relu().mean((2, 3)))
        return (y, self.aux(h.mean((2, 3)))) if self.training else y


class Tasks(nn.Module):
    """A head for each task, and an encoder that projects with a layer of its own."""

    def __init__(self, width=12):
        super().__init__()
        self.into, self.hidden = nn.Linear(3, width), nn.Linear(width, width)
        self.heads = nn.ModuleDict({"a": nn.Linear(width, 5), "b": nn.Linear(width, 7)})
        self.project = nn.Linear(width, 4)

    def features(self, x):
        return self.hidden(self.into(x).relu()).relu()

    def forward(self, x, task="a"):
        return self.heads[task](self.features(x))

    def encode(self, x):
        return self.project(self.into(x).relu())
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "heads.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("heads", None)
    return tmp_path


def _made(name: str, seed: int) -> nn.Module:
    import heads  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    module: nn.Module = getattr(heads, name)()
    return module


def _align(name: str, shape: str, **more: Any) -> AlignResult:
    for file, seed in (("a", 1), ("b", 2)):
        torch.save(_made(name, seed).state_dict(), f"{file}.pt")
    return align("a.pt", "b.pt", model=f"heads.py:{name}", inputs=[shape], effort="fast", force=True, **more)


def _both(name: str, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """B, what was written from it, and an input."""
    nets = _made(name, 3), _made(name, 4)
    for net, file in zip(nets, ("b.pt", "b-aligned.pt"), strict=True):
        net.load_state_dict(torch.load(file))
    return (*nets, torch.randn(shape))


def test_a_head_that_runs_in_training_only_is_aligned_too(place: Path) -> None:
    result = _align("Auxiliary", "2,3,8,8")
    assert result.moved_units > 10
    assert not [text for text in result.warnings if "reached" in text]
    before, after, x = _both("Auxiliary", (2, 3, 8, 8))
    assert not torch.equal(before.state_dict()["aux.weight"], after.state_dict()["aux.weight"])
    for net in (before, after):
        net.train()
        net.norm.eval()
    torch.manual_seed(0)
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", lambda value, *_: value)
        outputs = before(x), after(x)
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_in_the_mode_and_with_the_forward_that_it_had(place: Path) -> None:
    from rebasin_cli.tracing.passes import Passes

    net = _made("Auxiliary", 1).eval()
    with Passes(training=True).joined(net):
        both = net(torch.ones(2, 3, 8, 8))
        assert [type(one) for one in both] == [torch.Tensor, tuple]
        torch.testing.assert_close(both[0], both[1][0])
    assert not any(part.training for part in net.modules())
    assert "forward" not in net.__dict__


def test_the_head_of_another_task_is_named(place: Path) -> None:
    result = _align("Tasks", "2,3")
    warned = [text for text in result.warnings if "heads.b.weight" in text]
    assert len(warned) == 1
    assert "project.weight" in warned[0]
    assert "--also-input" in warned[0]


def test_strict_refuses_what_no_pass_reaches(place: Path) -> None:
    with pytest.raises(ModelError) as info:
        _align("Tasks", "2,3", strict=True)
    assert "heads.b.weight" in info.value.message
    assert not Path("b-aligned.pt").exists()


def test_tasks_and_methods_that_are_traced_too(place: Path) -> None:
    result = _align("Tasks", "2,3", strict=True, also_inputs=['task="b"'], trace_calls=["encode"])
    assert result.moved_units > 10
    assert not [text for text in result.warnings if "reached" in text]
    assert result.input == "2x3"
    before, after, x = _both("Tasks", (6, 3))
    for call in (lambda net: net(x), lambda net: net(x, task="b"), lambda net: net.encode(x)):
        torch.testing.assert_close(call(before), call(after), rtol=1e-5, atol=1e-6)
    assert not torch.equal(before.heads["b"].weight, after.heads["b"].weight)
    assert not torch.equal(before.project.weight, after.project.weight)


def test_a_further_input_with_tensors_of_its_own(place: Path) -> None:
    result = _align("Tasks", "2,3", also_inputs=["3,3; task=b"])
    assert not [text for text in result.warnings if "heads.b" in text]
    assert [text for text in result.warnings if "project.weight" in text]


def test_activations_are_recorded_over_all_passes(place: Path) -> None:
    (place / "data.py").write_text(
        "import torch\n\n\ndef batches():\n    return [torch.randn(8, 3) for _ in range(4)]\n"
    )
    result = _align(
        "Tasks", "2,3", also_inputs=["task=b"], trace_calls=["encode"], method="activation", data="data.py:batches"
    )
    assert result.moved_units > 10
    before, after, x = _both("Tasks", (6, 3))
    torch.testing.assert_close(before(x, task="b"), after(x, task="b"), rtol=1e-5, atol=1e-6)


def test_a_method_that_the_model_does_not_have(place: Path) -> None:
    with pytest.raises(UsageError) as info:
        _align("Tasks", "2,3", trace_calls=["encod"])
    assert "did you mean encode?" in info.value.message


def test_an_argument_that_is_none(place: Path) -> None:
    with pytest.raises(UsageError, match="also-input"):
        _align("Tasks", "2,3", also_inputs=["2,3; task"])


def test_trace_says_what_no_pass_reaches(place: Path) -> None:
    result = trace("heads.py:Tasks", inputs=["2,3"])
    assert any("heads.b.weight" in text for text in result.warnings)
    reached = trace("heads.py:Tasks", inputs=["2,3"], also_inputs=["task=b"], trace_calls=["encode"])
    assert reached.warnings == ()
    assert reached.free_fraction > result.free_fraction
