"""`align --interpolate` is the two verbs in turn; and no output of a sweep may be one of its inputs."""

from __future__ import annotations

import json
import shlex
from typing import NoReturn

import pytest

from rebasin_cli.cli import verb_align
from tests.interpolation.conftest import Bench

ALIGN = ("align", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--input", "2,1,8,8")
SWEEP = ("--steps", "2", "--recalibrate", "train.npz", "--limit", "200")
RESULT = "norm-b-aligned-interpolation.json"
INTERPOLATE = (
    "interpolate",
    "norm-a.safetensors",
    "norm-b.safetensors",
    "--model",
    "net.py:norm",
    "--data",
    "test.npz",
)


def test_the_sweep_straight_after_is_the_verb(bench: Bench) -> None:
    found = bench.run(*ALIGN, "--interpolate", "test.npz", *SWEEP)
    assert found.code == 0, found.err
    assert found.out.index("written") < found.out.index("barrier after alignment")
    (command,) = [line for line in found.out.splitlines() if line.startswith("next: ")]
    assert "rebasin interpolate" not in command
    assert "--method learned --data train.npz" in command
    straight = (bench.path / RESULT).read_bytes()
    alone = bench.run("interpolate", "--data", "test.npz", *SWEEP)
    assert alone.code == 0, alone.err
    assert "resuming" in alone.err  # it takes the result for its own, because it is
    assert (bench.path / RESULT).read_bytes() == straight
    assert bench.run("interpolate", "--data", "test.npz", *SWEEP, "--force").code == 0
    assert (bench.path / RESULT).read_bytes() == straight


def test_an_interrupted_sweep_says_how_to_resume_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> NoReturn:
        raise KeyboardInterrupt

    words = (*ALIGN, "--interpolate", "test.npz", *SWEEP, "--seed", "3", "--force")
    with monkeypatch.context() as patched:
        patched.setattr(verb_align, "run_interpolate", interrupted)
        found = bench.run(*words)
    assert found.code == 130
    (said,) = (line for line in found.err.splitlines() if "resume the interpolation with: " in line)
    command = shlex.split(said.split("resume the interpolation with: ")[1])
    assert "--force" not in command
    assert bench.run(*command[1:]).code == 0
    resumed = (bench.path / RESULT).read_bytes()
    assert bench.run(*words).code == 0
    assert (bench.path / RESULT).read_bytes() == resumed


def test_json_is_one_document_with_both(bench: Bench) -> None:
    found = bench.run(*ALIGN, "--interpolate", "test.npz", *SWEEP, "--json", "-q")
    document = json.loads(found.out)
    assert (document["schema"], document["status"]) == ("rebasin.align/1", "ok")
    written = json.loads((bench.path / RESULT).read_text())["data"]
    assert document["data"]["interpolation"] == written
    assert document["data"]["out"] == "norm-b-aligned.safetensors"
    quiet = bench.run(*ALIGN, "--interpolate", "test.npz", *SWEEP, "--force", "-q")
    assert quiet.out == "norm-b-aligned.safetensors\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--interpolate", "nowhere"), 5, "nowhere"),
        (("--interpolate", "test.npz", "--repair"), 2, "--recalibrate"),
        (("--interpolate", "test.npz", "--dry-run"), 2, "--dry-run"),
        (("--recalibrate", "train.npz"), 2, "--interpolate"),
        (("--interpolate", "test.npz", "--save-spec", RESULT), 2, "same file"),
    ],
)
def test_what_the_sweep_would_refuse_is_refused_before_the_alignment(
    bench: Bench, words: tuple[str, ...], code: int, said: str
) -> None:
    before = sorted(bench.path.iterdir())
    found = bench.run(*ALIGN, *words)
    assert (found.code, found.out) == (code, "")
    assert said in found.err
    assert sorted(bench.path.iterdir()) == before


def test_an_old_result_is_refused_before_the_alignment(bench: Bench) -> None:
    (bench.path / RESULT).write_text("mine")
    found = bench.run(*ALIGN, "--interpolate", "test.npz")
    assert found.code == 6
    assert not (bench.path / "norm-b-aligned.safetensors").exists()
    assert (bench.path / RESULT).read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("-o", "norm-a.safetensors"),
        ("-o", "./norm-b.safetensors"),
        ("-o", "test.npz"),
        ("--plot", "norm-b.png"),
        ("--save-best", "norm-a.safetensors"),
    ],
)
def test_no_output_is_an_input_whatever_is_forced(bench: Bench, words: tuple[str, str]) -> None:
    (bench.path / "norm-b.png").hardlink_to(bench.path / "norm-b.safetensors")
    before = {path.name: path.read_bytes() for path in bench.path.iterdir()}
    for forced in ((), ("--force",)):
        found = bench.run(*INTERPOLATE, "--steps", "1", *words, *forced)
        assert (found.code, found.out) == (6, ""), found.err
        assert "same file" in found.err
    assert {path.name: path.read_bytes() for path in bench.path.iterdir()} == before


def test_a_shard_is_an_input_too(bench: Bench) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(bench.path / "norm-b.safetensors")
    save_file(state, bench.path / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "part.safetensors")}
    (bench.path / "b.safetensors.index.json").write_text(json.dumps(index))
    before = (bench.path / "part.safetensors").read_bytes()
    words = ("b.safetensors.index.json", *INTERPOLATE[3:], "--steps", "1", "-o", "part.safetensors", "--force")
    found = bench.run(*INTERPOLATE[:2], *words)
    assert found.code == 6, found.err
    assert (bench.path / "part.safetensors").read_bytes() == before
