"""What was said to `align` once holds for the verbs after it: state, input and files, from whatever directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.interpolation.conftest import Bench

MODEL = ("--model", "net.py:plain")
INPUT = ("--input", "1,1,8,8")
ALIGN = ("--effort", "fast", "-q")
LINE = ("--data", "test.npz", "--steps", "2")


def data_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())["data"]
    return data


def b_within(bench: Bench, name: str) -> dict[str, Tensor]:
    """B under a name in a file that holds another network too; A stays a plain file."""
    state = load_file(bench.path / "plain-b.safetensors")
    torch.save({name: state, "other": {key: torch.zeros_like(value) for key, value in state.items()}}, "b.pt")
    return state


@pytest.mark.parametrize(("name", "said"), [("generator", ("--key-b", "generator")), ("model_ema", ("--ema-b",))])
def test_b_lies_under_a_name_in_its_file(bench: Bench, name: str, said: tuple[str, ...]) -> None:
    b_within(bench, name)
    found = bench.run("align", "plain-a.safetensors", "b.pt", *MODEL, *INPUT, *ALIGN, *said, "--interpolate", *LINE[1:])
    assert found.code == 0, found.err
    curves = data_of(bench.path / "b-aligned-interpolation.json")["curves"]
    assert curves["matched"][-1]["accuracy"] > 0.5
    again = bench.run("interpolate", *LINE, "-o", "again.json")  # of the report
    assert again.code == 0, again.err
    assert data_of(bench.path / "again.json")["curves"] == curves
    explicit = ("--key", "generator") if name == "generator" else ("--ema",)
    for words in ((), explicit):  # of two files that were named: their report lies beside
        named = ("interpolate", "plain-a.safetensors", "b-aligned.pt", *MODEL, *LINE, "-o", "named.json", "-f", *words)
        found = bench.run(*named)
        assert found.code == 0, found.err
        assert data_of(bench.path / "named.json")["curves"]["naive"] == curves["matched"]
        verified = bench.run("verify", "b.pt", "b-aligned.pt", *MODEL, *words, "-q")
        assert verified.code == 0, verified.err
    differs = bench.run("verify", "plain-a.safetensors", "b-aligned.pt", *MODEL)
    assert differs.code == 7, differs.err


def test_permutations_of_a_state_move_that_state_of_another_file(bench: Bench) -> None:
    b_within(bench, "generator")
    words = ("plain-a.safetensors", "b.pt", *MODEL, *INPUT, *ALIGN, "--key-b", "generator")
    assert bench.run("align", *words, "--save-alignment", "p.json").code == 0
    shutil.copy("b.pt", "later.pt")
    found = bench.run("apply", "p.json", "later.pt", "-o", "moved.pt")
    assert found.code == 0, found.err
    moved, aligned = torch.load("moved.pt"), torch.load("b-aligned.pt")
    assert all(torch.equal(moved["generator"][key], value) for key, value in aligned["generator"].items())
    found = bench.run(
        "apply", "p.json", "plain-b.safetensors", "-o", "plain-moved.safetensors"
    )  # it has one state only
    assert found.code == 0, found.err
    plain = load_file("plain-moved.safetensors")
    assert all(torch.equal(plain[key], value) for key, value in aligned["generator"].items())


def test_the_input_file_of_the_alignment_is_that_of_the_verbs_after_it(bench: Bench) -> None:
    np.savez("example.npz", np.zeros((1, 1, 8, 8), np.float32))
    (bench.path / "strict.py").write_text(
        "import torch\nfrom net import plain\n\n\n"
        "class Strict(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = plain()\n\n"
        "    def forward(self, x):\n"
        "        if x.dim() != 4:\n            raise ValueError('four dimensions')\n"
        "        return self.body(x)\n"
    )
    for letter in "ab":
        state = load_file(f"plain-{letter}.safetensors")
        torch.save({f"body.{key}": value for key, value in state.items()}, f"{letter}.pt")
    found = bench.run("align", "a.pt", "b.pt", "--model", "strict.py:Strict", "--input-file", "example.npz", *ALIGN)
    assert found.code == 0, found.err
    assert bench.run("interpolate", *LINE).code == 0
    run = data_of(bench.path / "b-aligned-interpolation.json")["run"]
    assert len(run["input_file"]) == 64
    assert bench.run("verify", "b.pt", "b-aligned.pt", "--model", "strict.py:Strict").code == 0


def test_a_report_holds_from_any_directory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("runs/one", "runs/two", "code", "elsewhere"):
        (bench.path / place).mkdir(parents=True)
    shutil.move("plain-a.safetensors", "runs/one/model.safetensors")
    shutil.move("plain-b.safetensors", "runs/two/model.safetensors")
    shutil.move("net.py", "code/net.py")
    words = ("runs/one/model.safetensors", "runs/two/model.safetensors", "--model", "code/net.py:plain", *INPUT, *ALIGN)
    assert bench.run("align", *words).code == 0
    shutil.copy("norm-a.safetensors", "elsewhere/model.safetensors")
    for place, report, data in (
        ("elsewhere", "../runs/two/model-aligned.json", "../test.npz"),
        ("runs/two", "model-aligned.json", "../../test.npz"),
        ("elsewhere", str(bench.path / "runs/two/model-aligned.json"), "../test.npz"),
    ):
        monkeypatch.chdir(bench.path / place)
        found = bench.run("interpolate", "--report", report, "--data", data, "--steps", "2", "-o", "r.json", "-f")
        assert found.code == 0, found.err
        assert data_of(Path("r.json"))["curves"]["naive"][0]["accuracy"] > 0.5
    monkeypatch.chdir(bench.path)
    shutil.move("runs", "moved")
    os.mkdir("runs")
    monkeypatch.chdir(bench.path / "moved" / "two")
    found = bench.run("interpolate", "--data", "../../test.npz", "--steps", "2", "-o", "r.json", "-f")
    assert found.code == 0, found.err


def test_a_model_that_was_edited_after_the_alignment_is_named(bench: Bench) -> None:
    words = ("plain-a.safetensors", "plain-b.safetensors", *MODEL, *INPUT, *ALIGN)
    assert bench.run("align", *words).code == 0
    assert "has changed" not in bench.run("interpolate", *LINE).err
    net = bench.path / "net.py"
    net.write_text(net.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    found = bench.run("interpolate", *LINE, "-o", "other.json")
    assert found.code == 0, found.err
    assert "net.py has changed since the alignment was verified with it" in found.err
    assert bench.run("interpolate", *LINE).code == 6  # the result of the model before


def test_another_state_of_the_same_file_is_another_run(bench: Bench) -> None:
    for letter in "ab":
        state = load_file(f"plain-{letter}.safetensors")
        torch.save({"one": state, "two": {key: value / 2 for key, value in state.items()}}, f"{letter}.pt")
    words = ("interpolate", "a.pt", "b.pt", *MODEL, *LINE, "-o", "r.json")
    assert bench.run(*words, "--key", "one").code == 0
    found = bench.run(*words, "--key", "two")
    assert (found.code, "another run, with states" in found.err) == (6, True), found.err
