"""CPU seconds of what needs no tensor, absolute and relative to `import torch`. Aim: 0.3 s each.

python -m tests.benchmarks.start_time
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
AIM = 0.3
REPEATS = 5
COMMANDS = (
    ["--help"],
    ["--version"],
    ["align", "--help"],
    ["models"],
    ["models", "resnet*"],
    ["inspect", "a.safetensors"],
    ["align", "a.safetensors", "absent.pt", "--model", "torchvision:resnet18"],
    ["align", "a.safetensors", "a.safetensors", "--model", "torchvision:resnt18"],
    ["align", "a.safetensors", "--no-such-option"],
    ["completions", "bash"],
)


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """The median over several runs of user and system time."""
    spent = []
    for _ in range(REPEATS):
        before = os.times()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=False)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return median(spent)


def write_checkpoint(path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "a.safetensors")
        torch = cpu_seconds(["-c", "import torch"], folder)
        print(f"{'import torch':60}{torch:8.2f} s")
        for command in COMMANDS:
            spent = cpu_seconds(["-m", "rebasin_cli", *command], folder)
            verdict = "" if spent <= AIM else f"  above {AIM} s"
            print(f"{'rebasin ' + ' '.join(command):60}{spent:8.2f} s{spent / torch:8.2f}{verdict}")


if __name__ == "__main__":
    main()
