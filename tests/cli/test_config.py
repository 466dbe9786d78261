"""Configuration files: what they set, what takes precedence, and how a mistake is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Runner
from tests.cli.test_faults_bytes import expect_refusal

CONFIG = """
[align]
model = "net.py:build"
input = ["2,1,4,4"]
seed = 7
dry-run = true
cache = false
pin = "6.*"

[align.model-arg]
classes = 4

[trace]
nonsense = 1
"""


@pytest.fixture
def config(place: Path) -> Path:
    (place / "run.toml").write_text(CONFIG)
    return place / "run.toml"


def test_a_file_sets_options_and_the_command_line_takes_precedence(run: Runner, config: Path) -> None:
    done = run("align", "a.safetensors", "b.safetensors", "--config", "run.toml", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)["data"]
    assert (data["seed"], data["model_args"]) == (7, {"classes": 4})
    assert {group["name"] for group in data["groups"]} == {"0"}  # the other group is pinned
    done = run("align", "a.safetensors", "b.safetensors", "--config", "run.toml", "--seed", "1", "--json")
    assert json.loads(done.out)["data"]["seed"] == 1


def test_what_is_printed_can_be_read_again(run: Runner, config: Path, place: Path) -> None:
    words = ["align", "a.safetensors", "b.safetensors", "--config", "run.toml", "--batch-size", "8"]
    printed = run(*words, "--print-config").out
    assert "seed = 7" in printed
    assert "batch-size = 8" in printed
    assert "no-cache = true" in printed
    (place / "again.toml").write_text(printed)
    assert run("align", "--config", "again.toml", "--print-config").out == printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[align]\nsede = 1\n", r"run\.toml: \[align\] has the unknown option sede, did you mean seed\?"),
        ('[align]\nseed = "one"\n', r"run\.toml: \[align\] seed must be a whole number, found \"one\""),
        ("[align]\nseed = true\n", r"seed must be a whole number, found true"),
        ("[align]\nbatch-size = 0\n", r"--batch-size 0: must be at least 1"),
        ("align = 3\n", r"align is not a table"),
        ("[align\n", r"run\.toml: not a TOML file"),
    ],
)
def test_a_mistake_is_named(run: Runner, place: Path, text: str, words: str) -> None:
    (place / "run.toml").write_text(text)
    expect_refusal(run("align", "a", "b", "-m", "net.py:build", "--config", "run.toml"), 2, words)


def test_a_missing_file_is_named(run: Runner) -> None:
    expect_refusal(run("align", "a", "b", "-m", "x", "--config", "no.toml"), 2, r"no\.toml: cannot be read")


def test_an_earlier_spelling_works_and_warns(run: Runner, place: Path) -> None:
    words = ["align", "a.safetensors", "b.safetensors", "-m", "net.py:build", "--input", "2,1,4,4"]
    done = run(*words, "--save-permutations", "p.json")
    assert done.code == 0, done.err
    assert (place / "p.json").exists()
    assert "--save-permutations is now --save-alignment" in done.err
