"""What `align` says at its end: no more than was searched, and the command that this pair needs next."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rebasin_cli.cli.app import main
from rebasin_cli.interpolation.sweep import Barrier, SweepPoint
from rebasin_cli.report.align import align_table, verdict
from rebasin_cli.report.interpolate import interpolate_table
from rebasin_cli.report.layout import Lines
from rebasin_cli.verbs.align import AlignOptions, AlignResult, run_align
from rebasin_cli.verbs.interpolate import InterpolateOptions, run_interpolate
from tests.report.test_interpolate import result as interpolated

NETS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

def wide():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def normed():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

def transformer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

def fixed():
    return nn.Linear(6, 3)
"""
INPUTS = {"mlp": "2,6", "wide": "2,32", "normed": "2,6", "transformer": "2,5,8", "fixed": "2,6"}
NEXT = "next: "

Weights = dict[str, torch.Tensor]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(name: str, seed: int) -> Weights:
    torch.manual_seed(seed)
    names: dict[str, object] = {}
    exec(NETS, names)
    build = names[name]
    assert callable(build)
    module = build()
    assert isinstance(module, nn.Module)
    return module.state_dict()


def aligned(name: str, change: Callable[[Weights], Weights] | None = None, **options: object) -> AlignResult:
    """The alignment of two random networks, or of one and itself changed."""
    a = network(name, 0)
    b = network(name, 1) if change is None else change(a)
    for file, state in (("a.pt", a), ("b.pt", b)):
        torch.save(state, file)
    given: dict[str, object] = {"model": f"nets.py:{name}", "inputs": (INPUTS[name],), **options}
    return run_align(AlignOptions(a=Path("a.pt"), b=Path("b.pt"), **given))  # type: ignore[arg-type]


def noised(state: Weights) -> Weights:
    generator = torch.Generator().manual_seed(3)
    return {key: value + 1e-3 * torch.randn(value.shape, generator=generator) for key, value in state.items()}


def scaled(state: Weights) -> Weights:
    return {key: 2 * value for key, value in state.items()}


def advised(result: AlignResult) -> list[list[str]]:
    """The commands of the report, as a shell would read them."""
    lines = [line for part in align_table(result).parts if isinstance(part, Lines) for line in part.lines]
    return [shlex.split(line.removeprefix(NEXT)) for line in lines if line.startswith(NEXT)]


def test_a_model_whose_own_code_was_trusted_is_trusted_by_the_next_commands_too(place: Path) -> None:
    result = replace(aligned("transformer", starts=("identity",)), trust_remote_code=True)
    commands = advised(result)
    assert len(commands) == 2
    assert all("--trust-remote-code" in words for words in commands)


def test_two_copies_of_one_network_are_already_aligned(place: Path) -> None:
    result = aligned("mlp", dict)
    assert result.already_aligned
    assert "its units keep theirs" in verdict(result)


def test_a_scaled_copy_is_already_aligned(place: Path) -> None:
    assert aligned("mlp", scaled).already_aligned


def test_a_fine_tuned_copy_searched_from_elsewhere_is_already_aligned(place: Path) -> None:
    result = aligned("mlp", noised, starts=("identity", "forward"))
    assert result.moved_units == 0
    assert result.already_aligned


@pytest.mark.parametrize(
    "options",
    [
        {"starts": ("identity",)},
        {"pins": ("0.*",)},
        {"method": "activation"},
        {"objective": "rows"},
    ],
    ids=["one start", "a part pinned", "by activations alone", "by another objective"],
)
def test_less_than_a_whole_search_never_says_already_aligned(place: Path, options: dict[str, object]) -> None:
    result = aligned("mlp", noised, **options)
    assert result.moved_units == 0
    assert not result.already_aligned
    assert "several starts" not in verdict(result)


def test_learning_that_keeps_the_order_does_not_say_already_aligned(place: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.normal(size=(32, 6)).astype("f4"), y=rng.integers(0, 3, 32))
    result = aligned("mlp", noised, method="learned", data="d.npz", learning_steps=2)
    assert result.moved_units == 0
    assert not result.already_aligned


