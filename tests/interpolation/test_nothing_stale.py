"""What changed between two commands is noticed: checkpoints, data, the user's code, and the state of a file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interpolation.conftest import Bench

PAIR = ("plain-a.safetensors", "plain-b.safetensors", "--model", "net.py:plain")
ALIGN = ("align", *PAIR, "--input", "1,1,8,8", "--effort", "fast")
LINE = ("interpolate", "--data", "test.npz", "--steps", "2")


def aligned(bench: Bench, *more: str) -> None:
    found = bench.run(*ALIGN, *more, "-q", "-f")
    assert found.code == 0, found.err


def test_a_checkpoint_that_was_trained_on_after_the_alignment(bench: Bench) -> None:
    aligned(bench)
    file = bench.path / "plain-b.safetensors"
    save_file({key: value + 0.01 for key, value in load_file(file).items()}, file)
    found = bench.run(*LINE)
    assert found.code == 3
    assert "plain-b.safetensors: has changed since it was aligned" in found.err


def test_data_that_were_written_anew_under_the_same_name(bench: Bench) -> None:
    aligned(bench)
    assert bench.run(*LINE).code == 0
    data = dict(np.load(bench.path / "test.npz"))
    np.savez(bench.path / "test.npz", x=data["x"], y=(data["y"] + 1) % 10)
    found = bench.run(*LINE)
    assert found.code == 6
    assert "another run, with other data" in found.err
    assert bench.run(*LINE, "--force").code == 0


def test_a_loss_whose_code_changed(bench: Bench) -> None:
    aligned(bench)
    code = "def loss(output, target):\n    return (output ** 2).mean() * {}\n"
    (bench.path / "mine.py").write_text(code.format(1))
    words = (*LINE, "--loss", "mine.py:loss", "-o", "mine.json")
    assert bench.run(*words).code == 0
    (bench.path / "mine.py").write_text(code.format(2))
    found = bench.run(*words)
    assert (found.code, "another run, with another content of mine.py" in found.err) == (6, True)


@pytest.mark.parametrize("option", [("--key", "averaged"), ("--ema",)])
def test_the_state_that_was_aligned_is_the_state_that_is_evaluated(bench: Bench, option: tuple[str, ...]) -> None:
    key = "averaged" if option[0] == "--key" else "model_ema"
    for name in "ab":
        state = load_file(bench.path / f"plain-{name}.safetensors")
        other = {entry: torch.zeros_like(value) for entry, value in state.items()}
        torch.save({"model": other, key: state}, bench.path / f"plain-{name}.pt")
    words = [word.replace(".safetensors", ".pt") for word in ALIGN]
    found = bench.run(*words, *option)
    assert found.code == 0, found.err
    assert f"{key} of A, {key} of B; permuted with it: model (copy)" in found.out
    assert bench.run(*LINE).code == 0
    curves = json.loads((bench.path / "plain-b-aligned-interpolation.json").read_text())["data"]["curves"]
    assert curves["naive"][0]["accuracy"] > 0.5
    assert curves["naive"][1]["loss"] != curves["matched"][1]["loss"]


def test_one_step_evaluates_nothing_between(bench: Bench) -> None:
    words = ("interpolate", *PAIR, "--data", "test.npz", "--steps", "1")
    found = bench.run(*words, "--fail-above", "0.1")
    assert (found.code, "--steps 2" in found.err) == (2, True)
    found = bench.run(*words, "--json")
    assert json.loads(found.out)["data"]["barrier"]["naive"] == dict.fromkeys(
        ("loss", "accuracy", "loss_standard_error", "accuracy_standard_error")
    )


def test_data_with_nan_are_an_error(bench: Bench) -> None:
    data = dict(np.load(bench.path / "test.npz"))
    data["x"][0, 0, 0, 0] = np.nan
    np.savez(bench.path / "nan.npz", **data)
    found = bench.run("interpolate", *PAIR, "--data", "nan.npz", "--steps", "2", "-o", "nan.json")
    assert found.code == 7
    assert "error: nan.npz: x is non-finite: NaN or infinite numbers, first in sample 0" in found.err
    assert "safetensors" not in found.err.splitlines()[-1]
    assert not (bench.path / "nan.json").exists()


def test_a_table_for_a_program_is_not_rounded_and_one_for_a_paper_has_no_drawing(bench: Bench) -> None:
    words = ("interpolate", *PAIR, "--data", "test.npz", "--steps", "2", "-o", "r.json")
    table = bench.run(*words, "--format", "csv").out.splitlines()
    points = json.loads((bench.path / "r.json").read_text())["data"]["curves"]["naive"]
    assert table[0] == "lam,loss,accuracy,loss standard error,accuracy standard error"
    exact = [points[1][name] for name in ("loss", "accuracy", "loss_standard_error", "accuracy_standard_error")]
    assert [float(cell) for cell in table[2].split(",")] == [0.5, *exact]
    latex = bench.run(*words, "--format", "latex").out
    assert latex.count(r"\begin{tabular}") == 1
    assert "▁" not in latex
    assert "% barrier: loss" in latex
    assert latex.count(r"$\pm$") == 6
