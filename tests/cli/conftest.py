"""A directory with two checkpoints and their model, and two ways to run the program: here, and as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rebasin_cli.cli.app import main
from tests.cli.workshop import furnish

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


Runner = Callable[..., Run]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, furnished."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run the program in this process: the same code as the command, without the seconds that importing torch takes."""

    def runner(*words: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return runner


@pytest.fixture
def process(place: Path) -> Runner:
    """Run the program as a process of its own."""

    def runner(*words: object, **options: object) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "rebasin_cli", *map(str, words)],
            cwd=place,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            **options,  # type: ignore[call-overload]
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return runner


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