def test_a_batchnorm_network_gets_the_line_with_recalibration(place: Path) -> None:
    result = aligned("normed", noised)
    assert result.architecture.running_statistics == 1
    assert advised(result)[0][-2:] == ["--recalibrate", "TRAINING_DATA"]


def test_a_network_without_batchnorm_hears_nothing_of_recalibration(place: Path) -> None:
    result = aligned("mlp", noised)
    assert advised(result) == [["rebasin", "interpolate", "--steps", "10", "--data", "DATA"]]


def test_a_transformer_gets_the_larger_classes_and_then_learning(place: Path) -> None:
    result = aligned("transformer")
    assert result.architecture.attention
    assert result.architecture.larger_classes
    command = advised(result)[1]
    assert command[:4] == ["rebasin", "align", "a.pt", "b.pt"]
    assert command[-2:] == ["--symmetries", "all"]
    assert "--recalibrate" not in advised(result)[0]
    command = advised(aligned("transformer", symmetries="all", force=True))[1]
    assert command[command.index("--symmetries") + 1] == "all"
    assert command[command.index("--method") + 1] == "learned"


def test_weights_that_say_little_get_the_mixture_with_activations(place: Path) -> None:
    result = aligned("wide", effort="fast")  # two random networks
    assert result.chance is not None
    assert 0.8 < result.chance.ratio < 1.25
    command = advised(result)[1]
    assert command[-6:] == ["b-aligned.pt", "--force", "--method", "activation", "--mix", "0.2"]


