"""A directory with five trained networks of each kind, fine-tunings of one, and the program in it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rebasin_cli.cli.app import main
from tests.interpolation.conftest import NET, PROGRAM, ROOT
from tests.interpolation.digits import batches, digits, trained

SHAPE = ("--input", "2,1,8,8")


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """The data of the JSON that was printed."""
        document = json.loads(self.out)
        assert document["status"] == "ok", self.out
        return document["data"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Desk:
    """The directory, and the program in it."""

    path: Path

    def run(self, *words: str) -> Run:
        """`rebasin merge` with these words, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(("merge", *words))
        return Run(code, out.getvalue(), err.getvalue())

    def merge(self, kind: str, *words: str, out: str = "out.safetensors") -> dict[str, Any]:
        """Merge the networks of a kind; the data of the result."""
        files = [path.name for path in sorted(self.path.glob(f"{kind}-?.safetensors"))]
        effort = () if "--effort" in words else ("--effort", "fast")
        done = self.run(*files, "-m", f"net.py:{kind}", *SHAPE, "-o", out, "--json", "-f", *effort, *words)
        assert done.code == 0, done.out + done.err
        return done.data

    def process(self, *words: str, launcher: Sequence[str] = ()) -> Run:
        """The same in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        done = subprocess.run(
            [*(launcher or [sys.executable]), str(self.path / "program.py"), "merge", *words],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    def load(self, name: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = load_file(self.path / name)
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, self.path / name)


@cache
def fine_tuned(seed: int) -> nn.Module:
    """The network of seed 0, trained on a little with its own order of the data."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    module.load_state_dict(trained("plain", 0).state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    data = batches(0, 1200, 60)
    for place in torch.randperm(len(data), generator=generator).tolist():
        x, y = data[place]
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


def make_desk(path: Path, *, count: int = 5) -> Desk:
    """The directory, filled."""
    desk = Desk(path)
    for kind in ("plain", "norm"):
        for seed in range(count):
            desk.save(f"{kind}-{seed}.safetensors", trained(kind, seed).state_dict())
    (path / "net.py").write_text(NET)
    (path / "program.py").write_text(PROGRAM)
    x, y = digits()
    np.savez(path / "train.npz", x=x[:1200], y=y[:1200])
    np.savez(path / "test.npz", x=x[1200:], y=y[1200:])
    return desk
