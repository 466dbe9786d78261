"""Checkpoints larger than the memory that a process may have for data: they stay mapped, and are aligned within it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("RLIMIT_DATA counts mappings on Linux only", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]

READ = """
import resource, sys, torch
from rebasin_cli.checkpoint import open_checkpoint
limit = [line for line in open("/proc/self/status") if line.startswith("VmData:")][0].split()[1]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit) * 1024 + (8 << 20),) * 2)
checkpoint = open_checkpoint(sys.argv[1])
print(float(checkpoint.tensor("w")[-1]), float(checkpoint.tensor("w").sum()))
"""


def test_a_file_larger_than_the_limit_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.ones(8 << 20)}, tmp_path / "w.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ, str(tmp_path / "w.safetensors")], capture_output=True, text=True
    )
    assert done.stdout.split() == ["1.0", str(float(8 << 20))], done.stderr


@pytest.mark.slow
def test_sharded_pair_larger_than_the_limit_aligns_within_it(tmp_path: Path) -> None:
    """Two checkpoints of 60 MB each, in three shards each; three quarters of what they hold together is the limit.

    That it is 0.75 of one for large models is shown by `python -m tests.benchmarks.memory`: here constants weigh more.
    """
    args = {"vocabulary": 24000, "width": 256, "hidden": 704, "layers": 4, "heads": 8, "shared": 2}
    command = [
        sys.executable, "-m", "tests.benchmarks.memory", "--model-args", json.dumps(args), "--shards", "3",
        "--effort", "fast", "--share", "1.5", "--folder", str(tmp_path), "-o", str(tmp_path / "figures.json"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["checkpoint_bytes"] > 60e6
    assert figures["converged"]
    assert figures["verified"]
    assert figures["cosine"][0] < 0.2
    assert figures["cosine"][1] > 0.85
    assert figures["anonymous_over_checkpoint"] < 1.5