def test_weights_with_much_in_common_get_no_other_method(place: Path) -> None:
    def shuffled(state: Weights) -> Weights:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
        moved = {"0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order]}
        return noised({**state, **moved, "2.weight": state["2.weight"][:, order]})

    result = aligned("wide", shuffled)
    assert result.chance is not None
    assert result.chance.ratio > 2
    assert len(advised(result)) == 1


def test_a_network_without_groups_gets_the_command_that_lists_the_reasons(place: Path) -> None:
    command = advised(aligned("fixed"))[1]
    assert command == ["rebasin", "trace", "--model", "nets.py:fixed", "--input", "2,6", "-v"]


def test_a_pasted_command_repeats_the_choices_of_the_run(place: Path) -> None:
    torch.save({"one": network("wide", 0), "two": network("wide", 1)}, "both.pt")
    result = run_align(
        AlignOptions(
            a=Path("both.pt"), b=Path("both.pt"), model="nets.py:wide", inputs=("2,32",), key_a="one", key_b="two"
        )
    )
    words = advised(result)[1]
    assert words[words.index("--key-a") + 1] == "one"
    assert words[words.index("--key-b") + 1] == "two"
    assert words[words.index("--input") + 1] == "2,32"
    assert words[words.index("-o") + 1] == "both-aligned.pt"


def test_a_dry_run_gets_no_command(place: Path) -> None:
    assert advised(aligned("mlp", dry_run=True)) == []


def test_data_that_were_given_stand_in_the_commands_as_they_were_read(place: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.normal(size=(32, 32)).astype("f4"), y=rng.integers(0, 10, 32))
    read = {"data": "d.npz", "transform": "raw", "batch_size": 16}
    line, other = advised(aligned("wide", effort="fast", method="weight", **read))
    given = ["--data", "d.npz", "--transform", "raw", "--batch-size", "16"]
    assert line == ["rebasin", "interpolate", "--steps", "10", *given]
    assert other[-len(given) :] == given


def swept(naive: Barrier, matched: Barrier, **changes: object) -> list[list[str]]:
    """The commands after a sweep of 100 samples with these barriers."""
    points = tuple(
        SweepPoint(0, lam, 0.5, 0.8, None, None, 100, True, 0.01, 0.03, chance=0.1) for lam in (0.0, 0.5, 1.0)
    )
    barriers = {"naive": naive, "matched": matched}
    run = {"data": "test.npz", "recalibrate": None, "repair": False, "transform": "raw", "limit": 50, "loss": None}
    found = interpolated(
        curves=dict.fromkeys(barriers, points), barrier=barriers, run=run, report=Path("b-aligned.json"), **changes
    )
    lines = [line for part in interpolate_table(found).parts if isinstance(part, Lines) for line in part.lines]
    return [shlex.split(line.removeprefix(NEXT)) for line in lines if line.startswith(NEXT)]


HIGH, FLAT = Barrier(0.3, 0.1, 0.02, 0.01), Barrier(0.01, 0.0, 0.006, 0.01)


def test_a_barrier_after_alignment_gets_the_learning_method(place: Path) -> None:
    command = swept(HIGH, HIGH, aligned_by="weight", inputs=("2,6",))
    words = ["rebasin", "align", "a.safetensors", "b[/b].safetensors", "--model", "net.py:net", "--input", "2,6"]
    learned = ["--method", "learned", "--data", "TRAINING_DATA", "--transform", "raw"]
    assert command == [[*words, "-o", "b-aligned.safetensors", "--force", *learned]]
    (place / "b-aligned.safetensors").mkdir()  # a directory is never replaced
    assert swept(HIGH, HIGH, aligned_by="weight", inputs=("2,6",)) == [
        [*words, "-o", "b-aligned.safetensors-learned", *learned]
    ]


def test_a_barrier_after_learning_or_of_unfit_statistics_or_unknown_error_gets_no_command(place: Path) -> None:
    assert swept(HIGH, HIGH, aligned_by="learned") == []
    assert swept(HIGH, HIGH, aligned_by="weight", running_statistics=3) == []
    assert swept(HIGH, Barrier(0.3, 0.1), aligned_by="weight") == []


def test_a_line_without_a_barrier_gets_the_command_that_saves_its_middle(place: Path) -> None:
    save = ["--save", "average.safetensors"]
    assert swept(HIGH, FLAT) == [["rebasin", "interpolate", "--lam", "0.5", *save]]
    how = {"method": "running statistics", "data": "a part"}
    treated = ["--recalibrate", "test.npz", "--transform", "raw", *save]
    assert swept(HIGH, FLAT, recalibration=how) == [["rebasin", "interpolate", "--lam", "0.5", *treated]]
    assert swept(HIGH, FLAT, lam=("0.5",)) == []


def test_a_middle_is_saved_by_the_command_that_was_advised(place: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype("f4")
    with torch.no_grad():
        network_ = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        network_.load_state_dict(network("normed", 0))
        y = network_.train()(torch.from_numpy(x)).argmax(1).numpy()
    np.savez("d.npz", x=x, y=y)
    result = aligned("normed", noised)
    found = run_interpolate(InterpolateOptions(data="d.npz", steps=2, report=result.report))
    lines = [line for part in interpolate_table(found).parts if isinstance(part, Lines) for line in part.lines]
    (command,) = [shlex.split(line.removeprefix(NEXT)) for line in lines if line.startswith(NEXT)]
    assert main(command[1:]) == 0
    a, b = torch.load("a.pt"), torch.load("b-aligned.pt")
    middle = torch.load("average.pt")
    assert torch.allclose(middle["0.weight"], (a["0.weight"] + b["0.weight"]) / 2)
    assert not torch.allclose(middle["1.running_mean"], (a["1.running_mean"] + b["1.running_mean"]) / 2)


def test_real_targets_without_a_loss_are_named_and_the_line_asks_for_a_loss(place: Path) -> None:
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    np.savez("real.npz", x=x, y=x.sum(1))
    result = aligned("mlp", noised, data="real.npz", method="learned", learning_steps=2)
    assert any("targets are real numbers and were not learned from" in text for text in result.warnings)
    assert advised(result)[0][-4:] == ["--data", "real.npz", "--loss", "FILE.py:FUNCTION"]
