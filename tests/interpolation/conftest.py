"""A directory with two trained networks as checkpoints, their model as a file, digits as arrays, and a way to run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from safetensors.torch import save_file

from rebasin_cli.cli.app import main
from tests.interpolation.digits import digits, trained

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys; from rebasin_cli.cli.app import main; sys.exit(main())"
NET = """
from torch import nn


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def norm():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, 10),
    )


def score(output, target):
    return (output.argmax(1) != target).float()
"""


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Bench:
    """The directory, and the program in it."""

    path: Path

    def start(
        self,
        *words: str,
        launcher: Sequence[str] = (),
        program: str = "program.py",
        stderr: int | IO[str] = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """`program` is a file in the directory; without a launcher, Python runs it."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        return subprocess.Popen(
            [*(launcher or [sys.executable]), str(self.path / program), *words],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def run(self, *words: str) -> Run:
        """The program in this process, which is cheap; `process` where it must be one of its own."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words)
        return Run(code, out.getvalue(), err.getvalue())

    def process(self, *words: str, launcher: Sequence[str] = ()) -> Run:
        process = self.start(*words, launcher=launcher)
        out, err = process.communicate(timeout=300)
        return Run(process.returncode, out, err)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    for kind in ("plain", "norm"):
        for seed, letter in enumerate("ab"):
            state = {key: value.clone() for key, value in trained(kind, seed).state_dict().items()}
            save_file(state, tmp_path / f"{kind}-{letter}.safetensors")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "program.py").write_text(PROGRAM)
    x, y = digits()
    np.savez(tmp_path / "train.npz", x=x[:1200], y=y[:1200])
    np.savez(tmp_path / "test.npz", x=x[1200:], y=y[1200:])
    return Bench(tmp_path)
