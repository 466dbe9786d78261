"""A sweep that is stopped again and again ends with the file of one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interpolation.conftest import Bench

KILLS = 7
PATIENCE = 300.0
"""Seconds; only a process that hangs takes so long, however busy the machine is."""
SLOW = """
import time
import numpy as np
import torch


class Slow(torch.utils.data.Dataset):
    def __init__(self, name):
        with np.load(name) as arrays:
            self.x, self.y = arrays["x"][:300], arrays["y"][:300]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        time.sleep(0.002)
        return torch.from_numpy(self.x[i]), int(self.y[i])


def test():
    return Slow("test.npz")


def train():
    return Slow("train.npz")
"""
SAVING_OFTEN = """
import sys
from rebasin_cli.__main__ import main
from rebasin_cli.execution import dataset_pass
from rebasin_cli.interpolation import result_file

save = result_file.ResultFile.save


def save_and_report(self):
    save(self)
    print("saved", file=sys.stderr, flush=True)


result_file.SECONDS_BETWEEN_SAVES = result_file.SAVE_SHARE = 0.0
result_file.ResultFile.save = save_and_report
dataset_pass.chunk_size = lambda source, ranks: 4  # batches: both passes go through the data in several chunks
print("started", file=sys.stderr, flush=True)
sys.exit(main())
"""
WORDS = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--data", "slow.py:test")
WORDS += ("--recalibrate", "slow.py:train", "--repair", "--steps", "3", "--batch-size", "10")
WORDS += ("--recalibrate-limit", "200")


@dataclass
class Watched:
    """A process and the file that its stderr goes to."""

    process: subprocess.Popen[str]
    file: Path

    def lines(self) -> Sequence[str]:
        return self.file.read_text().splitlines()

    def has_said(self, word: str, times: int) -> bool:
        """Wait until it has said the word so often; False where it ended before."""
        while self.lines().count(word) < times:
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def end(self) -> int:
        return self.process.wait(timeout=PATIENCE)


def start(bench: Bench, out: str) -> Watched:
    """The program, once it is past its imports, which take longer than all its work."""
    file = bench.path / "stderr.txt"
    with file.open("w") as stream:
        process = bench.start(*WORDS, "-o", out, program="often.py", stderr=stream)
    watched = Watched(process, file)
    assert watched.has_said("started", 1), file.read_text()
    return watched


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_at_any_moment_it_ends_with_the_same_file(bench: Bench, stop: signal.Signals) -> None:
    """The moments are drawn in saves and parts of the time between two, so that a busy machine does not shift them."""
    (bench.path / "slow.py").write_text(SLOW)
    (bench.path / "often.py").write_text(SAVING_OFTEN)
    whole = start(bench, "whole.json")
    began = time.monotonic()
    assert whole.end() == 0, whole.lines()
    saves = whole.lines().count("saved")
    between = (time.monotonic() - began) / saves
    chance = random.Random(stop)
    codes: list[int] = []
    resumed = 0
    while len([code for code in codes if code]) < KILLS:
        if codes and codes[-1] == 0:  # it came to its end before it was stopped
            (bench.path / "broken.json").unlink()
        broken = start(bench, "broken.json")
        if broken.has_said("saved", chance.randrange(saves // 2)):
            time.sleep(chance.uniform(0.0, 2 * between))
            broken.process.send_signal(stop)
        codes.append(broken.end())
        said = broken.file.read_text()
        resumed += "resuming" in said
        if codes[-1] == 130:
            assert "interrupted" in said
    stopped = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[stop]
    assert set(codes) <= {0, stopped, -stop}, said  # the last where Python itself was already going down
    last = start(bench, "broken.json")  # chunked as before, even where nothing was saved
    assert last.end() == 0, last.lines()
    assert resumed or "resuming" in last.file.read_text()
    one, other = (json.loads((bench.path / name).read_text())["data"] for name in ("whole.json", "broken.json"))
    assert {**one, "out": ""} == {**other, "out": ""}
    assert not [path for path in bench.path.iterdir() if path.name.startswith(".")]
