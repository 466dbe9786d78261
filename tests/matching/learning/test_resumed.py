"""`align --method learned` that is killed and run again ends with the bytes of a run that was left alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from rebasin_cli.cli.app import main
from rebasin_cli.matching.learning import learn as learning
from rebasin_cli.matching.learning.loop import Progress
from tests.matching.methods.test_learned import folder  # noqa: F401

KILLED = """
import os, signal, sys
from rebasin_cli.cli.app import main
from rebasin_cli.matching.learning import journal, learn

journal.SECONDS_BETWEEN_SAVES = 0.0
journal.SHARE = 0
shown = learn.LearningRun._show


def kill(self, done):
    shown(self, done)
    if done.step == 40:
        os.kill(os.getpid(), signal.SIGKILL)


learn.LearningRun._show = kill
main(sys.argv[1:])
"""
WORDS = (
    *("align", "norm-a.safetensors", "norm-b.safetensors", "--model", "nets.py:norm", "--input", "1,1,8,8"),
    *("--data", "digits.npz", "--method", "learned", "--learning-steps", "60", "--effort", "fast"),
)


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


def data_of(report: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(report.read_text())["data"]
    return data


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.chdir(folder)
    return folder


def kill(out: str, *more: str) -> None:
    """Run it in a process of its own, which is killed at step 40, after the state of step 30 was saved."""
    done = subprocess.run([sys.executable, "-c", KILLED, *WORDS, "-o", out, *more], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()


def test_a_killed_run_resumes_and_writes_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(*WORDS, "-o", "whole.safetensors")
    assert code == 0, err
    kill("cut.safetensors")
    state = place / ".cut.safetensors.learning"
    assert state.exists()
    assert not (place / "cut.safetensors").exists()

    code, _, err = run(*WORDS, "-o", "cut.safetensors", "--seed", "7")
    assert code == 6
    assert "the state of another run" in err
    assert "seed" in err
    assert state.exists()

    searched: list[str] = []
    monkeypatch.setattr(learning, "match_weights", lambda task: searched.append("weights"))
    code, _, err = run(*WORDS, "-o", "cut.safetensors")
    assert code == 0, err
    assert searched == []
    assert not state.exists()
    assert (place / "cut.safetensors").read_bytes() == (place / "whole.safetensors").read_bytes()
    whole, cut = (data_of(place / name) for name in ("whole.json", "cut.json"))
    for name in ("learning", "criterion", "objective", "groups", "start", "passes", "data"):
        assert cut[name] == whole[name], name


def test_after_an_interruption_the_same_command_resumes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object, done: Progress) -> None:
        if done.step == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(learning.LearningRun, "_show", interrupt)
    monkeypatch.setattr("rebasin_cli.matching.learning.journal.SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("rebasin_cli.matching.learning.journal.SHARE", 0)
    code, _, err = run(*WORDS, "-o", "interrupted.safetensors")
    assert code == 130
    assert "the same command resumes it" in err
    assert (place / ".interrupted.safetensors.learning").exists()
    (place / ".interrupted.safetensors.learning").unlink()


def test_a_run_that_cannot_succeed_leaves_no_state(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rebasin_cli.errors import NumericalError
    from rebasin_cli.verbs.alignment import Alignment

    def fail(self: object, *_: object) -> None:
        raise NumericalError("not the same function", slug="verification")

    monkeypatch.setattr(Alignment, "_verify", fail)
    code, _, _ = run(*WORDS, "-o", "wrong.safetensors")
    assert code == 7
    assert [path.name for path in place.iterdir() if "wrong" in path.name] == []


def test_a_directory_that_is_made_for_the_output_takes_the_state_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebasin_cli.matching.learning.journal.SECONDS_BETWEEN_SAVES", 0.0)
    code, _, err = run(*WORDS, "-o", "new/one.safetensors", "--mkdir")
    assert code == 0, err
    assert sorted(path.name for path in (place / "new").iterdir()) == ["one.json", "one.safetensors"]


def test_the_report_shows_the_curve_and_a_picture_draws_it(place: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = run(*WORDS, "-o", "drawn.safetensors", "--curve", "curve.svg")
    assert code == 0, err
    found = data_of(place / "drawn.json")["learning"]
    assert [point["step"] for point in found["curve"]] == [0, 10, 20, 30, 40, 50, 60]
    assert found["curve"][0]["train_loss"] is None
    assert all(point["train_loss"] > 0 for point in found["curve"][1:])
    assert found["best_loss"] == min(point["held_loss"] for point in found["curve"])
    assert "held-back loss" in out
    assert "the last tenth of the steps brought" in out
    assert "held back" in (place / "curve.svg").read_text()
    code, _, err = run(*WORDS, "-o", "again.safetensors", "--curve", "curve.svg")
    assert code == 6
    assert "curve.svg" in err
    code, _, err = run(*WORDS[:-6], "--curve", "other.svg")
    assert code == 2
    assert "--method learned" in err
